"""A frozen base model in 8 or 4 bits: the weights of linear layers are decoded when they run.

Embeddings, norms and heads are not quantized. Adapters are trained in float32, and residual
products are added as in other models. A layer's weights exist in the compute dtype only while
the layer runs, in the forward pass and, recomputed, in the backward pass.
"""

import dataclasses
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from fedjax_post.model.codes import KINDS, decode, encode
from fedjax_post.model.views import LanguageModel

PyTree = Any


def quantize_model(model: LanguageModel, kind: str) -> LanguageModel:
    """Returns the model with the kernels of its layers as codes in the collection "quantized".

    Its config recomputes layers in the backward pass, because otherwise the decoded weights
    would be kept for it.

    >>> from fedjax_post.model.quantize import quantize_model
    >>> from fedjax_post.testing.models import tiny_model
    >>> model = quantize_model(tiny_model(), "int8")
    >>> codes = model.variables["quantized"]["layers"]["attention"]["q_proj"]["codes"]
    >>> codes.dtype.name, codes.shape
    ('int8', (2, 16, 16))

    Args:
      model: a model with weights.
      kind: "int8" or "nf4".

    Raises:
      ValueError: if `kind` is unknown, or the model is already quantized.
    """
    if "quantized" in model.variables:
        raise ValueError("the model is already quantized; load it again to change the kind")
    check_quantization(kind)
    rest, codes = {}, {}
    for path, leaf in flatten_dict(model.variables["params"]).items():
        if is_coded(path):
            codes[(*path[:-1], "codes")], codes[(*path[:-1], "scales")] = encode(leaf, kind)
        else:
            rest[path] = leaf
    variables = {
        **model.variables,
        "params": unflatten_dict(rest),
        "quantized": unflatten_dict(codes),
    }
    config = dataclasses.replace(model.config, remat=True)
    return dataclasses.replace(model, variables=variables, config=config)


def is_coded(path: tuple[str, ...]) -> bool:
    """Returns whether the weight at a path below "params" is quantized: the kernel of a layer."""
    return path[0] == "layers" and path[-1] == "kernel"


def check_quantization(kind: str) -> None:
    """Raises ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"`quantize` must be one of {KINDS}, got {kind!r}")


def dequantize_model(model: LanguageModel) -> LanguageModel:
    """Returns the model with its codes decoded to weights in the compute dtype."""
    if "quantized" not in model.variables:
        return model
    variables = dict(model.variables)
    stored = flatten_dict(variables.pop("quantized"))
    weights = flatten_dict(variables["params"])
    for path, codes in stored.items():
        if path[-1] == "codes":
            scales = stored[(*path[:-1], "scales")]
            weights[(*path[:-1], "kernel")] = decode(codes, scales, model.config.matrix_dtype)
    variables["params"] = unflatten_dict(weights)
    return dataclasses.replace(model, variables=variables)
