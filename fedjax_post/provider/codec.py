"""Token ids to text and back, as a closed model's client must do it.

A closed model takes text. What an algorithm holds in tokens is decoded before it leaves, and
the text that comes back is encoded again. Both directions mind the context: many tokenizers
put a space before a text and take it away again, so that the text of an answer is what it adds
to the prompt's.

A text has many tokenisations and comes back in one: the tokens of an answer are those of the
local model wherever that wrote the tokenizer's own spelling, and a prompt reaches the provider
in the spelling of the provider's tokenizer.
"""

from collections.abc import Iterable, Sequence
from typing import Any


def head_of(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer begins every text with, if any."""
    ids = tokenizer("")["input_ids"]
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def is_headed(tokenizer: Any, ids: Sequence[int]) -> bool:
    """Whether ids begin as the tokenizer begins a text."""
    head = head_of(tokenizer)
    return bool(head) and list(ids[:1]) == head


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """The ids of a prompt; a beginning of sequence that the text spells out is not doubled."""
    head = head_of(tokenizer)
    spelled = bool(head) and text.startswith(tokenizer.bos_token)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids if spelled else head + ids


def decode_prompt(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of a prompt, which the provider's tokenizer gives its own beginning."""
    return _decode(tokenizer, list(ids)[is_headed(tokenizer, ids) :])


def decode_after(tokenizer: Any, before: Sequence[int], ids: Sequence[int]) -> str:
    """The text that `ids` add to that of the ids `before` them."""
    start = _decode(tokenizer, list(before))
    whole = _decode(tokenizer, [*before, *ids])
    return whole[len(start) :] if whole.startswith(start) else _decode(tokenizer, list(ids))


def encode_after(tokenizer: Any, text: str) -> list[int]:
    """The ids that say `text` behind a prompt."""
    for before in ("\n", "a"):
        start, whole = (_encode(tokenizer, part) for part in (before, before + text))
        if whole[: len(start)] == start:
            return whole[len(start) :]
    return _encode(tokenizer, text)


def token_text(tokenizer: Any, token: int) -> str:
    """How a provider writes one token of an answer: by what it adds to a text.

    A piece of a character has no text, and is written as `bytes:` and the tokenizer's own name.
    """
    return token_texts(tokenizer, [token])[0]


def token_texts(tokenizer: Any, tokens: Iterable[int]) -> list[str]:
    """Many tokens' texts, see `token_text`."""
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
