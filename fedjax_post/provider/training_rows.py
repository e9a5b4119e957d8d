"""Rows of a file for fine-tuning, in the OpenAI formats: JSON lines of chats or of completions.

| a line | what is learned |
| --- | --- |
| `{"messages": [{role, content, weight = 1}]}` | each answer of the assistant of `weight` 1 |
| `{"prompt": ..., "completion": ...}` | the completion |

A file holds lines of one kind. What a line has beside these is refused by name, never passed over.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_post.provider import formats
from fedjax_post.provider.codec import encode_after, encode_prompt
from fedjax_post.provider.refusals import Refusal

MOST_LINES = 50_000
_CODE = "invalid_file_format"


class Learned(NamedTuple):
    """A row of tokens, of which the last ones are learned."""

    ids: list[int]
    prompt_length: int


def read_lines(content: bytes) -> list[dict[str, Any]]:
    """Returns the rows of a file after checking each.

    Raises:
      Refusal: 400, naming the line, counted from 1.
    """
    lines = [line for line in content.splitlines() if line.strip()]
    if not 0 < len(lines) <= MOST_LINES:
        what = f"A file needs 1 to {MOST_LINES} lines of JSON; this one has {len(lines)}."
        raise Refusal(400, what, code=_CODE, param="file")
    rows = [_read_line(line, number) for number, line in enumerate(lines, 1)]
    kinds = ["messages" in row for row in rows]
    if any(kinds) != all(kinds):
        number = kinds.index(not kinds[0]) + 1
        raise _wrong(number, "is of another kind than line 1; give chats or completions alone")
    return rows


def texts_of(row: Mapping[str, Any]) -> str:
    """Returns the texts of a row, one after another: what its reader sees."""
    if "messages" in row:
        return "".join(message["content"] for message in row["messages"])
    return row["prompt"] + row["completion"]


def learned(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, *, name: str, context: int
) -> list[Learned]:
    """Returns the rows of tokens that a file teaches, see `tokens_of`.

    Args:
      rows: as returned by `read_lines`.
      tokenizer: of the model.
      name: of the file, for refusals.
      context: maximum number of tokens of a row.

    Raises:
      Refusal: 400, naming a line that the model cannot learn.
    """
    found = []
    for number, row in enumerate(rows, 1):
        try:
            made = tokens_of(row, tokenizer, formats.renderer(tokenizer))
        except Exception as error:  # templates are programs and may raise any error
            raise _unusable(
                f"Line {number} of {name} does not suit this model: {error!s:.200}."
            ) from None
        for one in made:
            if not 0 < one.prompt_length < len(one.ids) <= context:
                what = f"{one.prompt_length} tokens before its answer and {len(one.ids)} in all"
                raise _unusable(
                    f"Line {number} of {name} has {what}; at least one must come before an answer, "
                    f"and this model's context is {context}."
                )
        found += made
    return found


def tokens_of(row: Mapping[str, Any], tokenizer: Any, render_fn: formats.Render) -> list[Learned]:
    """Returns the rows of tokens that a row teaches, one for each answer.

    A prompt has the tokens that the same question has when it is asked, and an answer ends with
    the end-of-sequence token.

    Args:
      row: as returned by `read_lines`.
      tokenizer: of the model.
      render_fn: messages -> the prompt of the answer after them.

    Raises:
      ValueError: if the chat template does not render the row.
    """
    end = tokenizer.eos_token_id
    found = []
    for prompt, answer in _pairs(row, tokenizer, render_fn):
        question, ids = encode_prompt(tokenizer, prompt), encode_after(tokenizer, answer)
        ids = ids[: ids.index(end)] if end in ids else ids
        found.append(Learned([*question, *ids, end], len(question)))
    return found


def _pairs(row: Mapping[str, Any], tokenizer: Any, render_fn: formats.Render):
    """Returns pairs of a prompt and the text of the answer to it."""
    if "messages" not in row:
        return [(row["prompt"], row["completion"])]
    messages = [{name: m[name] for name in ("role", "content")} for m in row["messages"]]
    pairs = []
    for i, message in enumerate(row["messages"]):
        if i and message["role"] == "assistant" and message["weight"]:
            prompt = render_fn(messages[:i])
            whole = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
            if not whole.startswith(prompt):
                raise ValueError("the chat template changes a prompt once it is answered")
            pairs.append((prompt, whole[len(prompt) :]))
    return pairs


def _read_line(line: bytes, number: int) -> dict[str, Any]:
    try:
        row = formats.read_body(line)
        if "messages" in row:
            return _read_chat(row)
        formats.refuse_others(row, {"prompt", "completion"})
        for name in ("prompt", "completion"):
            if not isinstance(row.get(name), str) or not row[name]:
                raise formats.invalid(name, "must be a text, not empty")
        return row
    except Refusal as refusal:
        raise _wrong(number, str(refusal)) from None


def _read_chat(row: Mapping[str, Any]) -> dict[str, Any]:
    formats.refuse_others(row, {"messages"})
    given = row["messages"]
    if not isinstance(given, list) or not 1 < len(given) <= formats.MOST_PROMPTS:
        raise formats.invalid("messages", "must be a list of at least two {role, content}")
    messages = []
    for i, message in enumerate(given):
        weight = message.get("weight") if isinstance(message, dict) else None
        if weight is not None and (message.get("role") != "assistant" or weight not in (0, 1)):
            raise formats.invalid(f"messages[{i}].weight", "must be 0 or 1, of an assistant")
        plain = {**message, "weight": None} if isinstance(message, dict) else message
        read: dict[str, Any] = dict(formats.read_message(plain, f"messages[{i}]"))
        messages.append(read | {"weight": 1 if weight is None else weight})
    if not any(m["role"] == "assistant" and m["weight"] for m in messages[1:]):
        raise formats.invalid("messages", "must have an answer of the assistant to learn")
    return {"messages": messages}


def _unusable(what: str) -> Refusal:
    return Refusal(400, what, code=_CODE, param="training_file")


def _wrong(number: int, what: str) -> Refusal:
    return Refusal(400, f"Line {number}: {what}", code=_CODE, param="file")
