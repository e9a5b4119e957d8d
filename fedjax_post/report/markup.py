"""Pages of headings, text, tables and pictures, as Markdown and as a single HTML file."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Heading(NamedTuple):
    """A heading; level 1 is the title."""

    level: int
    text: str


class Prose(NamedTuple):
    """A paragraph."""

    text: str


class Bullets(NamedTuple):
    """A list."""

    items: Sequence[str]


class Table(NamedTuple):
    """A table of texts."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG file in the page's folder."""

    name: str
    caption: str


class Code(NamedTuple):
    """Commands, one per line."""

    lines: Sequence[str]


Block = Heading | Prose | Bullets | Table | Picture | Code


def markdown(blocks: Sequence[Block]) -> str:
    """Returns the page as Markdown, with links to the pictures.

    >>> print(markdown([Heading(1, "Results"), Bullets(["first", "second"])]))
    # Results
    <BLANKLINE>
    - first
    - second
    <BLANKLINE>
    """
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def page(title: str, blocks: Sequence[Block], folder: Path, *, marked: Mapping[str, str]) -> str:
    """Returns the page as HTML that includes its pictures.

    Args:
      title: of the window.
      blocks: of the page.
      folder: of the pictures.
      marked: word -> colour of a frame around the word, where a table's cell or a heading ends
        with it. The word itself is always shown, so that no information depends on colour alone.
    """
    body = "\n".join(_html(block, folder, marked) for block in blocks)
    return _PAGE.format(title=html.escape(title), style=_STYLE, body=body)


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_plain(text)}"
        case Prose(text):
            return _plain(text)
        case Bullets(items):
            return "\n".join(f"- {_plain(item)}" for item in items)
        case Table(head, rows):
            lines = [head, ["---"] * len(head), *rows]
            cells = [[_plain(cell).replace("|", "\\|") for cell in line] for line in lines]
            return "\n".join(f"| {' | '.join(line)} |" for line in cells)
        case Picture(name, caption):
            return f"![{_plain(caption)}]({name})"
        case Code(lines):
            return "\n".join(["```bash", *lines, "```"])


def _plain(text: str) -> str:
    """Returns text with special characters of Markdown escaped."""
    return re.sub(r"([*`<\[\]])", r"\\\1", text.replace("\n", " "))


def _html(block: Block, folder: Path, marked: Mapping[str, str]) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{_mark(text, marked)}</h{level}>"
        case Prose(text):
            return f"<p>{html.escape(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"
        case Table(head, rows):
            return _table(head, rows, marked)
        case Picture(name, caption):
            code = base64.b64encode((folder / name).read_bytes()).decode()
            text = html.escape(caption)
            image = f'<img alt="{text}" src="data:image/png;base64,{code}">'
            return f"<figure>{image}<figcaption>{text}</figcaption></figure>"
        case Code(lines):
            return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], marked: Mapping[str, str]) -> str:
    """Returns a table; the rows of a wide one are cards on a narrow screen, with columns' names."""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = []
    for row in rows:
        cells = "".join(
            f'<td data-name="{html.escape(name)}">{_mark(cell, marked)}</td>'
            for name, cell in zip(head, row, strict=True)
        )
        lines.append(f"<tr>{cells}</tr>")
    kind = ' class="wide"' if _is_wide(head, rows) else ""
    return f"<table{kind}><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _is_wide(head: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Returns whether a table is wider than a screen of 390 pixels, its margins left out."""
    letters = sum(max(map(len, column)) for column in zip(head, *rows, strict=True))
    return 7.5 * letters + 16 * len(head) > 350


def _mark(text: str, marked: Mapping[str, str]) -> str:
    for word, colour in marked.items():
        before = text.removesuffix(word)
        if before != text and not before[-1:].isalpha() and not before.endswith("not "):
            mark = f'<b class="mark" style="border-color:{colour}">{html.escape(word)}</b>'
            return html.escape(before) + mark
    return html.escape(text)


_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
  padding: 1rem; max-width: 62rem; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; margin: 1.6em 0 .5em; overflow-wrap: normal; }
h1 { margin-top: .5em; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; margin: 1em 0;
  overflow-wrap: normal; }
th, td { text-align: left; vertical-align: top; padding: .35rem .5rem;
  border-bottom: 1px solid #ccc; }
thead th { border-bottom: 2px solid #555; }
figure { margin: 1.2em 0; }
img { max-width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #444; }
pre { background: #f3f3f3; padding: .6rem; overflow-x: auto; white-space: pre-wrap;
  font-size: .8rem; }
.mark { border: 2px solid; border-radius: .3em; padding: 0 .35em; white-space: nowrap; }
@media screen and (max-width: 45rem) {
  .wide thead { display: none; }
  .wide, .wide tbody, .wide tr, .wide td { display: block; }
  .wide tr { border: 1px solid #999; border-radius: .4em; margin: .6rem 0; padding: .3rem .5rem; }
  .wide td { border: 0; padding: .15rem 0; }
  .wide td:not([data-name=""])::before { content: attr(data-name) ": "; color: #555; }
  .wide td:empty { display: none; }
  figure { overflow-x: auto; }
  img { max-width: 40rem; }
  figcaption { position: sticky; left: 0; }
  figcaption::before { content: "Scroll the picture sideways. "; }
}
@media print {
  body { max-width: none; font-size: 10pt; padding: 0; }
  table { font-size: 7.5pt; }
  tr, figure { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
