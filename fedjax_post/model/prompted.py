"""Prompts as parameters: inserts a prompt into the rows that a model reads.

`params["prompt"]` is `{"tokens": int32 [P]}`, a discrete prompt, or `{"embeddings": float32
[P, D]}`, a soft one (Lester et al., EMNLP 2021, arXiv:2104.08691).

| row | input of the decoder |
| --- | --- |
| bos a b, and padding on the right | bos p1 .. pP a b, and the padding |
| padding on the left, then bos a b | the padding, then bos p1 .. pP a b |
| a b, of a tokenizer without bos | p1 .. pP a b |

The first token of a row decides whether it begins with bos, so that a batch may have rows of
both kinds. The same is true of the segments of packed rows, which are separate sequences. The
prompt's keys and values depend only on whether bos precedes it, so all segments of a row attend
to the same copy, which is put before the row: see `share`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

PyTree = Any
KINDS = ("tokens", "embeddings")


def prompt_length(variables: PyTree) -> int:
    """Returns P, the places that the prompt in some collections needs; 0 without a prompt.

    Raises:
      ValueError: if it is not one int32 `[P]` of tokens or one float `[P, D]` of embeddings.
    """
    prompt = variables.get("prompt") or {}
    if not prompt:
        return 0
    if len(prompt) > 1 or not prompt.keys() <= set(KINDS):
        raise ValueError(f"a prompt has one of {KINDS}, got {sorted(prompt)}; remove the others")
    ((kind, value),) = prompt.items()
    is_integer = jnp.issubdtype(value.dtype, jnp.integer)
    if value.ndim != KINDS.index(kind) + 1 or is_integer != (kind == "tokens"):
        raise ValueError(
            f"a prompt's {kind} must be {'int32 [P]' if kind == 'tokens' else 'float32 [P, D]'}, "
            f"got {value.dtype} {list(value.shape)}"
        )
    return value.shape[0]


def place_of_prompt(
    tokens: Int[Array, "B L"], bos_id: int | None, *, is_real: Bool[Array, "B L"] | None = None
) -> Int[Array, " B"]:
    """Returns the place in each row before which the prompt is inserted: after bos, if any.

    Args:
      tokens: int32.
      bos_id: the token that begins a row; None if there is none.
      is_real: False for padding on the left; None if there is no such padding.
    """
    first = jnp.zeros(len(tokens), jnp.int32)
    if is_real is not None:
        first = jnp.argmax(is_real, axis=1).astype(jnp.int32)
    if bos_id is None:
        return first
    return first + (jnp.take_along_axis(tokens, first[:, None], axis=1)[:, 0] == bos_id)


def insert(rows: Array, prompt: Array, at: Int[Array, " B"]) -> Array:
    """Returns rows with a prompt inserted, `[B, L + P, ...]`.

    It uses no gather, so that the gradient of a prompt is a sum over rows in a fixed order.

    Args:
      rows: `[B, L, ...]`.
      prompt: `[P, ...]`.
      at: int32 `[B]`, the place before which the prompt is inserted.
    """
    num, total = prompt.shape[0], rows.shape[1] + prompt.shape[0]
    ones = (1,) * (rows.ndim - 2)
    offset = jnp.arange(total, dtype=jnp.int32)[None] - at[:, None]
    offset = offset.reshape(*offset.shape, *ones)
    blank = jnp.zeros((total, *prompt.shape[1:]), rows.dtype)
    put = lambda start: jax.lax.dynamic_update_slice_in_dim(
        blank, prompt.astype(rows.dtype), start, axis=0
    )
    rest = [(0, 0)] * len(ones)
    before = jnp.pad(rows, [(0, 0), (0, num), *rest])
    after = jnp.pad(rows, [(0, 0), (num, 0), *rest])
    return jnp.where(offset < 0, before, jnp.where(offset < num, jax.vmap(put)(at), after))


def insert_positions(positions: Int[Array, "B L"], at: Int[Array, " B"], num: int) -> Array:
    """Returns the positions of rows after the insertion of a prompt.

    Args:
      positions: int32, before the insertion.
      at: int32, the place before which the prompt is inserted, 0 or 1.
      num: P, the places of the prompt.
    """
    places = jnp.arange(positions.shape[1] + num, dtype=jnp.int32)[None] - at[:, None]
    inside = positions[:, :1] + at[:, None] + places
    after = jnp.pad(positions, ((0, 0), (num, 0))) + num
    return jnp.where(places < num, inside, after)


class Shared(NamedTuple):
    """A packed row of L places after E places that its segments share.

    Without a bos token, E is the prompt's length P. With a bos token, E is 1 + P + P: bos and the
    prompt for segments that begin with bos, and the prompt for those that do not.
    """

    is_bos: Bool[Array, "B L"]  # the first token of a segment that begins with bos
    positions: Int[Array, "B T"]  # T is E + L
    mask: Bool[Array, "B T T"]  # True where a place may attend to another


def share(
    tokens: Int[Array, "B L"], segments: Int[Array, "B L"], *, num: int, bos_id: int | None
) -> Shared:
    """Returns masks and positions with which all segments of a row read one prompt.

    The result for each segment is the same as if it had its own copy of the prompt.

    Args:
      tokens: int32.
      segments: int32, the number of each token's segment.
      num: P, the prompt's tokens.
      bos_id: the token that begins a sequence; None if there is none.
    """
    place = segment_positions(segments)
    is_bos = jnp.zeros(tokens.shape, bool)
    if bos_id is not None:
        is_bos = (place == 0) & (tokens == bos_id)
    start = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] - place
    has_bos = jnp.take_along_axis(is_bos, start, axis=1)
    own = jnp.arange(num, dtype=jnp.int32)
    front, after_bos = own, jnp.zeros(num, bool)
    if bos_id is not None:
        front = jnp.concatenate([jnp.arange(num + 1, dtype=jnp.int32), own])
        after_bos = jnp.arange(2 * num + 1) <= num
    within = jnp.tril(after_bos[:, None] == after_bos[None])
    # A segment has its own bos, so its tokens attend to the shared prompt but not the shared bos
    is_seen = (front > 0) | ~after_bos
    to_front = (has_bos[..., None] == after_bos[None, None]) & is_seen[None, None]
    to_front = to_front & ~is_bos[..., None]
    to_row = jnp.tril(segments[:, :, None] == segments[:, None, :])
    batch, total = len(tokens), len(front) + tokens.shape[1]
    above = jnp.pad(within, ((0, 0), (0, total - len(front))))
    below = jnp.concatenate([to_front, to_row], axis=2)
    mask = jnp.concatenate([jnp.broadcast_to(above[None], (batch, *above.shape)), below], axis=1)
    own_positions = place + num * ~is_bos
    front = jnp.broadcast_to(front[None], (batch, len(front)))
    return Shared(is_bos, jnp.concatenate([front, own_positions], axis=1), mask)


def segment_positions(segments: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Returns each token's distance from the start of its segment, int32."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)[None]
    starts = jnp.concatenate(
        [jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1
    )
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
