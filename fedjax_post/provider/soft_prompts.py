"""Soft prompts in requests: an extension of the OpenAI completions format by this project.

A request may have the field `fedjax_post_soft_prompt`: the base64 form of P x D little-endian
float32 numbers, P embeddings that the model reads before each prompt, after its first token if that
begins the text. The answer has the same field, true. A provider that does not know the extension
refuses the field or ignores it; an answer without it is an error.
"""

import base64
import binascii
from typing import Any

import numpy as np

FIELD = "fedjax_post_soft_prompt"
_NUMBER = np.dtype("<f4")


def encode(embeddings: np.ndarray) -> str:
    """Returns the text of a soft prompt `[P, D]`; float32 keeps every bit."""
    return base64.b64encode(np.asarray(embeddings, _NUMBER).tobytes()).decode()


def decode(text: str, *, width: int) -> np.ndarray:
    """Returns a soft prompt, float32 `[P, D]`.

    Args:
      text: from `encode`.
      width: D of the model.

    Raises:
      ValueError: if it is not such a text, empty, of another width, or not finite.

    >>> decode(encode(np.ones((2, 3))), width=3).shape
    (2, 3)
    """
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise ValueError("must be base64") from None
    size = _NUMBER.itemsize * width
    if not content or len(content) % size:
        raise ValueError(f"must hold rows of {width} float32 numbers, has {len(content)} bytes")
    found = np.frombuffer(content, _NUMBER).reshape(-1, width)
    if not np.isfinite(found).all():
        raise ValueError("must be finite")
    return found


def is_confirmed(answer: Any) -> bool:
    """Returns whether an answer says that its soft prompt was read."""
    return isinstance(answer, dict) and answer.get(FIELD) is True
