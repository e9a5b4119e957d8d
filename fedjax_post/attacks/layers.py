"""The inputs of a layer's attention, as everybody can compute them from tokens."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.model.decoder import Decoder
from fedjax_post.model.layers import Norm
from fedjax_post.model.views import LanguageModel, merge_collections

PyTree = Any


def inputs_of(model: LanguageModel, params: PyTree, tokens: np.ndarray, layer: int) -> np.ndarray:
    """Returns the inputs of an attention's projections, `[B, L, D]` float32.

    Args:
      model: the frozen model.
      params: what is trained, merged over it.
      tokens: int32 `[B, L]`, whole rows from their first token.
      layer: from 0.
    """
    return np.asarray(_inputs_of(model, params, jnp.asarray(tokens, jnp.int32), layer=layer))


@functools.partial(jax.jit, static_argnames="layer")
def _inputs_of(model, params, tokens, *, layer):
    x: Any
    config = model.config
    variables = merge_collections(model.variables, params)
    is_normed = config.norm_place in ("pre", "sandwich")
    scale = jax.tree.map(lambda x: x[layer], variables["params"]["layers"].get("input_norm", {}))
    norm = Norm(config.norm, config.norm_eps)
    if layer == 0:
        # Positions of rotary kind enter after the projections
        x = Decoder(config).apply(variables, tokens, method=Decoder.embed)
        if config.learned_positions:
            x = x + variables["params"]["positions"][None, : tokens.shape[1]].astype(x.dtype)
        x = norm.apply({"params": scale}, x) if is_normed else x
        return x.astype(jnp.float32)
    first, end = model.lora_layers or (0, config.num_layers)
    is_adapter = lambda name: name in ("lora", "lora_scale", "residual")
    below = {
        name: _cut(tree, layer - first if is_adapter(name) else layer)
        for name, tree in variables.items()
        if layer > first or not is_adapter(name)
    }
    below["params"] = {**below["params"], "norm": scale}
    short = dataclasses.replace(
        config,
        num_layers=layer,
        final_norm=is_normed,
        sliding_layers=tuple(i for i in config.sliding_layers if i < layer),
        no_rope_layers=tuple(i for i in config.no_rope_layers if i < layer),
    )
    adapted = None if first == 0 and end >= layer else (first, min(end, layer))
    decoder = Decoder(short, lora_layers=adapted if layer > first else None)
    x = decoder.apply(below, tokens, method=Decoder.hidden)
    return x.astype(jnp.float32)


def _cut(tree: PyTree, number: int) -> PyTree:
    """Returns a collection with its first layers alone."""
    if "layers" not in tree:
        return tree
    return {**tree, "layers": jax.tree.map(lambda x: x[:number], tree["layers"])}
