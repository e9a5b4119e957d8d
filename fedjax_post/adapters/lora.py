"""Low-rank adapters as plain trees: choice of layers, factors, and merging into the weights.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
arXiv:2106.09685. A layer `y = x W` becomes `y = x W + ((x A) scale) B`, where
`scale` is alpha / rank for the first `rank` of the R components and 0 beyond,
so that clients of different ranks share one shape.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_post.core.patterns import check_bounded
from fedjax_post.model.quantize import dequantize_model
from fedjax_post.model.views import LanguageModel, merge_collections

PyTree = Any
ALL_LINEAR = "all-linear"


def linear_layers(model: LanguageModel) -> dict[str, tuple[int, int, int]]:
    """Returns `{dotted path: (num_layers, in, out)}` of the layers that can be adapted, sorted."""
    shapes = jax.eval_shape(dequantize_model, model).variables["params"]["layers"]
    return {
        ".".join(("layers", *path)): kernel.shape
        for path, kernel in sorted(_leaves(shapes, "kernel"), key=lambda item: item[0])
    }


def add_lora(
    model: LanguageModel,
    key: Array,
    *,
    rank: int,
    alpha: float,
    targets: str | Sequence[str] = ALL_LINEAR,
    layers: tuple[int, int] | range | None = None,
    dropout: float = 0.0,
) -> tuple[LanguageModel, PyTree]:
    """Returns the model prepared for an adapter, and new factors, whose product is zero.

    A is drawn from U(-1/sqrt(in), 1/sqrt(in)) as in `peft`, B is zero; both are float32.

    >>> import jax
    >>> from fedjax_post.adapters.lora import add_lora
    >>> from fedjax_post.testing.models import tiny_model
    >>> model, params = add_lora(tiny_model(), jax.random.key(0), rank=2, alpha=4, targets="q_proj")
    >>> for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    ...     print(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape)
    lora/layers/attention/q_proj/a (2, 16, 2)
    lora/layers/attention/q_proj/b (2, 2, 16)

    Args:
      model: the frozen model.
      key: PRNG key for A.
      rank: R, components per layer.
      alpha: the adapter's product is multiplied by alpha / rank.
      targets: "all-linear", or names ("q_proj") or regular expressions over whole
        dotted paths (".*attention.*"), one or several.
      layers: the first adapted layer, and the one after the last; None is all. The other
        layers have no factors, and the backward pass stops at the first adapted layer.
      dropout: share of a layer's inputs that are dropped for the factors in training, in [0, 1).

    Returns:
      The model with `lora_scale` and the dropout, and `{"lora": tree}` of A `[N, in, R]` and
      B `[N, R, out]`, where N is the number of adapted layers.

    Raises:
      ValueError: if the rank is below 1 or above a layer's width, the dropout is outside
        [0, 1), a target matches no layer, or the model does not have the `layers`.
    """
    if rank < 1:
        raise ValueError(f"`rank` must be at least 1, got {rank}")
    if not 0 <= dropout < 1:
        raise ValueError(f"`dropout` must be in [0, 1), got {dropout}")
    shapes = {name: linear_layers(model)[name] for name in match_layers(model, targets)}
    for name, (_, size_in, size_out) in shapes.items():
        if rank > min(size_in, size_out):
            raise ValueError(
                f"rank={rank} exceeds layer {name} of {size_in} x {size_out}; "
                f"use at most {min(size_in, size_out)} or leave this layer out of `targets`"
            )
    first, last = _check_layers(layers, model.config.num_layers)
    shapes = {name: (last - first, *shape[1:]) for name, shape in shapes.items()}
    factors = _fresh_factors(key, shapes=tuple(shapes.items()), rank=rank)
    scales: PyTree = {}
    for name, (num_layers, _, _) in shapes.items():
        scale = rank_scale(alpha, rank, rank)
        _put(scales, name, {"scale": jnp.broadcast_to(scale[None], (num_layers, rank))})
    model = on_layers(with_scale(model, scales, dropout=dropout), first, last)
    return model, {"lora": factors}


def on_layers(model: LanguageModel, first: int, last: int) -> LanguageModel:
    """Returns the model set up for an adapter on layers `first` .. `last - 1`.

    Args:
      model: the model.
      first: the first adapted layer, from 0.
      last: the layer after the last adapted one.
    """
    whole = (first, last) == (0, model.config.num_layers)
    return dataclasses.replace(model, lora_layers=None if whole else (first, last))


def adapted_layers(model: LanguageModel) -> range:
    """Returns the numbers of the layers that the model's adapter is on; all layers by default."""
    return range(*(model.lora_layers or (0, model.config.num_layers)))


