"""Writes rows as text: by the tokenizer's chat template, or by a form with places for columns.

A form is a format string such as `"Q: {question}\\nA: "`, with names of columns, or of the roles
prompt and context, in braces. The form gives the prompt; the response follows it.
"""

import string
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedjax_post.data.chats import Row, prompt_text, response_text
from fedjax_post.data.columns import Columns, is_empty, join_names
from fedjax_post.data.rendering import render_prompt
from fedjax_post.data.text import text_of

PLAIN = "### Instruction:\n{prompt}\n\n### Response:\n"
PLAIN_WITH_CONTEXT = "### Instruction:\n{prompt}\n\n### Input:\n{context}\n\n### Response:\n"


class Form(NamedTuple):
    """A format string, split at its places."""

    places: tuple[tuple[str, str | None], ...]  # a text, and the name after it if there is one

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the form, in order."""
        return tuple(name for _, name in self.places if name is not None)


def is_chat_template(tokenizer: Any, columns: Columns, template: str) -> bool:
    """Returns whether rows are written by the tokenizer's chat template.

    Args:
      tokenizer: a Hugging Face tokenizer.
      columns: the column of each role.
      template: `chat` for the tokenizer's chat template; `plain` for headings of instruction and
        response; a format string; or `auto`, which is `chat` if the tokenizer has a chat
        template and `plain` otherwise.

    Raises:
      ValueError: if the template is none of these, or does not fit the tokenizer or the data.
    """
    turns = columns.messages or (columns.response if columns.prompt is None else None)
    wanted = template == "chat" or turns is not None
    if wanted and not tokenizer.chat_template:
        source = f"column {turns}" if turns else "template=chat"
        raise ValueError(
            f"{source} needs a chat template and the tokenizer has none; use the tokenizer "
            "of a chat model, or template=plain over a prompt and a response column"
        )
    if turns and template not in ("auto", "chat"):
        raise ValueError(
            f"template={template} cannot format chats (column {turns}); use "
            "template=chat, or choose `prompt_column` and `response_column`"
        )
    if wanted or (template == "auto" and tokenizer.chat_template):
        tokenizer.get_chat_template()  # raises if there are several and none is the default
        if not tokenizer.is_fast:
            raise ValueError(
                "chats need a tokenizer that gives the places of its tokens in the text, and "
                f"{type(tokenizer).__name__} does not; use one with a tokenizer.json"
            )
        return True
    if template not in ("auto", "plain") and "{" not in template:
        raise ValueError(
            f"template={template} is unknown; use auto, chat, plain, "
            f"or a format string such as '{{{columns.prompt}}}\\n'"
        )
    return False


def read_form(template: str) -> Form | None:
    """Returns the form of a template; None for `chat`, and for `plain` and `auto`.

    The plain template has two forms, with and without a context, and each row uses one of them.

    Raises:
      ValueError: for braces that do not match, and places that are more than a name.
    """
    if template in ("auto", "plain", "chat"):
        return None
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"template={template!r} is not a format string: {error}; write literal braces twice"
        ) from None
    for _, name, spec, conversion in parts:
        if spec or conversion or name == "":
            raise ValueError(
                f"template={template!r} has a place that is not just the name of a column "
                f"({name or '{}'}); write it as {{{name or 'prompt'}}}"
            )
    return Form(tuple((text, name) for text, name, _, _ in parts))


_PLAIN, _PLAIN_WITH_CONTEXT = read_form(PLAIN), read_form(PLAIN_WITH_CONTEXT)


def fill(form: Form | None, row: Row, columns: Columns, *, mark: Callable[[str], str] = str) -> str:
    """Returns the prompt of a row.

    Args:
      form: as `read_form` returns it; None for the plain template.
      row: the cells, by column.
      columns: the column of each role.
      mark: applied to every text from the row.

    Raises:
      ValueError: for a name that is not a column, a cell that is not text, and content in a
        column that changes the meaning of the row and is not in the form.
    """
    prompt, context = prompt_text(row, columns)
    if form is None:
        form = _PLAIN_WITH_CONTEXT if context else _PLAIN
    assert form is not None
    for role in ("system", "history", "tools"):
        name = getattr(columns, role)
        if name and not is_empty(row[name]) and not {name, role} & set(form.names):
            raise ValueError(
                f"column {name} changes the meaning of the row and the template has no place for "
                f"it; use template=chat, or name {{{name}}} in a format string"
            )
    roles = {"prompt": prompt, "context": context}
    texts = [
        text
        + (
            ""
            if name is None
            else mark(roles[name] if name in roles else _cell(row, name, columns))
        )
        for text, name in form.places
    ]
    return "".join(texts)


def _cell(row: Row, name: str, columns: Columns) -> str:
    """Returns the text of a column that is named in a form."""
    column = name if name in row else columns._asdict().get(name)
    if column is None:
        raise ValueError(
            f"template names {{{name}}}, which is not a column; there are {join_names(row)}"
        )
    text = text_of(row[column], column)
    if text is None and column not in (columns.context, columns.system, columns.history):
        raise ValueError(
            f"column {column} is named in the template and is empty; fill it or leave the row out"
        )
    return text or ""


def fill_response(row: Row, columns: Columns, end: str) -> str:
    """Returns the response of a row, without the end-of-sequence token if the text spells it.

    Args:
      row: the cells, by column.
      columns: the column of each role.
      end: the text of the end-of-sequence token.

    Raises:
      ValueError: if the response is null, blank or not text.
    """
    return response_text(row, columns).removesuffix(end)


def make_prompt(
    tokenizer: Any, columns: Columns, *, template: str = "auto"
) -> Callable[[Mapping[str, Any]], str]:
    """Returns a function from a row of texts to its prompt, as text.

    Args:
      tokenizer: as for `is_chat_template`.
      columns: with a prompt, and perhaps a context.
      template: as for `is_chat_template`.

    Raises:
      ValueError: as `is_chat_template`; the returned function raises it as `fill`.

    Example:
      >>> from fedjax_post.hub.tokenizer import load_tokenizer
      >>> columns = Columns(prompt="ask")
      >>> write = make_prompt(load_tokenizer("builtin"), columns, template="Q: {ask} A: ")
      >>> write({"ask": "what is next?"})
      'Q: what is next? A: '
    """
    if not is_chat_template(tokenizer, columns, template):
        form = read_form(template)
        return lambda row: fill(form, row, columns)

    def write_chat(row: Mapping[str, Any]) -> str:
        prompt, context = prompt_text(row, columns)
        content = f"{prompt}\n\n{context}" if context else prompt
        return render_prompt(tokenizer, [{"role": "user", "content": content}])

    return write_chat
