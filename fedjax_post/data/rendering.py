"""Renders a chat as text, with each answer in the form in which a served model must give it.

The prompt of an answer is what the chat template makes of the turns before it, including the
header of the coming answer. The answer is what the template adds once the answer's turn is there,
without trailing white space; if the template marks a part of it by `{% generation %}`, that part.
Answers are in one row as long as each prompt repeats everything before it, earlier answers
included. Where a template writes earlier answers differently (without their `<think>`, for
example), the following answers begin a new row: the chat becomes several rows, each as it is
served.

| the template | result |
| --- | --- |
| refuses the chat, or fails on it | ValueError with the template's message |
| leaves out a turn, calls, functions, a name or reasoning | ValueError that names it |
| begins the answer differently from the end of the prompt | ValueError that shows both |
| cannot render a prompt without turns, and the chat begins with an answer | ValueError |
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedjax_post.data.chats import Chat
from fedjax_post.data.messages import REASONING

Message = dict[str, Any]
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Rendered(NamedTuple):
    """The text of a row, and the places of its answers, in characters."""

    text: str
    spans: list[tuple[int, int]]  # the learned parts, in order; the last one ends the row
    last: int  # index in `spans` of the first part of the last answer
    prompt: str  # what a server would give the model before the last answer


def render(tokenizer: Any, chat: Chat) -> list[Rendered]:
    """Returns the rows of a chat; see the beginning of this module.

    Args:
      tokenizer: has a chat template.
      chat: its last turn is an answer to learn.

    Raises:
      ValueError: see the table.
    """
    template = tokenizer.get_chat_template(tools=chat.tools)
    messages, tools = _convert_roles(chat.messages, template), chat.tools
    _check_known(messages, tools, template)
    rows: list[Rendered] = []
    ends: list[int] = []
    for i in chat.answers:
        prompt = _prompt(tokenizer, messages[:i], tools)
        whole = _apply(tokenizer, messages[: i + 1], tools)
        _check_answer(prompt, whole, messages[i], i)
        row = Rendered(whole, [(len(prompt), len(whole.rstrip()))], 0, prompt)
        if messages[i].keys() & {*REASONING}:
            bare = [*messages[:i], _drop_keys(messages[i], REASONING)]
            _check_changes(tokenizer, bare, tools, whole, f"the reasoning of turn {i}")
        if rows and prompt.startswith(rows[-1].text[: rows[-1].spans[-1][1]]):
            row = row._replace(spans=[*rows[-1].spans, *row.spans], last=len(rows[-1].spans))
            rows.pop()
            ends.pop()
        rows.append(row)
        ends.append(i + 1)
    _check_complete(tokenizer, messages, tools, rows[-1].text)
    if not _GENERATION.search(template):
        return rows
    turns = [messages[:end] for end in ends]
    return [_mark_spans(tokenizer, row, turn, tools) for row, turn in zip(rows, turns, strict=True)]


def render_prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Returns the text that a server gives the model before it answers.

    Raises:
      ValueError: with the template's message, if it refuses the chat.
    """
    return _apply(tokenizer, messages, None, add_generation_prompt=True)


def _prompt(tokenizer: Any, before: list[Message], tools: Any) -> str:
    try:
        return _apply(tokenizer, before, tools, add_generation_prompt=True)
    except ValueError as error:
        if before:
            raise
        raise ValueError(f"the chat begins with an answer, and {error}") from None


def _apply(tokenizer: Any, messages: Sequence[Message], tools: Any, **options: Any) -> str:
    """Returns the chat as text; an error of the template becomes one line."""
    import jinja2

    raised = (
        *(jinja2.TemplateError, ArithmeticError, AttributeError, LookupError),
        *(MemoryError, RecursionError, TypeError, ValueError),
    )
    try:
        # A batch with one chat, because only in a batch may a chat be empty.
        return tokenizer.apply_chat_template(
            [list(messages)], tools=tools, tokenize=False, **options
        )[0]
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} is damaged (line {error.lineno}: "
            f"{error.message}); copy or download it again"
        ) from None
    except raised as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"the chat template refuses the chat ({words}); {_remedy(messages)}"
        ) from None


def _remedy(messages: Sequence[Message]) -> str:
    """Returns possible remedies, from what templates are known to refuse."""
    roles = [message["role"] for message in messages]
    remedies = []
    if {"system", "developer"} & set(roles):
        remedies.append("write the system text into the first user turn")
    if any(one == other for one, other in itertools.pairwise(roles)):
        remedies.append("join consecutive turns of the same role")
    if roles[:1] in ([], ["assistant"]):
        remedies.append("put a user turn first")
    if any("content" not in message for message in messages):
        remedies.append("give every turn a content")
    return ", or ".join([*remedies, "use the tokenizer of a model whose template supports it"])


