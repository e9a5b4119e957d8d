"""Turns rows into tokens, with an exact boundary between the prompt and what is learned.

| rows are written by | tokens |
| --- | --- |
| the chat template | as `apply_chat_template(tokenize=True)` gives them for the same turns |
| a form | those of the prompt and those of the response, tokenised separately |

The text of a chat is tokenised as a whole. A token that holds characters of an answer is learned,
even if it spans the boundary. The prompt then differs from that of a server, which ends at the
boundary, and the row is counted (`unlike`). In a form no token spans the boundary.

What is learned ends with the end-of-sequence token: the one that the template puts after the
answer, otherwise one that is added. Control tokens that are spelled in a row are read as text, see
`data.text`, and the row is counted (`spelled`).
"""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_post.data.chats import Row, read_chat
from fedjax_post.data.columns import Columns, refuse_unread
from fedjax_post.data.rendering import Rendered, render
from fedjax_post.data.template import fill, fill_response, is_chat_template, read_form
from fedjax_post.data.text import ControlTokens, Encoding, is_marked


class Tokens(NamedTuple):
    """A row of tokens."""

    signed: np.ndarray  # `[length]` int32: a response token t is stored as `~t`
    prompt_length: int  # tokens before the last response
    first_response: int  # tokens before the first
    spelled: bool  # the text of the row spells control tokens
    unlike: bool  # a server would write the prompt with other tokens


def used_columns(columns: Columns, *, template: str, against: str | None) -> set[str]:
    """Returns the names of the columns that are used for the rows.

    Args:
      columns: the column of each role.
      template: see `is_chat_template`; a format string may name further columns.
      against: the column of the other response, for preference pairs; None: no pairs.
    """
    form = read_form(template)
    named = set() if form is None else set(form.names)
    return {name for name in (*columns, against) if name} | named


