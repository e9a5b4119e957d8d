"""Verifiable rewards: the reward of an answer, computed from its tokens.

A reward is `reward_fn(answer, wanted) -> ()`, float32, of one answer `[T]` and the response of
the data `[L]`, both int32, without their end token and filled with `NOTHING` after it. An
answer without `NOTHING` was cut off before its end. Any function of these arguments that jax can
trace can be used as a reward.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fedjax_post.objectives.choice import NOTHING


def exact(answer: Int[Array, " T"], wanted: Int[Array, " L"]) -> Float[Array, ""]:
    """Returns 1 if the answer is the response, otherwise 0; an answer without end is wrong.

    Example:
      >>> response = jnp.array([5, 7, NOTHING])
      >>> [float(exact(jnp.array(answer), response)) for answer in ([5, 7, NOTHING], [5, 7, 8])]
      [1.0, 0.0]
    """
    answer, wanted = _pad_alike(answer, wanted)
    return (answer == wanted).all().astype(jnp.float32)


def head(answer: Int[Array, " T"], wanted: Int[Array, " L"]) -> Float[Array, ""]:
    """Returns the share of the response, including its end, that is right before the first error.

    It is in (0, 1] as soon as the first token is right, and 1 for the whole response. This makes
    learning easier to start than `exact` where hardly any answer is completely right.
    """
    answer, wanted = _pad_alike(answer, wanted)
    right = jnp.cumprod((answer == wanted).astype(jnp.float32))
    length = (wanted != NOTHING).sum() + 1  # 1 for the end
    return jnp.where(jnp.arange(right.size) < length, right, 0.0).sum() / length


def _pad_alike(answer, wanted):
    """Returns both rows at one width, with room for an end after the longer one."""
    width = max(answer.size, wanted.size) + 1
    # an answer that was cut off must not look as if it had ended
    cut = jnp.where(answer[-1] == NOTHING, NOTHING, NOTHING - 1)
    widen = lambda row, fill: jnp.concatenate([row, jnp.full(width - row.size, fill, row.dtype)])
    return widen(answer, cut), widen(wanted, NOTHING)


REWARDS = {"exact": exact, "head": head}
