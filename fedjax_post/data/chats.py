"""Reads a row as a chat: its turns, the answers to learn, and the functions that may be called.

| the row has | the chat | what is learned |
| --- | --- | --- |
| a list of turns in `messages` | these turns | every answer |
| a prompt and a response | a user turn and an answer | the answer |
| turns in the prompt, turns or text in the response | both, in order | the response's answers |
| a prompt, and a response that is a whole chat with it | the response | every answer |
| `messages` and a last turn in the response | both, in order | the last turn |
| in addition `history`, pairs of question and answer | put in front | its answers too |
| in addition `system` | put in front of all turns | - |

An answer with weight 0 is read but not learned. What follows the last answer to learn has no
effect on training and is left out. Of two responses to one prompt, the turns that both begin with
belong to the prompt.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedjax_post.data.columns import Columns, is_empty
from fedjax_post.data.messages import Turn, is_chat, is_turn, read_tools, read_turn, read_turns
from fedjax_post.data.text import text_of

Row = Mapping[str, Any]


class Chat(NamedTuple):
    """A chat up to its last answer to learn."""

    messages: list[dict[str, Any]]  # as chat templates read them
    answers: list[int]  # indices of the messages that are learned, in order
    tools: list[dict[str, Any]] | None


def read_chat(row: Row, columns: Columns, *, against: str | None = None) -> Chat:
    """Returns the chat of a row; see the table at the beginning of this module.

    Args:
      row: the cells, by column.
      columns: the column of each role.
      against: the column of the other response to the same prompt, for preference pairs.

    Raises:
      ValueError: for a cell that is neither text nor turns, and for a row without an answer to
        learn, with the column.
    """
    column = columns.response or columns.messages or ""
    asked, answer = _parts(row, columns, columns.response)
    history = _history(row, columns)
    common = 0
    if against is not None:
        common = _num_common(answer, _parts(row, columns, against)[1])
        history = _mark_unlearned(history)
    turns = [*history, *_mark_unlearned([*asked, *answer[:common]]), *answer[common:]]
    turns = [*_system(row, columns, turns), *turns]
    answers = [i for i, turn in enumerate(turns) if turn.learned]
    learned = [turns[i].message for i in answers]
    if not all(m.get("tool_calls") or m.get("content", "").strip() for m in learned):
        answers = []
    if not answers:
        raise ValueError(
            f"column {column} holds no response, or an empty one; fill it or leave the row out"
        )
    messages = [turn.message for turn in turns[: answers[-1] + 1]]
    tools = read_tools(row[columns.tools], columns.tools) if columns.tools else None
    return Chat(messages, answers, tools)


def prompt_text(row: Row, columns: Columns) -> tuple[str, str]:
    """Returns prompt and context as texts; the context may be empty.

    Raises:
      ValueError: for a prompt that is null, and if prompt or context is not text.
    """
    assert columns.prompt is not None
    prompt = text_of(row[columns.prompt], columns.prompt)
    if prompt is None:
        raise ValueError(f"column {columns.prompt} holds no prompt; fill it or leave the row out")
    context = text_of(row[columns.context], columns.context) if columns.context else None
    return prompt, context or ""


def response_text(row: Row, columns: Columns) -> str:
    """Returns the response as text.

    Raises:
      ValueError: if it is null, blank or not text.
    """
    assert columns.response is not None
    response = text_of(row[columns.response], columns.response)
    if response is None or not response.strip():
        raise ValueError(
            f"column {columns.response} holds no response; fill it or leave the row out"
        )
    return response


def _parts(row: Row, columns: Columns, response: str | None) -> tuple[list[Turn], list[Turn]]:
    """Returns the turns before a response, and the turns of the response."""
    if response is None:
        assert columns.messages is not None
        return [], read_turns(row[columns.messages], columns.messages)
    value = row[response]
    if is_chat(value):
        answer = read_turns(value, response)
    elif is_turn(value):
        answer = [read_turn(value, response)]
    else:
        text = response_text(row, columns._replace(response=response))
        answer = [Turn({"role": "assistant", "content": text}, True)]
    asked = _prompt_turns(row, columns, answer)
    if asked and [turn.message for turn in answer[: len(asked)]] == [x.message for x in asked]:
        answer = answer[len(asked) :]  # the response is a whole chat that repeats the prompt
    return asked, answer


def _prompt_turns(row: Row, columns: Columns, answer: list[Turn]) -> list[Turn]:
    """Returns the turns of the prompt; none where the answer is a chat that contains it."""
    if columns.messages:
        return read_turns(row[columns.messages], columns.messages)
    if columns.prompt is None:
        return []
    if is_chat(row[columns.prompt]):
        if columns.context and not is_empty(row[columns.context]):
            raise ValueError(
                f"column {columns.context} is given beside the chat in column {columns.prompt}; "
                "write it into one of the chat's turns"
            )
        return read_turns(row[columns.prompt], columns.prompt)
    prompt, context = prompt_text(row, columns)
    if all(turn.message["role"] == "assistant" for turn in answer):
        content = f"{prompt}\n\n{context}" if context else prompt
        return [Turn({"role": "user", "content": content}, False)]
    contents = "\n".join(turn.message.get("content", "") for turn in answer)
    for text, column in ((prompt, columns.prompt), (context, columns.context)):
        if text.strip() not in contents:
            raise ValueError(
                f"column {column} does not occur in the chat of column {columns.response}, and "
                f"would be lost; write it into a turn, or remove column {column}"
            )
    return []


def _history(row: Row, columns: Columns) -> list[Turn]:
    """Returns earlier questions and answers, whose answers are learned too."""
    name = columns.history
    if name is None or is_empty(row[name]):
        return []
    if columns.messages:
        raise ValueError(
            f"column {name} is given beside the chat in column {columns.messages}; write it there"
        )
    value = row[name]
    if is_chat(value):
        return read_turns(value, name)
    if not (isinstance(value, list) and all(isinstance(x, list) and len(x) == 2 for x in value)):
        raise ValueError(
            f"column {name} holds no list of [question, answer]; write it so, or as turns"
        )
    texts = [(text_of(one, name), text_of(other, name)) for one, other in value]
    if any(text is None for pair in texts for text in pair):
        raise ValueError(f"column {name} holds a null; fill it or leave the row out")
    return [
        turn
        for question, answer in texts
        for turn in (
            Turn({"role": "user", "content": question}, False),
            Turn({"role": "assistant", "content": answer}, True),
        )
    ]


def _system(row: Row, columns: Columns, turns: list[Turn]) -> list[Turn]:
    """Returns the system turn, if a column has one and the chat does not."""
    name = columns.system
    if name is None or is_empty(row[name]):
        return []
    text = text_of(row[name], name)
    first = turns[0].message if turns else {}
    if first.get("role") not in ("system", "developer"):
        return [Turn({"role": "system", "content": text}, False)]
    if first.get("content") != text:
        raise ValueError(f"column {name} differs from the system turn of the chat; keep one")
    return []


def _num_common(one: list[Turn], other: list[Turn]) -> int:
    """Returns how many first turns two responses share; each keeps at least one other turn."""
    count = 0
    for mine, theirs in zip(one[:-1], other[:-1], strict=False):
        if mine.message != theirs.message:
            break
        count += 1
    return count


def _mark_unlearned(turns: list[Turn]) -> list[Turn]:
    return [turn._replace(learned=False) for turn in turns]
