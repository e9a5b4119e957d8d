"""Converts the turns of a chat from the formats of data sets to that of chat templates.

A turn is an object with a role (`role` or `from`), a content (`content` or `value`), and perhaps:

| key | use |
| --- | --- |
| `tool_calls`; `function_call`, also as a role | calls, passed to the chat template |
| `tool_call_id`, `name` | passed to the chat template |
| `reasoning_content`, `reasoning`, `thinking` | passed to the chat template |
| `weight`, `train`, `training`, `loss` | whether an answer is learned: 0 or false, 1 or true |
| `id`, `timestamp` and other keys of `_SPARE` | ignored |
| any other key | ValueError, unless it is empty |
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_post.data.columns import SWITCHES, is_empty, join_names
from fedjax_post.data.text import text_of

ROLES = {
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bot", "bing", "bard", "model", "ai"), "assistant"
    ),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
    **dict.fromkeys(
        ("tool", "observation", "function", "function_response", "tool_response", "ipython"), "tool"
    ),
}
REASONING = ("reasoning_content", "reasoning", "thinking")
_CALLS = ("tool_calls", "function_call")
_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")
# These keys describe where a turn comes from, not its text.
_SPARE = (
    *("id", "message_id", "turn_id", "turn_identifier", "conversation_id", "parent_id", "uuid"),
    *("timestamp", "created_at", "time", "date", "lang", "language", "country", "source"),
    *("token_count", "num_tokens", "hashed_ip", "header", "toxic", "redacted"),
)
_KNOWN = {"role", "from", "content", "value", "name", "tool_call_id"}
_KNOWN |= {*REASONING, *_CALLS, *SWITCHES, *_SPARE}


class Turn(NamedTuple):
    """A turn as chat templates read it, and whether the data set wants it learned."""

    message: dict[str, Any]  # role, and content, tool_calls and so on where there are any
    learned: bool  # for an answer; False for every other turn


def is_turn(value: Any) -> bool:
    """Returns whether a cell is a turn, rather than another object."""
    return isinstance(value, dict) and bool(value.keys() & {"role", "from"})


def is_chat(value: Any) -> bool:
    """Returns whether a cell is a list of turns, rather than a text or its parts."""
    return isinstance(value, list) and any(map(is_turn, value))


def read_turns(value: Any, column: str) -> list[Turn]:
    """Returns the turns of a cell.

    Args:
      value: a list of turns; None for no turns.
      column: the name of the column, for messages.

    Raises:
      ValueError: for a cell that is not a list of turns, unknown roles or keys, and contents
        that are not text.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(
            f"column {column} holds a {type(value).__name__}, but a chat is a list of turns; "
            "choose another column"
        )
    return [read_turn(turn, f"{column}, turn {i},") for i, turn in enumerate(value)]


def read_turn(turn: Any, column: str) -> Turn:
    """Returns one turn; see `read_turns`."""
    if not isinstance(turn, dict):
        text_of(turn, column, "a turn is an object with a role and a content")
        raise ValueError(f"column {column} holds no object with a role and a content; write one")
    held = {key: value for key, value in turn.items() if not is_empty(value)}
    unknown = held.keys() - _KNOWN
    role, content = _one_of(turn, ("role", "from"), column), _one_of(
        turn, ("content", "value"), column
    )  # fmt: skip
    if unknown or role is None:
        raise ValueError(
            f"column {column} holds the keys {join_names(held)}; a turn has a role (or from) and a "
            f"content (or value), and may have {join_names(_KNOWN - set(_SPARE))}: rename or "
            f"remove {join_names(unknown) if unknown else 'the others'}"
        )
    kind = ROLES.get(str(role).strip().lower())
    if kind is None:
        raise ValueError(
            f"column {column} has the unknown role {role}; rename it to one of {join_names(ROLES)}"
        )
    text = text_of(content, column, "write its content as text")
    if kind == "call":
        if held.keys() & set(_CALLS):
            raise ValueError(f"column {column} holds calls in two places; keep one")
        held["tool_calls"], text, kind = text, None, "assistant"
    message: dict[str, Any] = {"role": kind}
    if text is not None:
        message["content"] = text
    calls = [call for key in _CALLS if key in held for call in _read_calls(held[key], column)]
    if calls:
        message["tool_calls"] = calls
    elif text is None and kind != "assistant":
        raise ValueError(f"column {column} ({kind}) holds no content; fill it or leave the row out")
    for key in ("name", "tool_call_id", *REASONING):
        if key in held:
            message[key] = text_of(held[key], f"{column} key {key},")
    return Turn(message, kind == "assistant" and _is_learned(held, column))


def read_tools(value: Any, column: str) -> list[dict[str, Any]] | None:
    """Returns the functions of a cell as JSON schemas, or None if there are none.

    Args:
      value: a list of schemas, or JSON text of one; with or without `{"type": "function"}`.
      column: the name of the column, for messages.

    Raises:
      ValueError: for a cell that is not such a list.
    """
    if is_empty(value):
        return None
    found = _parse_json(value, column)
    if isinstance(found, dict):
        found = [found]
    found = [_parse_json(tool, column) for tool in found] if isinstance(found, list) else [None]
    if not all(isinstance(tool, dict) for tool in found):
        raise ValueError(f"column {column} holds no list of JSON schemas of functions; write one")
    tools = [_drop_nulls(tool) for tool in found]
    return [
        tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool}
        for tool in tools
    ] or None


def _one_of(turn: Mapping[str, Any], keys: Sequence[str], column: str) -> Any:
    """Returns the value under one of two keys; None if neither has a value."""
    values = [turn[key] for key in keys if turn.get(key) is not None]
    if len(values) > 1 and values[0] != values[1]:
        raise ValueError(f"column {column} holds both {' and '.join(keys)}; keep one")
    return values[0] if values else None


def _read_calls(value: Any, column: str) -> list[dict[str, Any]]:
    """Returns calls as chat templates expect them: arguments are objects, without nulls."""
    found = _parse_json(value, column)
    calls = []
    for call in found if isinstance(found, list) else [found]:
        call = _drop_nulls(_parse_json(call, column))
        called = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(called, dict) or not isinstance(called.get("name"), str):
            raise ValueError(
                f"column {column} holds a call without the name of a function; write it as "
                '{"name": ..., "arguments": {...}}'
            )
        arguments = _parse_json(called.get("arguments", {}), column)
        function = {**called, "arguments": arguments}
        outer = call if "function" in call else {}
        calls.append({"type": "function", **outer, "function": function})
    return calls


def _parse_json(value: Any, column: str) -> Any:
    """Returns the value of a JSON text; a value that is not text is returned unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"column {column} holds a call or a function that is not JSON ({error}); correct it"
        ) from None


def _drop_nulls(value: Any) -> Any:
    """Returns a structure without nulls, which tables put where objects have different keys."""
    if isinstance(value, dict):
        return {key: _drop_nulls(x) for key, x in value.items() if x is not None}
    return [_drop_nulls(x) for x in value] if isinstance(value, list) else value


def _is_learned(held: Mapping[str, Any], column: str) -> bool:
    """Returns whether an answer is learned, according to its weight."""
    for key in SWITCHES:
        if key in held:
            weight = str(held[key]).strip().lower()
            if weight not in (*_YES, *_NO):
                raise ValueError(f"column {column} has the {key} {weight}; use 0 or 1")
            if weight in _NO:
                return False
    return True
