"""Synthetic rows: pairs of rows with one answer, crossed token by token."""

import jax
import jax.numpy as jnp


def cross_rows(
    tokens: jax.Array, question: jax.Array, answer: jax.Array, key: jax.Array, *, num: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns new rows, each of the tokens of two rows: at every place that of one or the other.

    The two have the same answer and questions of the same length, so that what both have in
    common, such as a template, stays. A new row that equals one of the given ones is left out, and
    so is one without a second parent: both its masks are then False.

    Args:
      tokens: int32 `[n, L]`.
      question: bool `[n, L]`, the tokens of questions, from the first place on.
      answer: bool `[n, L]`, the tokens of answers; a row without any is padding.
      key: a PRNG key.
      num: M, number of rows to make.

    Returns:
      Tokens, questions and answers of the new rows, `[M, L]` each.
    """
    first_key, second_key, side_key = jax.random.split(key, 3)
    is_row = answer.any(axis=1)
    first = _draw(jnp.broadcast_to(is_row[None], (num, len(is_row))), first_key)
    fits = is_row[None] & (jnp.arange(len(is_row))[None] != first[:, None])
    for mask in (question, answer):
        fits &= (mask[first][:, None] == mask[None]).all(axis=2)
    same = (tokens[first][:, None] == tokens[None]) | ~answer[None]
    fits &= same.all(axis=2)
    second = _draw(fits, second_key)
    side = jax.random.bernoulli(side_key, shape=(num, tokens.shape[1]))
    made = jnp.where(side, tokens[first], tokens[second])
    known = ((made[:, None] == tokens[None]) | ~question[None]).all(axis=2) & is_row[None]
    kept = (fits.any(axis=1) & ~known.any(axis=1))[:, None]
    return made, question[first] & kept, answer[first] & kept


def _draw(allowed: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the place of one of the allowed rows of `[M, n]`, any if none is."""
    rank = jax.random.uniform(key, allowed.shape) + ~allowed
    return jnp.argmin(rank, axis=1)
