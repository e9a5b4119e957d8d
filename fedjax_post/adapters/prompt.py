"""Prompts as trainable trees: a few embeddings, or tokens, that are inserted into every row.

Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021,
arXiv:2104.08691, initialised with vocabulary tokens (section 3.2). `model/prompted.py` states
where in a row a prompt is inserted. A soft prompt has P x D numbers, whatever the depth of the
model.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fedjax_post.model.views import LanguageModel

PyTree = Any


def add_soft_prompt(model: LanguageModel, key: Array, *, length: int) -> PyTree:
    """Returns a soft prompt to be trained, initialised with the embeddings of random tokens.

    >>> import jax
    >>> from fedjax_post.adapters.prompt import add_soft_prompt
    >>> from fedjax_post.testing.models import tiny_model
    >>> add_soft_prompt(tiny_model(), jax.random.key(0), length=5)["prompt"]["embeddings"].shape
    (5, 16)

    Args:
      model: the frozen model, with access EMBEDDINGS or more.
      key: PRNG key for the tokens, which are uniform over the vocabulary.
      length: P, the number of tokens.

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
      ValueError: if `token_ids` is not a list of token ids of at least 0.
    """
    tokens = jnp.asarray(token_ids, jnp.int32)
    is_known = not isinstance(tokens, jax.core.Tracer)
    if tokens.ndim != 1 or (is_known and (tokens < 0).any()):
        raise ValueError(f"a prompt must be a list of token ids from 0 on, got {token_ids}")
    return {"prompt": {"tokens": tokens}}