def make_encoder(
    tokenizer: Any, columns: Columns, *, template: str = "auto", against: str | None = None
) -> Callable:
    """Returns a function from a batch of rows to tokens, for `datasets.map`.

    Args:
      tokenizer: a Hugging Face tokenizer; its chat template and special tokens are used.
      columns: as `find_columns` returns them; for preference pairs, `response` is one of the two.
      template: see `is_chat_template`.
      against: the column of the other response, for preference pairs; None: no pairs.

    Returns:
      `encode(batch, numbers) -> dict`, where `batch` maps columns to lists and `numbers`
      are the numbers of the rows, for messages. A chat may become several rows. The dict has
      `tokens`, `prompt_length`, `first_response`, `spelled` and `unlike` as in `Tokens`;
      `origin`, the place in the batch of each row's source; and the columns of labels and clients.

    Raises:
      ValueError: as `is_chat_template`, and for a tokenizer without an end-of-sequence token. The
        returned function raises it for rows that cannot be read, with row number and column.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no end-of-sequence token to end a response with; use one that has"
        )
    make = _make_chats if is_chat_template(tokenizer, columns, template) else _make_forms
    encode_rows = make(tokenizer, columns, template=template, against=against)
    used = used_columns(columns, template=template, against=against)
    carried = [name for name in (columns.label, columns.client) if name is not None]

    def encode(batch: Mapping[str, list], numbers: Sequence[int]) -> dict[str, list]:
        rows = [{name: values[i] for name, values in batch.items()} for i in range(len(numbers))]
        for number, row in zip(numbers, rows, strict=True):
            _call_on_row(number, refuse_unread, row, used)
        made = encode_rows(rows, numbers)
        origins = list(itertools.chain.from_iterable([i] * len(m) for i, m in enumerate(made)))
        flat = list(itertools.chain.from_iterable(made))
        return {
            "tokens": [tokens.signed for tokens in flat],
            **{name: [getattr(tokens, name) for tokens in flat] for name in Tokens._fields[1:]},
            "origin": origins,
            **{name: [rows[i][name] for i in origins] for name in carried},
        }

    return encode


def _call_on_row(number: int, fn: Callable, *args: Any, **options: Any) -> Any:
    """Calls a function on a row; a ValueError gets the number of the row."""
    try:
        return fn(*args, **options)
    except ValueError as error:
        raise ValueError(f"row {number}: {error}") from None


def _make_forms(
    tokenizer: Any, columns: Columns, *, template: str, against: str | None
) -> Callable:
    """Returns a function from rows to tokens that encodes prompts and responses separately."""
    form, control, head = read_form(template), ControlTokens(tokenizer), _head(tokenizer)
    end = tokenizer.eos_token_id
    del against  # separate responses need no common beginning

    def mark(text: str) -> str:
        return control.mark(text)[0]

    def encode_rows(rows: list[Row], numbers: Sequence[int]) -> list[list[Tokens]]:
        texts = []
        for number, row in zip(numbers, rows, strict=True):
            texts.append(_call_on_row(number, fill, form, row, columns, mark=mark))
            response = _call_on_row(number, fill_response, row, columns, tokenizer.eos_token)
            texts.append(_call_on_row(number, mark, response))
        named = [number for number in numbers for _ in range(2)]
        pieces = [encoding.ids for encoding in _encode_texts(tokenizer, control, texts, named)]
        made = []
        for i, (prompt, response) in enumerate(zip(pieces[::2], pieces[1::2], strict=True)):
            prompt_ids = np.asarray([*head, *prompt], np.int32)
            ends = response[-1:] == [end]
            answer = np.asarray(response if ends else [*response, end], np.int32)
            signed, spelled = (
                np.concatenate([prompt_ids, ~answer]),
                any(map(is_marked, texts[2 * i : 2 * i + 2])),
            )
            made.append([Tokens(signed, len(prompt_ids), len(prompt_ids), spelled, False)])
        return made

    return encode_rows


def _make_chats(
    tokenizer: Any, columns: Columns, *, template: str, against: str | None
) -> Callable:
    """Returns a function from rows to the tokens of their chats, one or more rows each."""
    control, end = ControlTokens(tokenizer), tokenizer.eos_token_id
    added = set(tokenizer.added_tokens_decoder)
    column = columns.response or columns.messages
    del template

    def read(row: Row) -> list[Rendered]:
        chat = read_chat(row, columns, against=against)
        messages, _ = control.mark(chat.messages)
        tools, _ = control.mark(chat.tools)
        try:
            rendered = render(tokenizer, chat._replace(messages=messages, tools=tools))
        except ValueError as error:
            raise ValueError(f"column {column}: {error}") from None
        if against is not None and len(rendered) > 1:
            raise ValueError(
                f"column {column} holds {len(chat.answers)} answers that the chat template renders "
                "as separate rows, but each side of a pair must be one text; keep only the first "
                "answer"
            )
        return rendered

    def encode_rows(rows: list[Row], numbers: Sequence[int]) -> list[list[Tokens]]:
        chats = [_call_on_row(number, read, row) for number, row in zip(numbers, rows, strict=True)]
        flat = list(itertools.chain.from_iterable(chats))
        named = [n for n, chat in zip(numbers, chats, strict=True) for _ in chat]
        texts = [rendered.text for rendered in flat]
        encodings = _encode_texts(tokenizer, control, texts, named, offsets=True)
        pairs = zip(encodings, flat, strict=True)
        made = [_sign(encoding, rendered, end) for encoding, rendered in pairs]
        tails = [
            _find_tail(encoding.ids, tokens.prompt_length, encoding.offsets, added)
            for encoding, tokens in zip(encodings, made, strict=True)
        ]
        served = [rendered.prompt[start:] for rendered, (_, start) in zip(flat, tails, strict=True)]
        theirs = _encode_texts(tokenizer, control, served, named)
        rest = iter(
            tokens._replace(unlike=encoding.ids[first : tokens.prompt_length] != other.ids)
            for tokens, encoding, other, (first, _) in zip(
                made, encodings, theirs, tails, strict=True
            )
        )
        return [[next(rest) for _ in chat] for chat in chats]

    return encode_rows


def _sign(encoding: Encoding, rendered: Rendered, end: int) -> Tokens:
    """Returns the tokens of a chat, cut after the last answer, which ends with `end`."""
    ids, offsets = encoding
    if not ids:
        raise ValueError(
            "the tokenizer makes no tokens of the chat; its files are damaged, so copy those of "
            "the model again"
        )
    signed, places, at = np.asarray([*ids, end], np.int32), [], 0
    for first, last in rendered.spans:
        start = max(at, bisect_right(offsets, first, key=lambda pair: pair[1]))
        at = max(start, bisect_left(offsets, last, key=lambda pair: pair[0]))
        signed[start:at] = ~signed[start:at]
        places.append(start)
    if ids[at - 1] != end:
        signed[at], at = ~end, at + 1
    spelled = is_marked(rendered.text)
    return Tokens(signed[:at], places[rendered.last], places[0], spelled, False)


def _find_tail(
    ids: list[int], length: int, offsets: list[tuple[int, int]], added: set[int]
) -> tuple[int, int]:
    """Returns the place of a prompt's last added token and its first character; 0, 0 if none.

    An added token splits a text: what follows it is tokenised independently of what precedes it.
    """
    at = next((i for i in range(length - 1, -1, -1) if ids[i] in added), 0)
    return at, offsets[at][0] if at else 0


def _encode_texts(
    tokenizer: Any,
    control: ControlTokens,
    texts: list[str],
    numbers: Sequence[int],
    *,
    offsets: bool = False,
) -> list[Encoding]:
    """Returns the tokens of texts, each distinct text once; marked texts are read in pieces."""
    unique = dict.fromkeys(text for text in texts if not is_marked(text))
    made: dict[str, Encoding] = {}
    if unique:
        found = tokenizer(
            list(unique),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=offsets,
            verbose=False,
        )
        places = found["offset_mapping"] if offsets else itertools.repeat([])
        pairs = zip(found["input_ids"], places, strict=False)
        made = {text: Encoding(*pair) for text, pair in zip(unique, pairs, strict=True)}
    return [
        made[text] if text in made else _call_on_row(number, control.encode, text)
        for number, text in zip(numbers, texts, strict=True)
    ]


def _head(tokenizer: Any) -> list[int]:
    """Returns the tokens that the tokenizer puts before every text: bos, or none."""
    ids = tokenizer("")["input_ids"]
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []
