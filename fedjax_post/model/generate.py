"""Generation: prefill and cached decoding in one compiled loop."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from fedjax_post.model.views import LanguageModel

PyTree = Any


def generate(
    model: LanguageModel,
    params: PyTree,
    prompts: Int[Array, "B L"],
    prompt_mask: Bool[Array, "B L"],
    *,
    max_new_tokens: int,
    eos_id: int | tuple[int, ...],
    pad_id: int,
) -> Int[Array, "B T"]:
    """Returns the greedy continuations of left-padded prompts.

    A row that has emitted an end token is padded from there on; the loop stops
    when every row has. To give each row an adapter of its own, map it with
    `jax.vmap` over `params` and rows of one prompt: the base weights stay shared.

    Args:
      model: the frozen model.
      params: what is merged over it.
      prompts: int32, padded on the left.
      prompt_mask: False for padding.
      max_new_tokens: T, at least 1.
      eos_id: end token or tokens; the end token itself is returned.
      pad_id: what fills a row after its end.

    Raises:
      ValueError: if T < 1, or prompt and T exceed the model's context.
    """
    length = prompts.shape[1]
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if length + max_new_tokens > model.config.max_positions:
        raise ValueError(
            f"a prompt of {length} tokens and max_new_tokens={max_new_tokens} exceed the model's "
            f"context of {model.config.max_positions}; shorten one of them"
        )
    eos_ids = (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
    return _decode(
        model, params, prompts, prompt_mask, num_tokens=max_new_tokens, eos=eos_ids, pad_id=pad_id
    )


@functools.partial(jax.jit, static_argnames=("num_tokens", "eos", "pad_id"))
def _decode(model, params, prompts, prompt_mask, *, num_tokens, eos, pad_id):
    """The compiled part of `generate`."""
    batch, length = prompts.shape
    ends = jnp.array(eos, jnp.int32)
    prompt_mask = prompt_mask.astype(bool)
    first = prompt_mask.sum(axis=1).astype(jnp.int32)
    logits, cache = model.prefill(params, prompts, mask=prompt_mask, num_slots=length + num_tokens)
    blank = jnp.full((batch, num_tokens), pad_id, jnp.int32)
    here = jnp.ones((batch, 1), bool)

    def more(carry):
        count, _, _, _, done = carry
        return (count < num_tokens) & ~done.all()

    def body(carry):
        count, logits, cache, tokens, done = carry
        chosen = jnp.where(done, pad_id, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
        tokens = jax.lax.dynamic_update_slice(tokens, chosen[:, None], (0, count))
        done = done | (chosen[:, None] == ends[None, :]).any(axis=1)
        positions = (first + count)[:, None]
        logits, cache = model.step(
            params, chosen[:, None], positions=positions, mask=here, cache=cache
        )
        return count + 1, logits, cache, tokens, done

    start = (jnp.int32(0), logits, cache, blank, jnp.zeros(batch, bool))
    return jax.lax.while_loop(more, body, start)[3]
