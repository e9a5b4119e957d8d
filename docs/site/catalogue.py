"""Pages of the algorithm catalogue, made from the heads of their files and their factories."""

import re
from itertools import groupby

import wire
from equations import typeset

from fedjax_post.algorithms import ALGORITHMS
from fedjax_post.report.table import format_bytes
from fedjax_post.study import about, cite

_CODE = re.compile(r"(`[^`]+`)")


def pages() -> dict[str, str]:
    """Returns Markdown by path: a page for each file of algorithms, and their table."""
    sizes = wire.sizes()
    found = {f"catalogue/{file}.md": _page(names, sizes) for file, names in _files().items()}
    return {"catalogue/index.md": _index(sizes), **found}


def _files() -> dict[str, list[str]]:
    """The names of registered algorithms by the file that has them, in order."""
    of = lambda name: ALGORITHMS[name].__module__.rpartition(".")[2]
    files: dict[str, list[str]] = {}
    for name in ALGORITHMS:
        files.setdefault(of(name), []).append(name)
    return files


def _index(sizes: wire.Sizes) -> str:
    rows = []
    for file, names in _files().items():
        for name in names:
            told = about(name)
            paper = f"[{told.papers[0]}](https://arxiv.org/abs/{told.papers[0]})"
            title = prose(told.title.partition(": ")[2].rstrip("."))
            sent = " | ".join(map(format_bytes, sizes.of[name])) if name in sizes.of else " | "
            rows.append(f"| [`{name}`]({file}.md) | {title} | {_access(told)} | {sent} | {paper} |")
    return "\n".join(
        [
            "# Algorithm catalogue",
            "",
            f"The {len(ALGORITHMS)} registered algorithms. A page has the equations, every known "
            "deviation from the paper, what is sent, the arguments, and the citation.",
            "",
            "| name | what it does | access | down | up | paper |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "Down and up are the bytes of a client's first visit, by shape, with the default",
            "adapter of the built-in model",
            f"({format_bytes(sizes.adapter)}) and SGD on the clients.",
            "What the others send is on their pages.",
            "",
            "Access is the least tier that the algorithm needs of each model:",
            "`TEXT` < `LOGITS` < `EMBEDDINGS` < `WEIGHTS` < `GRADIENTS`; see",
            "[openness](../docs/openness.md).",
            "",
            "```{toctree}",
            ":hidden:",
            "",
            *_files(),
            "```",
            "",
        ]
    )


def _access(told) -> str:
    alone = list(told.access) == ["target"]
    return ", ".join(f"`{tier}`" + ("" if alone else f" of the {role}")
                     for role, tier in told.access.items())  # fmt: skip


def _page(names: list[str], sizes: wire.Sizes) -> str:
    told = about(names[0])
    short, _, what = told.title.partition(": ")
    lines = [f"# {prose(short)}", "", prose(what[:1].upper() + what[1:]), "", head(told.text), ""]
    for name in names:
        lines += _factory(name, sizes)
    known = ", ".join(f"`python -m experiments.cite {name}`" for name in names[:1])
    return "\n".join([*lines, "## Citation", "", f"As {known} prints it:", "", "```bibtex",
                      cite(names[0]), "```", ""])  # fmt: skip


def _factory(name: str, sizes: wire.Sizes) -> list[str]:
    told = about(name)
    flags = ", ".join(f"`--{key}={value}`" for key, value in told.settings.items()
                      if isinstance(value, bool | int | float | str))  # fmt: skip
    inputs = ", ".join(f"`{argument}` (`{mark}`)" for argument, mark in told.inputs.items())
    factory = ALGORITHMS[name]
    down, up = map(format_bytes, sizes.of.get(name, (0, 0)))
    sent = f"- **Sent.** {down} down and {up} up, for an adapter of {format_bytes(sizes.adapter)}"
    return [
        f"## `{name}`",
        "",
        f"- **Command.** `python -m experiments.train --algorithm={name}`",
        f"- **Access.** {_access(told) or 'none'}",
        *([sent] if name in sizes.of else []),
        f"- **Supplied by the program.** {inputs or 'nothing'}",
        f"- **Own flags, with defaults.** {flags or 'none'}",
        "",
        "```{eval-rst}",
        f".. autofunction:: {factory.__module__}.{factory.__name__}",
        "```",
        "",
    ]


def head(text: str) -> str:
    """Returns the head of a file as Markdown, its indented lines typeset as equations."""
    parts = []
    for block in re.split(r"\n{2,}", text):
        lines = block.split("\n")
        for indented, some in groupby(lines, key=lambda line: line.startswith("    ")):
            chosen = list(some)
            if indented:
                body = "\n".join(typeset(line[4:]) for line in chosen)
                parts.append(f'<div class="equation">{body}</div>')
            else:
                parts.append("\n".join(prose(line) for line in chosen))
    return "\n\n".join(parts)


def prose(line: str) -> str:
    """Returns a line of plain text as Markdown: code stays, equations within it are escaped."""
    linked = lambda text: re.sub(
        r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text
    )
    emphasis = r"(?<!\w)\*\w[\w -]*\w\*"
    escaped = lambda text: "".join(
        part if re.fullmatch(emphasis, part) else re.sub(r"([\\*_|<>\[\]$^~])", r"\\\1", part)
        for part in re.split(f"({emphasis})", text)
    )
    return "".join(
        part if part.startswith("`") and len(part) > 1 else linked(escaped(part))
        for part in _CODE.split(line)
    )