def _check_layers(layers: tuple[int, int] | range | None, num_layers: int) -> tuple[int, int]:
    """Returns the first layer and the one after the last."""
    if layers is None:
        return 0, num_layers
    if isinstance(layers, range) and layers.step != 1:
        raise ValueError(f"`layers` must be one range without gaps, got {layers}")
    first, last = (layers.start, layers.stop) if isinstance(layers, range) else layers
    if not 0 <= first < last <= num_layers:
        raise ValueError(
            f"layers={first}:{last} is not a part of the model's {num_layers} layers; "
            "give the first and the one after the last, counted from 0"
        )
    return first, last


@functools.partial(jax.jit, static_argnames=("shapes", "rank"))
def _fresh_factors(key, *, shapes, rank):
    """Returns A and B of all layers, from one compiled program."""
    factors: PyTree = {}
    for (name, shape), layer_key in zip(shapes, jax.random.split(key, len(shapes)), strict=True):
        num_layers, size_in, size_out = shape
        bound = 1 / math.sqrt(size_in)
        a = jax.random.uniform(layer_key, (num_layers, size_in, rank), minval=-bound, maxval=bound)
        _put(factors, name, {"a": a, "b": jnp.zeros((num_layers, rank, size_out))})
    return factors


def match_layers(model: LanguageModel, targets: str | Sequence[str]) -> list[str]:
    """Returns the dotted paths of the linear layers that `targets` selects.

    Raises:
      ValueError: if a target matches no layer; the message lists the layers.
    """
    names = list(linear_layers(model))
    if targets == ALL_LINEAR:
        return names
    patterns = [targets] if isinstance(targets, str) else list(targets)
    if not patterns:
        raise ValueError(f"`targets` is empty; the linear layers are {names}")
    chosen = set()
    for pattern in patterns:
        check_bounded("targets", pattern)
        found = [n for n in names if n.split(".")[-1] == pattern or re.fullmatch(pattern, n)]
        if not found:
            raise ValueError(
                f"`targets`: {pattern!r} matches no linear layer; the layers are {names}; "
                f"give their last part, a pattern, or {ALL_LINEAR!r} for all"
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def rank_scale(alpha: Any, rank: Any, max_rank: int) -> Float[Array, " R"]:
    """Returns alpha / rank for the first `rank` of `max_rank` components, and 0 for the others.

    Args:
      alpha: (), may be traced.
      rank: (), may be traced; 0 gives zeros.
      max_rank: R, the number of components.
    """
    first = jnp.arange(max_rank) < rank
    return jnp.where(first, alpha / jnp.maximum(rank, 1), 0.0).astype(jnp.float32)


def with_scale(model: LanguageModel, scales: PyTree, *, dropout: float = 0.0) -> LanguageModel:
    """Returns the model with another `lora_scale` and dropout.

    Args:
      model: the model.
      scales: the collection `lora_scale`: `{"scale": [num_layers, R]}` for each adapted matrix.
      dropout: as in `add_lora`.
    """
    return dataclasses.replace(
        model, variables={**model.variables, "lora_scale": scales}, lora_dropout=dropout
    )


def with_rank(model: LanguageModel, alpha: Any, rank: Any) -> LanguageModel:
    """Returns the adapted model with the scale of a client of a smaller rank.

    Args:
      model: the adapted model.
      alpha: (), may be traced.
      rank: (), the client's rank; may be traced.
    """
    scales = jax.tree.map(
        lambda leaf: jnp.broadcast_to(rank_scale(alpha, rank, leaf.shape[-1]), leaf.shape),
        model.variables["lora_scale"],
    )
    return with_scale(model, scales, dropout=model.lora_dropout)


def mask_rank(params: PyTree, rank: Any) -> PyTree:
    """Returns the parameters with all components of the adapter from `rank` on set to 0.

    `rank` may be traced.
    """

    def mask(path, leaf):
        axis = leaf.ndim - 1 if path[-1].key == "a" else leaf.ndim - 2
        index = jax.lax.broadcasted_iota(jnp.int32, leaf.shape, axis)
        return jnp.where(index < rank, leaf, 0)

    return {**params, "lora": jax.tree_util.tree_map_with_path(mask, params["lora"])}


def lora_delta(model: LanguageModel, params: PyTree) -> PyTree:
    """Returns `A scale B` of the N adapted layers as `{.. {"kernel": [N, in, out]}}`, float32.

    The collection "residual" has the same form.
    """
    delta: PyTree = {}
    scales = dict(_leaves(model.variables["lora_scale"], "scale"))
    factors_b = dict(_leaves(params["lora"], "b"))
    for path, a in _leaves(params["lora"], "a"):
        product = jnp.einsum("nir,nr,nro->nio", a, scales[path], factors_b[path])
        _put(delta, ".".join(path), {"kernel": product})
    return delta


def merge_lora(model: LanguageModel, params: PyTree, *, dtype: Any = None) -> LanguageModel:
    """Returns a model whose weights include the residual, full updates and the adapter.

    A prompt is not a weight and remains a collection of its own. For export and tests only: in
    training the base weights are shared by all clients and not merged.

    Args:
      model: the model.
      params: merged over its collections.
      dtype: of the merged weights; None for those of the model. Narrow weights round what is
        added to them: in bfloat16, what is below 1/512 of a weight is lost.
    """
    model = dequantize_model(model)
    variables = merge_collections(model.variables, params)
    weights = variables["params"]
    if dtype is not None:
        weights = jax.tree.map(lambda leaf: leaf.astype(dtype), weights)
    at = adapted_layers(model)
    deltas = [variables["residual"]] if "residual" in variables else []
    if "lora" in variables:
        deltas.append(lora_delta(dataclasses.replace(model, variables=variables), variables))
    for delta in deltas:
        for path, kernel in _leaves(delta, "kernel"):
            base = _get(weights, path)["kernel"]
            wide = base.astype(jnp.float32)
            total = wide.at[at.start : at.stop].add(kernel.astype(jnp.float32))
            weights = merge_collections(weights, _nest(path, {"kernel": total.astype(base.dtype)}))
    merged = {"params": weights, **{k: variables[k] for k in ("prompt",) if k in variables}}
    return dataclasses.replace(model, variables=merged, lora_dropout=0.0, lora_layers=None)


def _leaves(tree: PyTree, name: str, path: tuple[str, ...] = ()):
    """Yields (path, leaf) of every leaf called `name`, in insertion order."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, name, (*path, key))
        elif key == name:
            yield path, value


def _get(tree: PyTree, path: Sequence[str]) -> PyTree:
    for key in path:
        tree = tree[key]
    return tree


def _nest(path: Sequence[str], leaf: PyTree) -> PyTree:
    for key in reversed(path):
        leaf = {key: leaf}
    return leaf


def _put(tree: PyTree, name: str, leaf: PyTree) -> None:
    """Writes `leaf` at a dotted path of a tree under construction."""
    *parents, last = name.split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = leaf
