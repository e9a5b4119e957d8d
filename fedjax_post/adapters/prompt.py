"""Prompts as trainable trees: a few embeddings, or tokens, that every row is read with.

Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021,
arXiv:2104.08691, started from vocabulary tokens (section 3.2). Where a prompt stands in a
row: `model/prompted.py`. A soft prompt is
P x D numbers, whatever the depth of the model.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fedjax_post.model.views import LanguageModel

PyTree = Any


def add_soft_prompt(model: LanguageModel, key: Array, *, length: int) -> PyTree:
    """Returns a soft prompt to be trained: the embeddings of random tokens.

    Args:
      model: the frozen model, open to EMBEDDINGS or more.
      key: for the tokens, each of the vocabulary as likely as any other.
      length: P, tokens.

    Returns:
      `{"prompt": {"embeddings": float32 [P, D]}}`.

    Raises:
      ValueError: if the length is below 1, or leaves no room in the model's context.
    """
    limit = model.config.max_positions
    if not 1 <= length < limit:
        raise ValueError(
            f"`prompt_length` must be at least 1 and below the model's context of {limit}, "
            f"got {length}"
        )
    tokens = jax.random.randint(key, (1, length), 0, model.config.vocab_size, jnp.int32)
    return {"prompt": {"embeddings": model.embed({}, tokens)[0].astype(jnp.float32)}}


def text_prompt(token_ids: Sequence[int]) -> PyTree:
    """Returns a discrete prompt, `{"prompt": {"tokens": int32 [P]}}`.

    Raises:
      ValueError: if it is not a list of token ids, none below 0.
    """
    tokens = jnp.asarray(token_ids, jnp.int32)
    is_known = not isinstance(tokens, jax.core.Tracer)
    if tokens.ndim != 1 or (is_known and (tokens < 0).any()):
        raise ValueError(f"a prompt is a list of token ids from 0 on, got {token_ids}")
    return {"prompt": {"tokens": tokens}}
