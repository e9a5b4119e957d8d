"""Builds the site; every warning, also of a link within it that leads nowhere, is an error.

    pip install -e '.[docs]' && python docs/site/build.py      # writes build/site/index.html

The pages in docs/ stay plain Markdown. This program copies them into a folder of its own, with
the files that they link to, writes the generated pages beside them, and calls Sphinx.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import catalogue
import reference
import releases
from sphinx.cmd.build import build_main

SITE = Path(__file__).parent
ROOT = SITE.parent.parent
_TEXTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "CITATION.cff")
_LINKED = ("algorithms", "colabs", "experiments", "fedjax_post")  # whose files pages link to


def main(output: Path) -> int:
    """Returns the exit code of Sphinx."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        write_sources(source)
        given = ["-c", str(SITE), "-b", "html", "-W", "--keep-going", "-q"]
        return build_main([*given, str(source), str(output)])


def write_sources(source: Path) -> None:
    """Writes all that Sphinx reads: pages, generated pages, and the files that pages link to."""
    for name in _TEXTS:
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "docs", source / "docs", ignore=shutil.ignore_patterns("site"))
    for name in _LINKED:
        (source / name).symlink_to(ROOT / name)
    shutil.copy(SITE / "index.md", source / "index.md")
    guide = (ROOT / "docs" / "rooms.md").read_text(encoding="utf-8")
    for path, text in {**catalogue.pages(), **reference.pages(guide), **releases.pages()}.items():
        (source / path).parent.mkdir(exist_ok=True)
        (source / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site"))
