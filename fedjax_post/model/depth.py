"""Runs the layers of a decoder in three parts if an adapter is on a range of layers only.

| layers | how they run | backward pass |
| --- | --- | --- |
| below the range | one scan | none: nothing is kept, no gradient is computed |
| in the range | one scan | for factors and the residual stream |
| above the range | one scan | for the residual stream |

A training step takes fewer operations than with all layers adapted, and no more memory.

Every part reads the weights of its layers from the one stacked tree by index, because slices
of the tree would be a second copy of the weights. For the same reason, the backward pass of a
scan reads them again instead of keeping them.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_post.model.attention import find_device
from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.layers import LayerKind, Memory, Where, keep_products

PyTree = Any
# Collections with one entry per layer of the range; the others have one per layer of the model
OF_RANGE = ("lora", "lora_scale", "residual")


def run_in_parts(
    block: Any,
    variables: dict[str, PyTree],
    x: jax.Array,
    each: tuple[Memory | None, LayerKind],
    where: Where,
    *,
    lora_layers: tuple[int, int],
    key: jax.Array | None,
    unroll: bool = False,
) -> tuple[jax.Array, PyTree]:
    """Returns the residual stream after all layers, and the new keys and values.

    Args:
      block: the module of one layer, unbound.
      variables: collections of stacked layers, leaves `[num_layers, ...]`, or
        `[last - first, ...]` in the collections `OF_RANGE`.
      x: the residual stream, `[B, L, D]`.
      each: the cache and the kinds of the layers, leaves `[num_layers, ...]`.
      where: positions and masks, the same for all layers.
      lora_layers: the first layer of the range, and the one after its last.
      key: PRNG key for dropout; None is evaluation.
      unroll: whether to unroll the scans, so that values for the backward pass are not stacked.

    Raises:
      ValueError: if the factors do not have one entry per layer of the range.
    """
    config: DecoderConfig = block.config
    _check_range(variables, lora_layers)
    first, last = lora_layers
    if config.remat and last == first + 1 < config.num_layers:
        # XLA would unroll a scan of one layer and then keep what remat should recompute
        last += 1
        variables = {k: _with_zeros(t) if k in OF_RANGE else t for k, t in variables.items()}
    shared = {k: tree for k, tree in variables.items() if k not in OF_RANGE}
    ranged = {k: variables[k] for k in OF_RANGE[1:] if k in variables}

    def plain(x, own):
        (i,) = own
        return block.apply(_pick(shared, i), x, *_pick(each, i), where)

    def adapted(x, own):
        i, lora, key = own
        own_variables = {**_pick(shared, i), **_pick(ranged, i - first), "lora": lora}
        rngs = None if key is None else {"dropout": key}
        return block.apply(own_variables, x, *_pick(each, i), where, rngs=rngs)

    keys = None if key is None else jax.random.split(key, last - first)
    parts = (
        (plain, (jnp.arange(first),)),
        (adapted, (jnp.arange(first, last), variables.get("lora", {}), keys)),
        (plain, (jnp.arange(last, config.num_layers),)),
    )
    policy = None if config.remat else _policy()
    news = []
    for layer, own in parts:
        if len(own[0]):
            if not unroll:
                layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
            x, new = jax.lax.scan(layer, x, own, unroll=unroll)
            news.append(new)
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *news)


def _policy() -> Any:
    return keep_products() if find_device().platform == "cpu" else _all_but_weights


def _all_but_weights(primitive, *_, **__) -> bool:
    """Keeps what a layer computes, but not the weights that it reads from the stack."""
    return primitive.name not in ("dynamic_slice", "squeeze")


def _pick(tree: PyTree, i: Any) -> PyTree:
    """Returns the entries of layer `i`."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), tree)


def _with_zeros(tree: PyTree) -> PyTree:
    """Returns the entries of one layer, followed by zeros for the next, which have no effect."""
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf, jnp.zeros_like(leaf)]), tree)


def _check_range(variables: dict[str, PyTree], lora_layers: tuple[int, int]) -> None:
    first, last = lora_layers
    for name in OF_RANGE:
        for leaf in jax.tree.leaves(variables.get(name, {})):
            if leaf.shape[0] != last - first:
                raise ValueError(
                    f"the model's adapter is on layers {first} to {last - 1}, but {name!r} has "
                    f"entries for {leaf.shape[0]}; pass the model that add_lora returned with them"
                )
