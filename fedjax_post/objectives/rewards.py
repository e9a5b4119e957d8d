"""Verifiable rewards: what an answer is worth, from tokens alone.

A reward is `reward_fn(answer, wanted) -> ()`, float32, of one answer `[T]` and the row's own
response `[L]`, both int32, without their end token and filled with `NOTHING` behind it. An
answer without `NOTHING` found no end in the room that it had. One of your own is any function
of these that jax can trace.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fedjax_post.objectives.choice import NOTHING


def exact(answer: Int[Array, " T"], wanted: Int[Array, " L"]) -> Float[Array, ""]:
    """Returns 1 for the response itself and 0 for all else; an answer without end is wrong."""
    answer, wanted = _side_by_side(answer, wanted)
    return (answer == wanted).all().astype(jnp.float32)


def head(answer: Int[Array, " T"], wanted: Int[Array, " L"]) -> Float[Array, ""]:
    """Returns the share of the response, its end counted, that the answer has before it errs.

    In (0, 1] as soon as the first token is right, and 1 for the response itself: an easier
    start than `exact` where hardly any answer is right as a whole.
    """
    answer, wanted = _side_by_side(answer, wanted)
    right = jnp.cumprod((answer == wanted).astype(jnp.float32))
    length = (wanted != NOTHING).sum() + 1  # and the end
    return jnp.where(jnp.arange(right.size) < length, right, 0.0).sum() / length


def _side_by_side(answer, wanted):
    """Both in one width, with room for an end behind the longer one."""
    width = max(answer.size, wanted.size) + 1
    # an answer that was cut off must not look as if it had ended
    cut = jnp.where(answer[-1] == NOTHING, NOTHING, NOTHING - 1)
    widen = lambda row, fill: jnp.concatenate([row, jnp.full(width - row.size, fill, row.dtype)])
    return widen(answer, cut), widen(wanted, NOTHING)


REWARDS = {"exact": exact, "head": head}
