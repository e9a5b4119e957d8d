"""A frozen base in 8 or 4 bits: its linear layers are codes, read back while they run.

Embeddings, norms and heads stay as they are. Adapters train in float32 on top,
residual products are added as elsewhere. A layer's weights exist in the compute
dtype only while the layer runs, forward and, recomputed, backward.
"""

import dataclasses
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from fedjax_post.model.codes import KINDS, decode, encode
from fedjax_post.model.views import LanguageModel

PyTree = Any


def quantize_model(model: LanguageModel, kind: str) -> LanguageModel:
    """Returns the model with the kernels of its layers as codes in the collection "quantized".

    Its config recomputes layers in the backward pass: what would be kept there are the weights.

    Args:
      model: a model with weights.
      kind: "int8" or "nf4".

    Raises:
      ValueError: if `kind` is unknown, or the model is quantized already.
    """
    if "quantized" in model.variables:
        raise ValueError("the model is quantized already; load it again to change the kind")
    check_quantization(kind)
    kept, codes = {}, {}
    for path, leaf in flatten_dict(model.variables["params"]).items():
        if is_coded(path):
            codes[(*path[:-1], "codes")], codes[(*path[:-1], "scales")] = encode(leaf, kind)
        else:
            kept[path] = leaf
    variables = {
        **model.variables,
        "params": unflatten_dict(kept),
        "quantized": unflatten_dict(codes),
    }
    config = dataclasses.replace(model.config, remat=True)
    return dataclasses.replace(model, variables=variables, config=config)


def is_coded(path: tuple[str, ...]) -> bool:
    """Returns whether the weight at this path below "params" becomes codes: a layer's kernel."""
    return path[0] == "layers" and path[-1] == "kernel"


def check_quantization(kind: str) -> None:
    """Refuses an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"`quantize` must be one of {KINDS}, got {kind!r}")


def dequantize_model(model: LanguageModel) -> LanguageModel:
    """Returns the model with its codes read back as weights in the compute dtype."""
    if "quantized" not in model.variables:
        return model
    variables = dict(model.variables)
    stored = flatten_dict(variables.pop("quantized"))
    weights = flatten_dict(variables["params"])
    for path, codes in stored.items():
        if path[-1] == "codes":
            scales = stored[(*path[:-1], "scales")]
            weights[(*path[:-1], "kernel")] = decode(codes, scales, model.config.dtype)
    variables["params"] = unflatten_dict(weights)
    return dataclasses.replace(model, variables=variables)
