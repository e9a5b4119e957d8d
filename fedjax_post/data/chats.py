"""A row becomes a chat: its turns, the answers to learn, and the functions it may call.

| the row has | the chat | what is learned |
| --- | --- | --- |
| a list of turns in `messages` | these | every answer |
| a prompt and a response | a user's turn and an answer | the answer |
| turns in the prompt, turns or text in the response | these in order | the response's answers |
| a prompt, and a whole chat in the response that holds it | the response | every answer |
| `messages` and a last turn in the response | these in order | the last turn |
| beside these `history`, pairs of question and answer | in front | its answers too |
| beside these `system` | in front of all | - |

An answer with weight 0 is read and not learned. What stands behind the last answer to learn teaches
nothing and is left out. Of two responses to one prompt, the turns that both begin with are prompt.
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
    answers: list[int]  # which of them are learned, in order
    tools: list[dict[str, Any]] | None


def read_chat(row: Row, columns: Columns, *, against: str | None = None) -> Chat:
    """Returns the chat of a row, see the table at the head of this module.

    Args:
      row: the cells, by column.
      columns: which of them play which role.
      against: the column of another response to the same prompt, of a pair.

    Raises:
      ValueError: naming the column, for what is no text and no turn, and for a row without an
        answer to learn.
    """
    column = columns.response or columns.messages or ""
    asked, answer = _parts(row, columns, columns.response)
    history = _history(row, columns)
    common = 0
    if against is not None:
        common = _num_common(answer, _parts(row, columns, against)[1])
        history = _read_only(history)
    turns = [*history, *_read_only([*asked, *answer[:common]]), *answer[common:]]
    turns = [*_system(row, columns, turns), *turns]
    answers = [i for i, turn in enumerate(turns) if turn.learned]
    said = [turns[i].message for i in answers]
    if not all(message.get("tool_calls") or message.get("content", "").strip() for message in said):
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
      ValueError: for a prompt that is null, and for either if it is no text.
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
      ValueError: if it is null or blank, or no text.
    """
    assert columns.response is not None
    response = text_of(row[columns.response], columns.response)
    if response is None or not response.strip():
        raise ValueError(
            f"column {columns.response} holds no response; fill it or leave the row out"
        )
    return response


def _parts(row: Row, columns: Columns, response: str | None) -> tuple[list[Turn], list[Turn]]:
    """Returns the turns before a response, and the response."""
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
    asked = _asked(row, columns, answer)
    if asked and [turn.message for turn in answer[: len(asked)]] == [x.message for x in asked]:
        answer = answer[len(asked) :]  # a whole chat beside its prompt
    return asked, answer


def _asked(row: Row, columns: Columns, answer: list[Turn]) -> list[Turn]:
    """Returns the turns of the prompt; none where the answer is a whole chat that holds it."""
    if columns.messages:
        return read_turns(row[columns.messages], columns.messages)
    if columns.prompt is None:
        return []
    if is_chat(row[columns.prompt]):
        if columns.context and not is_empty(row[columns.context]):
            raise ValueError(
                f"column {columns.context} stands beside the chat in column {columns.prompt}; "
                "write it into one of its turns"
            )
        return read_turns(row[columns.prompt], columns.prompt)
    prompt, context = prompt_text(row, columns)
    if all(turn.message["role"] == "assistant" for turn in answer):
        content = f"{prompt}\n\n{context}" if context else prompt
        return [Turn({"role": "user", "content": content}, False)]
    said = "\n".join(turn.message.get("content", "") for turn in answer)
    for text, column in ((prompt, columns.prompt), (context, columns.context)):
        if text.strip() not in said:
            raise ValueError(
                f"column {column} is not said in the chat of column {columns.response}, and "
                f"would be lost; write it into a turn, or remove column {column}"
            )
    return []


def _history(row: Row, columns: Columns) -> list[Turn]:
    """Returns earlier questions and answers; these are learned too, as where they come from."""
    name = columns.history
    if name is None or is_empty(row[name]):
        return []
    if columns.messages:
        raise ValueError(
            f"column {name} stands beside the chat in column {columns.messages}; write it there"
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
    """Returns the system's turn, if a column has one and the chat does not say it itself."""
    name = columns.system
    if name is None or is_empty(row[name]):
        return []
    text = text_of(row[name], name)
    first = turns[0].message if turns else {}
    if first.get("role") not in ("system", "developer"):
        return [Turn({"role": "system", "content": text}, False)]
    if first.get("content") != text:
        raise ValueError(f"column {name} differs from the system's turn in the chat; keep one")
    return []


def _num_common(one: list[Turn], other: list[Turn]) -> int:
    """Returns how many turns two responses begin with; at least one turn of each is its own."""
    count = 0
    for mine, theirs in zip(one[:-1], other[:-1], strict=False):
        if mine.message != theirs.message:
            break
        count += 1
    return count


def _read_only(turns: list[Turn]) -> list[Turn]:
    return [turn._replace(learned=False) for turn in turns]
