"""Conversion of token ids to text and back, for the client of a closed model.

A closed model takes text. An algorithm's tokens are decoded before they are sent, and the text of
the answer is encoded again. Both directions consider the context: many tokenizers add a space
before a text and remove it when decoding, so the text of an answer is what it adds to the text of
the prompt.

A text has many tokenisations, and encoding returns only one of them. The tokens of an answer equal
those of the local model if that model generated the tokenizer's own tokenisation. The provider
tokenises a prompt with its own tokenizer.
"""

from collections.abc import Iterable, Sequence
from typing import Any


def head_of(tokenizer: Any) -> list[int]:
    """Returns the ids with which the tokenizer begins every text: none or one."""
    ids = tokenizer("")["input_ids"]
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def is_headed(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Returns whether ids begin with the tokenizer's token for the beginning of a text."""
    head = head_of(tokenizer)
    return bool(head) and list(ids[:1]) == head


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Returns the ids of a prompt; a beginning-of-sequence token in the text is not doubled."""
    head = head_of(tokenizer)
    spelled = bool(head) and text.startswith(tokenizer.bos_token)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids if spelled else head + ids


def decode_prompt(tokenizer: Any, ids: Sequence[int]) -> str:
    """Returns the text of a prompt, without the beginning-of-sequence token."""
    return _decode(tokenizer, list(ids)[is_headed(tokenizer, ids) :])


def decode_after(tokenizer: Any, before: Sequence[int], ids: Sequence[int]) -> str:
    """Returns the text that ids add to the text before them.

    Args:
      tokenizer: a Hugging Face tokenizer.
      before: ids of the text before.
      ids: of the text to return.
    """
    start = _decode(tokenizer, list(before))
    whole = _decode(tokenizer, [*before, *ids])
    return whole[len(start) :] if whole.startswith(start) else _decode(tokenizer, list(ids))


def encode_after(tokenizer: Any, text: str) -> list[int]:
    """Returns the ids of `text` after a prompt."""
    for before in ("\n", "a"):
        start, whole = (_encode(tokenizer, part) for part in (before, before + text))
        if whole[: len(start)] == start:
            return whole[len(start) :]
    return _encode(tokenizer, text)


def token_text(tokenizer: Any, token: int) -> str:
    """Returns the name of a token in a provider's answers: the text that it adds.

    A token that is part of a character has no text, and is named `bytes:` and the tokenizer's own
    name for it.
    """
    return token_texts(tokenizer, [token])[0]


def token_texts(tokenizer: Any, tokens: Iterable[int]) -> list[str]:
    """Returns the names of many tokens, see `token_text`."""
    tokens, before = list(tokens), _encode(tokenizer, "\n")
    start = _decode(tokenizer, before)
    wholes = tokenizer.batch_decode(
        [[*before, token] for token in tokens], clean_up_tokenization_spaces=False
    )
    return [
        f"bytes:{tokenizer.convert_ids_to_tokens(token)}" if "\ufffd" in whole
        else whole.removeprefix(start)
        for token, whole in zip(tokens, wholes, strict=True)
    ]  # fmt: skip


def _encode(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)
