"""Few-shot prompts: lays out rows as examples, and finds the rows that a prompt contains."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Rows = dict[str, Any]  # "tokens" int32 and "loss_mask" bool, [n, L]


class Shown(NamedTuple):
    """A line of examples, `[W]`, which ends where the next question begins."""

    tokens: jax.Array  # int32
    num_tokens: jax.Array  # (), float32: tokens of rows, without separators
    num_labels: jax.Array  # (), float32: responses whose first token is in the line


def draw_rows(rows: Rows, key: jax.Array, *, num: int) -> Rows:
    """Returns a uniform random choice of the rows `[n, L]`.

    Padding rows are drawn only if there are fewer than `num` others.

    Args:
      rows: "tokens" and "loss_mask", `[n, L]`; a row without response tokens is padding.
      key: a PRNG key.
      num: rows to draw.
    """
    rank = jax.random.uniform(key, rows["loss_mask"].shape[:1]) + ~rows["loss_mask"].any(axis=1)
    picked = jnp.argsort(rank)[:num]
    return {name: x[picked] for name, x in rows.items()}


def lay_out(rows: Rows, *, separator: jax.Array, dropped: jax.Array, width: int) -> Shown:
    """Returns the rows in one line, each up to the end of its response, with separators.

    Args:
      rows: "tokens" and "loss_mask", `[n, L]`; a row without response tokens is padding and is
        left out.
      separator: (), int32, put after each row; it also fills the front of a line that the rows
        do not fill.
      dropped: int32 `[D]`, tokens that are left out, such as bos and eos.
      width: W; the last rows that fit completely are kept.
    """
    tokens, shown, labels = _with_separators(rows, separator, dropped)
    shown, labels = (x & _fits(shown, width)[:, None] for x in (shown, labels))
    is_row = jnp.pad(shown[:, :-1], ((0, 0), (0, 1)))  # without the separator
    line, order = tokens.reshape(-1), jnp.argsort(shown.reshape(-1), stable=True)
    missing = max(0, width - line.size)
    order = order[-width:]
    take = lambda x: jnp.pad(x.reshape(-1)[order], (missing, 0))
    return Shown(
        jnp.where(take(shown), take(tokens), separator),
        take(is_row).sum(dtype=jnp.float32),
        take(labels).sum(dtype=jnp.float32),
    )


def is_shown(rows: Rows, line: jax.Array, *, separator: jax.Array, dropped: jax.Array) -> jax.Array:
    """Returns whether each row `[n]` is contained in a line `[W]` completely.

    Args:
      rows: "tokens" and "loss_mask", `[n, L]`.
      line: int32 `[W]`, from `lay_out`.
      separator: as in `lay_out`.
      dropped: as in `lay_out`.
    """
    tokens, shown, _ = _with_separators(rows, separator, dropped)
    order = jnp.argsort(shown, axis=1, stable=True)  # shown tokens to the right
    tokens, shown = (jnp.take_along_axis(x, order, axis=1) for x in (tokens, shown))
    length = tokens.shape[1]
    padded = jnp.pad(line, (length - 1, 0), constant_values=-1)
    windows = padded[jnp.arange(line.shape[0])[:, None] + jnp.arange(length)[None]]  # [W, L + 1]
    same = (windows[None] == tokens[:, None]) | ~shown[:, None]  # [n, W, L + 1]
    return same.all(axis=2).any(axis=1) & shown.any(axis=1)


def sides(tokens: jax.Array, learned: jax.Array, dropped: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns which tokens of rows are the question, and which the last answer; bool `[n, L]`.

    Args:
      tokens: int32 `[n, L]`.
      learned: bool `[n, L]`, the tokens of answers; a row without any is padding.
      dropped: int32 `[D]`, tokens that are no part of an answer, such as eos.
    """
    place = jnp.arange(tokens.shape[1])[None]
    begins = learned & ~jnp.pad(learned[:, :-1], ((0, 0), (1, 0)))
    last = jnp.max(jnp.where(begins, place, -1), axis=1, keepdims=True)
    kept = (tokens[..., None] != jnp.asarray(dropped, jnp.int32)[None, None]).all(axis=-1)
    answer = learned & kept & (place >= last)
    return (place < last) & answer.any(axis=1, keepdims=True), answer


def _fits(shown: jax.Array, width: int) -> jax.Array:
    """Returns which rows `[n]` are among the last that fit into a line of `width`, each whole."""
    sizes = shown.sum(axis=1)
    sizes = jnp.where(sizes <= width, sizes, 0)
    from_here = jnp.cumsum(sizes[::-1])[::-1]
    return (sizes > 0) & (from_here <= width)


def _with_separators(rows, separator, dropped):
    """Returns tokens, which of them are shown, and which begin a response; each `[n, L + 1]`."""
    tokens, response = jnp.asarray(rows["tokens"]), jnp.asarray(rows["loss_mask"], bool)
    rest = jnp.cumsum(response[:, ::-1], axis=1)[:, ::-1] > 0  # up to the last response token
    shown = rest & (tokens[..., None] != jnp.asarray(dropped, jnp.int32)[None, None]).all(axis=-1)
    first = response & (jnp.cumsum(response, axis=1) == 1)
    ends = response.any(axis=1, keepdims=True)
    columns = jnp.broadcast_to(jnp.asarray(separator, jnp.int32), ends.shape)
    return (
        jnp.concatenate([tokens, columns], axis=1),
        jnp.concatenate([shown, ends], axis=1),
        jnp.concatenate([first & shown, jnp.zeros_like(ends)], axis=1),
    )
