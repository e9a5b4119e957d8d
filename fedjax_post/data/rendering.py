"""A chat becomes text, each answer as a served model would have to give it.

The prompt of an answer is what the chat template makes of the turns before it, with a header for
the answer to come; the answer is what the template adds when its turn is there, up to trailing
white space, or what it marks by `{% generation %}` therein. Answers whose prompts repeat all that
came before, answers included, stand in one row. Where a template writes history otherwise than
answers (without their `<think>`, say), the answers behind it begin a row of their own: the chat
becomes several rows, each as it is served.

| the template | what happens |
| --- | --- |
| refuses the chat, or fails on it | ValueError with its words |
| leaves out a turn, calls, functions, a name or reasoning | ValueError that names it |
| begins the answer otherwise than it ends the prompt | ValueError that shows both |
| cannot render a prompt of no turns, and the chat begins with an answer | ValueError |
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
    """The text of a row, and where its answers are, in characters."""

    text: str
    spans: list[tuple[int, int]]  # what is learned, in order; the last one ends the row
    last: int  # which of `spans` is the first of the last answer
    prompt: str  # what a server would give the model before the last answer


def render(tokenizer: Any, chat: Chat) -> list[Rendered]:
    """Returns the rows of a chat, see the head of this module.

    Args:
      tokenizer: with a chat template.
      chat: the last turn is an answer to learn.

    Raises:
      ValueError: see the table.
    """
    template = tokenizer.get_chat_template(tools=chat.tools)
    messages, tools = _in_roles(chat.messages, template), chat.tools
    _check_known(messages, tools, template)
    rows: list[Rendered] = []
    ends: list[int] = []
    for i in chat.answers:
        prompt = _prompt(tokenizer, messages[:i], tools)
        whole = _apply(tokenizer, messages[: i + 1], tools)
        _check_answer(prompt, whole, messages[i], i)
        row = Rendered(whole, [(len(prompt), len(whole.rstrip()))], 0, prompt)
        if messages[i].keys() & {*REASONING}:
            bare = [*messages[:i], _without(messages[i], REASONING)]
            _check_changes(tokenizer, bare, tools, whole, f"the reasoning of turn {i}")
        if rows and prompt.startswith(rows[-1].text[: rows[-1].spans[-1][1]]):
            row = row._replace(spans=[*rows[-1].spans, *row.spans], last=len(rows[-1].spans))
            rows.pop()
            ends.pop()
        rows.append(row)
        ends.append(i + 1)
    _check_kept(tokenizer, messages, tools, rows[-1].text)
    if not _GENERATION.search(template):
        return rows
    turns = [messages[:end] for end in ends]
    return [_marked(tokenizer, *held, tools) for held in zip(rows, turns, strict=True)]


def render_prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Returns what a server gives the model before it answers.

    Raises:
      ValueError: with the template's words, if it refuses the chat.
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
    """Returns the chat as text; whatever a template raises becomes one line."""
    import jinja2

    raised = jinja2.TemplateError, AttributeError, IndexError, KeyError, TypeError, ValueError
    try:
        # As a batch of one, in which a chat may be empty.
        return tokenizer.apply_chat_template(
            [list(messages)], tools=tools, tokenize=False, **options
        )[0]
    except raised as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"the chat template refuses the chat ({words}); {_remedy(messages)}"
        ) from None


def _remedy(messages: Sequence[Message]) -> str:
    """Returns what may help, by what templates are known to refuse."""
    roles = [message["role"] for message in messages]
    remedies = []
    if {"system", "developer"} & set(roles):
        remedies.append("write the system's text into the first user's turn")
    if any(one == other for one, other in itertools.pairwise(roles)):
        remedies.append("join turns of one role that follow each other")
    if roles[:1] in ([], ["assistant"]):
        remedies.append("put a user's turn first")
    if any("content" not in message for message in messages):
        remedies.append("give every turn a content")
    return ", or ".join([*remedies, "use the tokenizer of a model whose template takes it"])


def _in_roles(messages: list[Message], template: str) -> list[Message]:
    """Returns the turns with a developer's as a system's, where the template knows no developer."""
    if "developer" in template:
        return messages
    return [
        {**message, "role": "system"} if message["role"] == "developer" else message
        for message in messages
    ]


def _without(message: Message, keys: Sequence[str]) -> Message:
    return {key: value for key, value in message.items() if key not in keys}


def _check_known(messages: list[Message], tools: Any, template: str) -> None:
    """Refuses what the template does not even mention."""
    held = {key for message in messages for key in message}
    unread = ["tools"] if tools and "tools" not in template else []
    unread += ["tool_calls"] if "tool_calls" in held and "tool_calls" not in template else []
    if held & {*REASONING} and not any(name in template for name in REASONING):
        unread += sorted(held & {*REASONING})
    if unread:
        raise ValueError(
            f"the chat template knows no {' and no '.join(unread)}, and would leave them out; use "
            "the tokenizer of a model whose template has them, or remove them from the data"
        )


def _check_answer(prompt: str, whole: str, message: Message, turn: int) -> None:
    """Refuses an answer that does not follow its prompt, or not whole."""
    if not whole.startswith(prompt):
        pairs = enumerate(zip(prompt, whole, strict=False))
        common = next((i for i, (a, b) in pairs if a != b), min(len(prompt), len(whole)))
        one, other = (text[common : common + 40] for text in (prompt, whole))
        raise ValueError(
            f"the chat template renders the turns before turn {turn} differently once it is there, "
            f"from {one!r} to {other!r}, so that the answer does not begin where its prompt ends; "
            "use a template that does"
        )
    answer = whole[len(prompt) :]
    content = message.get("content", "").strip()
    if content not in answer and "".join(content.split()) not in "".join(answer.split()):
        raise ValueError(
            f"the chat template leaves out a part of the answer in turn {turn}; write thoughts as "
            f"`{REASONING[0]}`, or use the tokenizer of a model whose template keeps them"
        )


def _check_kept(tokenizer: Any, messages: list[Message], tools: Any, text: str) -> None:
    """Refuses a template that leaves out a turn, functions, calls or names."""
    for i, message in enumerate(messages):
        if message["role"] != "assistant" and message["content"].strip() not in text:
            others = [*messages[:i], *messages[i + 1 :]]
            _check_changes(tokenizer, others, tools, text, f"turn {i} ({message['role']})")
    if tools:
        _check_changes(tokenizer, messages, None, text, "the tools")
    for key in ("tool_calls", "name"):
        # What a tool is called stands in the call too.
        bare = [_without(m, [key] if m["role"] != "tool" else []) for m in messages]
        if bare != messages:
            _check_changes(tokenizer, bare, tools, text, key)


def _check_changes(
    tokenizer: Any, without: list[Message], tools: Any, text: str, what: str
) -> None:
    """Refuses a template that renders the same without what a row holds."""
    try:
        same = _apply(tokenizer, without, tools) == text
    except ValueError:  # it is needed
        return
    if same:
        raise ValueError(
            f"the chat template leaves out {what}; use the tokenizer of a model whose template "
            "has a place for it, or remove it from the data"
        )


def _marked(tokenizer: Any, row: Rendered, messages: list[Message], tools: Any) -> Rendered:
    """Returns a row whose answers are learned where the template marks them."""
    from transformers.utils.chat_template_utils import render_jinja_template

    found: Any  # rendered texts, and of each the stretches that are marked
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
            "the chat template marks nothing of an answer by its `generation` tags; put them "
            "around what the model is to say"
        )
    spans = list(itertools.chain.from_iterable(within))
    start, end = spans[-1]
    spans[-1] = start, start + len(row.text[start:end].rstrip())
    return row._replace(spans=spans, last=len(spans) - len(within[-1]))