def _convert_roles(messages: list[Message], template: str) -> list[Message]:
    """Returns the turns; a developer's becomes a system's if the template has no developer."""
    if "developer" in template:
        return messages
    return [
        {**message, "role": "system"} if message["role"] == "developer" else message
        for message in messages
    ]


def _drop_keys(message: Message, keys: Sequence[str]) -> Message:
    return {key: value for key, value in message.items() if key not in keys}


def _check_known(messages: list[Message], tools: Any, template: str) -> None:
    """Raises for kinds of content that the template does not mention."""
    held = {key for message in messages for key in message}
    unread = ["tools"] if tools and "tools" not in template else []
    unread += ["tool_calls"] if "tool_calls" in held and "tool_calls" not in template else []
    if held & {*REASONING} and not any(name in template for name in REASONING):
        unread += sorted(held & {*REASONING})
    if unread:
        raise ValueError(
            f"the chat template does not mention {' or '.join(unread)}; "
            "use the tokenizer of a model whose template has them, or remove them from the data"
        )


def _check_answer(prompt: str, whole: str, message: Message, turn: int) -> None:
    """Raises if an answer does not follow its prompt, or is incomplete."""
    if not whole.startswith(prompt):
        pairs = enumerate(zip(prompt, whole, strict=False))
        common = next((i for i, (a, b) in pairs if a != b), min(len(prompt), len(whole)))
        one, other = (text[common : common + 40] for text in (prompt, whole))
        raise ValueError(
            f"the chat template renders the turns before turn {turn} differently once it is there, "
            f"from {one!r} to {other!r}, so that the answer does not begin where its prompt ends; "
            "use a template that renders them alike"
        )
    answer = whole[len(prompt) :]
    content = message.get("content", "").strip()
    if content not in answer and "".join(content.split()) not in "".join(answer.split()):
        raise ValueError(
            f"the chat template leaves out a part of the answer in turn {turn}; write thoughts as "
            f"`{REASONING[0]}`, or use the tokenizer of a model whose template keeps them"
        )


def _check_complete(tokenizer: Any, messages: list[Message], tools: Any, text: str) -> None:
    """Raises if the template leaves out a turn, functions, calls or names."""
    for i, message in enumerate(messages):
        if message["role"] != "assistant" and message["content"].strip() not in text:
            others = [*messages[:i], *messages[i + 1 :]]
            _check_changes(tokenizer, others, tools, text, f"turn {i} ({message['role']})")
    if tools:
        _check_changes(tokenizer, messages, None, text, "the tools")
    for key in ("tool_calls", "name"):
        # Not in a tool's turn: a template may write the tool's name only in the call.
        bare = [_drop_keys(m, [key] if m["role"] != "tool" else []) for m in messages]
        if bare != messages:
            _check_changes(tokenizer, bare, tools, text, key)


def _check_changes(
    tokenizer: Any, without: list[Message], tools: Any, text: str, what: str
) -> None:
    """Raises if the template renders the same text without some content of the row."""
    try:
        same = _apply(tokenizer, without, tools) == text
    except ValueError:  # the template needs this content
        return
    if same:
        raise ValueError(
            f"the chat template leaves out {what}; use the tokenizer of a model whose template "
            "has a place for it, or remove it from the data"
        )


def _mark_spans(tokenizer: Any, row: Rendered, messages: list[Message], tools: Any) -> Rendered:
    """Returns the row with only those parts of its answers learned that the template marks."""
    from transformers.utils.chat_template_utils import render_jinja_template

    found: Any  # the rendered texts, and the marked stretches of each text
    found = render_jinja_template(
        [messages],
        tools=tools,
        chat_template=tokenizer.get_chat_template(tools=tools),
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    marks: list[tuple[int, int]] = found[1][0]
    within = [
        [(max(a, start), b) for a, b in marks if a < end and b > start] for start, end in row.spans
    ]
    if not all(within):
        raise ValueError(
            "the chat template marks no part of an answer by its `generation` tags; put them "
            "around the text that the model should give"
        )
    spans = list(itertools.chain.from_iterable(within))
    start, end = spans[-1]
    spans[-1] = start, start + len(row.text[start:end].rstrip())
    return row._replace(spans=spans, last=len(spans) - len(within[-1]))
