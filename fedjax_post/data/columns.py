"""Which column of a data set plays which role, found by its usual names.

| column | what it does to a row |
| --- | --- |
| a role below | it is used |
| named in a format string | it is used there |
| one of `REFUSED`, which changes what a row means | ValueError where it is not empty |
| any other | it is left out, and named in the report |
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Columns(NamedTuple):
    """Which column of the data plays which role; None is found by its usual names."""

    prompt: str | None = None  # the instruction or question, or the turns before the response
    response: str | None = None  # what the model is to say, or the turns that it is to learn
    context: str | None = None  # further input to the instruction; may be empty in a row
    messages: str | None = None  # a whole chat, in place of prompt and response
    label: str | None = None  # what `dirichlet` skews
    client: str | None = None  # who holds the row
    system: str | None = None  # the system's turn; may be empty in a row
    history: str | None = None  # turns before the prompt, as [question, answer]; may be empty
    tools: str | None = None  # functions that the model may call; may be empty in a row


# Most particular first: `input` is a context beside an `instruction`, else a prompt.
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
}
_ORDER = ("client", "label", "system", "history", "tools", "messages", "prompt", "context")

# What other programs read in such columns changes the text, or whether it is to be learned.
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
    "kto_tag": "keep the rows that are to be learned, and remove the column",
}

# Whose numbers and truth values are not text: kept as JSON text, wherever they stand in a row.
STRUCTURES = ("tools", "tool_calls", "function_call")


def find_columns(names: Sequence[str], wanted: Columns = Columns()) -> Columns:  # noqa: B008
    """Returns the column of each role, as wanted or by its usual name.

    Args:
      names: the columns that there are.
      wanted: columns chosen by name; they must exist.

    Returns:
      Columns in which either `messages` or both `prompt` and `response` are set; the
      other roles are None where there is no such column.

    Raises:
      ValueError: for a wanted column that does not exist, and if neither a chat nor a
        prompt with a response is found. Names the role and the columns that there are.
    """
    found = match_columns(names, wanted)
    if wanted.messages or (found.messages and not (wanted.prompt or wanted.response)):
        return found._replace(prompt=None, response=None, context=None)
    for role in ("prompt", "response"):
        if getattr(found, role) is None:
            raise ValueError(
                f"no {role} column was found ({listed(USUAL_NAMES[role])}); "
                f"there are {listed(names)}: choose one by `{role}_column`"
            )
    return found._replace(messages=None)


def match_columns(names: Sequence[str], wanted: Columns) -> Columns:
    """Returns the column of each role where there is one, however they go together.

    Raises:
      ValueError: for a wanted column that does not exist.
    """
    for role, name in wanted._asdict().items():
        if name is not None and name not in names:
            raise ValueError(f"{role}_column={name}: no such column; there are {listed(names)}")
    found = wanted
    for role in (*_ORDER, "response"):
        if getattr(found, role) is None:
            free = [name for name in USUAL_NAMES[role] if name in names and name not in found]
            found = found._replace(**{role: free[0] if free else None})
    return found


def is_empty(value: Any) -> bool:
    """Whether a cell says nothing: null, blank, or a list or object of nothing else."""
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    if isinstance(value, list):
        return all(map(is_empty, value))
    return value is None or (isinstance(value, str) and not value.strip())


def refuse_unread(row: dict[str, Any], used: Iterable[str | None]) -> None:
    """Refuses a row with content in a column that would change what it means.

    Raises:
      ValueError: naming the column.
    """
    for name, remedy in REFUSED.items():
        if name in row and name not in used and not is_empty(row[name]):
            raise ValueError(
                f"column {name} changes what the row means and is not read; {remedy}, or remove "
                "the column"
            )


def listed(names: Any) -> str:
    """Returns names in order, for messages."""
    return ", ".join(sorted(map(str, names))) or "none"
