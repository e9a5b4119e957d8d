"""Finds which column of a data set has which role, by the columns' usual names.

| column | use |
| --- | --- |
| has a role, see `Columns` | used in that role |
| is named in a format string | used there |
| is one of `REFUSED`, which change the meaning of a row | ValueError where it is not empty |
| any other | left out, and listed in the report |
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Columns(NamedTuple):
    """The column of each role; None: the column is found by its usual names."""

    prompt: str | None = None  # the instruction or question, or the turns before the response
    response: str | None = None  # the text or the turns that the model learns
    context: str | None = None  # further input to the instruction; may be empty in a row
    messages: str | None = None  # a whole chat, instead of prompt and response
    label: str | None = None  # the label that `dirichlet` and `shards` skew
    client: str | None = None  # the client that holds the row
    system: str | None = None  # the system turn; may be empty in a row
    history: str | None = None  # turns before the prompt, as [question, answer]; may be empty
    tools: str | None = None  # functions that the model may call; may be empty in a row
    language: str | None = None  # the language that the rule `language` groups by


# Specific names first: `input` is the context if there is an `instruction`, else the prompt.
USUAL_NAMES = {
    "prompt": ("instruction", "prompt", "question", "input", "inputs", "sentence", "text"),
    "response": ("response", "output", "completion", "answer", "target", "targets"),
    "context": ("context", "input"),
    "messages": ("messages", "conversations"),
    "label": ("label", "category", "task"),
    "client": ("client", "client_id"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "tools": ("tools",),
    "language": ("language", "language_code", "lang"),
}
_ORDER = (
    "client",
    "label",
    "language",
    "system",
    "history",
    "tools",
    "messages",
    "prompt",
    "context",
)

# Other programs read these columns, and they change the text or whether it is learned.
REFUSED = {
    "images": "only text is read",
    "image": "only text is read",
    "audios": "only text is read",
    "audio": "only text is read",
    "videos": "only text is read",
    "video": "only text is read",
    "documents": "write them into the prompt, or into `context`",
    "functions": "name the column `tools`",
    "chat_template_kwargs": "set them in the chat template itself",
    "tool_calls": "write the calls into a turn of a chat",
    "reasoning": "write it into the answer's turn of a chat, as `reasoning_content`",
    "reasoning_content": "write it into the answer's turn of a chat",
    "weight": "keep the rows that are to be learned",
    "train": "keep the rows that are to be learned",
    "kto_tag": "keep the rows that are to be learned, and remove the column",
}

# Cells of `REFUSED` columns with which a row means the same as without the column
_HARMLESS = {"weight": ("1", "1.0"), "train": ("1", "true", "True")}

# In these, numbers and booleans are not text, so they are kept as JSON text wherever they occur.
STRUCTURES = ("tools", "tool_calls", "function_call")
# Keys of a turn that say whether it is learned; of these, truth values are text too.
SWITCHES = ("weight", "train", "training", "loss")


def find_columns(names: Sequence[str], wanted: Columns = Columns()) -> Columns:  # noqa: B008
    """Returns the column of each role: the chosen one, or one with a usual name.

    Args:
      names: all columns of the data set.
      wanted: columns chosen by the user; they must exist.

    Returns:
      Columns in which either `messages` or both `prompt` and `response` are set; other
      roles are None where there is no such column.

    Raises:
      ValueError: for a chosen column that does not exist, and if there is neither a chat nor a
        prompt with a response. The message gives the role and the existing columns.

    Example:
      >>> found = find_columns(["instruction", "input", "output", "speaker"])
      >>> found.prompt, found.context, found.response, found.client
      ('instruction', 'input', 'output', None)
      >>> find_columns(["text", "mood"], Columns(response="mood")).prompt
      'text'
    """
    found = match_columns(names, wanted)
    if wanted.messages or (found.messages and not (wanted.prompt or wanted.response)):
        return found._replace(prompt=None, response=None, context=None)
    for role in ("prompt", "response"):
        if getattr(found, role) is None:
            raise ValueError(
                f"no {role} column was found ({join_names(USUAL_NAMES[role])}); "
                f"there are {join_names(names)}: choose one by `{role}_column`"
            )
    return found._replace(messages=None)


def match_columns(names: Sequence[str], wanted: Columns) -> Columns:
    """Returns the column of each role that has one, without a check of their combination.

    Raises:
      ValueError: for a chosen column that does not exist.
    """
    for role, name in wanted._asdict().items():
        if name is not None and name not in names:
            raise ValueError(f"{role}_column={name}: no such column; there are {join_names(names)}")
    found = wanted
    for role in (*_ORDER, "response"):
        if getattr(found, role) is None:
            free = [name for name in USUAL_NAMES[role] if name in names and name not in found]
            found = found._replace(**{role: free[0] if free else None})
    return found


def is_empty(value: Any) -> bool:
    """Returns whether a cell has no content: null, blank, or a list or object of such values."""
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    if isinstance(value, list):
        return all(map(is_empty, value))
    return value is None or (isinstance(value, str) and not value.strip())


def refuse_unread(row: dict[str, Any], used: Iterable[str | None]) -> None:
    """Raises for a row with content in a column that would change the meaning of the row.

    Raises:
      ValueError: with the name of the column.
    """
    for name, remedy in REFUSED.items():
        if name not in row or name in used or is_empty(row[name]):
            continue
        if str(row[name]).strip() not in _HARMLESS.get(name, ()):
            raise ValueError(
                f"column {name} changes the meaning of the row and is not read; {remedy}, or "
                "remove the column"
            )


def join_names(names: Any) -> str:
    """Returns names in alphabetical order, joined by commas, for messages."""
    return ", ".join(sorted(map(str, names))) or "none"
