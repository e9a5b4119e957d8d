"""Laws of the repository: imports between rooms, lengths of code, and the cost of an import."""

import ast
import collections
import inspect
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest

from fedjax_post.algorithms import ALGORITHMS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fedjax_post"
SOURCES = sorted(chain(PACKAGE.rglob("*.py"), (ROOT / "algorithms").rglob("*.py"),
                       (ROOT / "experiments").rglob("*.py")))  # fmt: skip
ROOMS = sorted(p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists())

# Who may import whom; a module after a dot narrows the permission to that module.
ARROWS = {
    "core": set(),
    "adapters": {"core", "model"},
    "blackbox": {"core"},
    "model": {"core.access", "core.view"},
    "hub": {"core", "model", "adapters"},
    "objectives": {"core", "model.views", "model.generate"},
    "data": {"core", "hub"},
    "simulate": {"core", "model.views", "data.batches", "data.clients", "integrity"},
    "evaluate": {"core", "model", "data", "objectives", "hub.tokenizer"},
    "openness": {"core.access", "model", "hub"},
    "disclosure": {"core"},
    "provider": {"core", "model", "hub", "adapters", "objectives", "data.template", "disclosure"},
    "privacy": {"core"},
    "attacks": {"core", "adapters", "model", "data", "evaluate", "objectives", "privacy"},
    "report": {"integrity"},
    "study": {*ROOMS, "algorithms", "fedjax_post", "integrity"} - {"testing"},
    "testing": set(ROOMS) - {"study"},
    "algorithms": {"core", "adapters", "blackbox", "privacy"},
    "experiments": {*ROOMS, "algorithms", "fedjax_post", "integrity"},
}


def imports(path: Path) -> set[str]:
    """Modules of this project that a file imports, the package name left out."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in found if name.split(".")[0] in ("fedjax_post", "algorithms")}
    return {name.removeprefix("fedjax_post.") for name in ours}


# Distribution -> whether an extra has it, without which the rest works; else all installs do
with open(ROOT / "pyproject.toml", "rb") as _file:
    _PROJECT = tomllib.load(_file)["project"]
_name = lambda requirement: re.split(r"[^\w-]", requirement)[0].lower().replace("_", "-")
_WATCH = ("mlflow", "tensorboard", "wandb")
PROVIDERS = {"sklearn": ["scikit-learn"], "mlflow": ["mlflow-skinny"], **packages_distributions()}
DECLARED = {
    **{
        _name(r): True
        for e in (
            "audit",
            "clusters",
            "eval",
            "ftrl",
            "gguf",
            "hosted",
            "privacy",
            "secure",
            *_WATCH,
        )
        for r in _PROJECT["optional-dependencies"][e]
    },
    **{_name(r): False for r in _PROJECT["dependencies"]},
}


def outside_imports(path: Path) -> set[tuple[str, bool]]:
    """Packages of others that a file imports, and whether within a function or a `try` alone."""
    found = set()

    def look(nodes, within):
        for node in nodes:
            here = within or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Try)
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found.update((name.split(".")[0], within) for name in names)
            look(ast.iter_child_nodes(node), here)

    look([ast.parse(path.read_text())], False)
    ours = {"fedjax_post", "algorithms", "experiments", *sys.stdlib_module_names}
    return {(name, within) for name, within in found if name not in ours}


# Those of experiments/benchmark/sides run in environments of their own, with other libraries.
@pytest.mark.parametrize(
    "path", [p for p in SOURCES if "sides" not in p.parts], ids=lambda p: str(p.relative_to(ROOT))
)
def test_what_is_imported_is_declared(path):
    """In the base dependencies; or in an extra, and then where it is used alone."""
    for name, within in outside_imports(path):
        known = {_name(provider) for provider in PROVIDERS.get(name, [name])} & DECLARED.keys()
        assert known, f"{name} is imported, and pyproject.toml does not declare it"
        assert within or not all(DECLARED[each] for each in known), (
            f"{name} is of an extra; import it within the function that needs it"
        )


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "fedjax_post" else parts[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path):
    room = room_of(path)
    if room.endswith(".py"):  # the package's own face
        return
    allowed = ARROWS[room] | {room}
    for name in imports(path):
        assert any(name == a or name.startswith(f"{a}.") for a in allowed), (
            f"{room} may import {sorted(allowed)}, not {name}"
        )


def circles(edges: dict[str, set[str]]) -> list[str]:
    """Nodes of a graph that can be reached from themselves."""

    def reaches(start, goal, seen):
        stack = [start]
        while stack:
            for following in edges.get(stack.pop(), set()) - seen:
                if following == goal:
                    return True
                seen.add(following)
                stack.append(following)
        return False

    return [node for node in edges if reaches(node, node, set())]


def test_no_room_stands_in_a_circle():
    edges = {room: {n.split(".")[0] for p in SOURCES if room_of(p) == room for n in imports(p)}
             - {room} for room in ROOMS}  # fmt: skip
    assert circles(edges) == []


def test_no_module_stands_in_a_circle():
    """Faces of rooms aside: importing a module runs the `__init__` of its room first."""
    modules = {}
    for path in SOURCES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__init__":
            modules[".".join(parts[1:] if parts[0] == "fedjax_post" else parts)] = path
    of = lambda name: next((m for m in (name, name.rpartition(".")[0]) if m in modules), None)
    edges = {name: {of(n) for n in imports(path)} - {None, name} for name, path in modules.items()}
    assert sum(map(len, edges.values())) > 1000  # the names above are found
    assert circles(edges) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert code_lines(node) <= 60, f"{node.name} has {code_lines(node)} lines of code"
            arguments = node.args
            number = len(arguments.args) + len(arguments.kwonlyargs)
            assert number <= 8, f"{node.name} takes {number} arguments"


def code_lines(function: ast.FunctionDef) -> int:
    doc = function.body[0]
    has_doc = isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant)
    documented = doc.end_lineno - doc.lineno + 1 if has_doc else 0
    return function.end_lineno - function.lineno + 1 - documented


# Lines of a whole factory, signature included, without docstring and blank lines
YARDSTICK = {"fed_avg": 13, "fed_adam": 16, "scaffold": 28}


@pytest.mark.parametrize("factory", ALGORITHMS.values(), ids=ALGORITHMS)
def test_algorithms_are_within_the_yardstick(factory):
    lines = inspect.getsource(factory).splitlines()
    doc = ast.parse("\n".join(lines)).body[0].body[0]
    written = lines[: doc.lineno - 1] + lines[doc.end_lineno :]
    assert len([line for line in written if line.strip()]) <= YARDSTICK.get(factory.__name__, 60)


def test_public_symbols_are_documented():
    missing = []
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            kinds = ast.FunctionDef, ast.ClassDef
            if isinstance(node, kinds) and not node.name.startswith("_"):
                missing += [] if ast.get_docstring(node) else [f"{path.name}: {node.name}"]
    assert missing == []


def test_files_of_tests_have_names_of_their_own():
    """Two of one name cannot be collected together."""
    names = collections.Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name, count in names.items() if count > 1]


def test_importing_the_package_is_light():
    """Heavy libraries are imported where they are used, not before."""
    heavy = ["torch", "matplotlib", "datasets", "transformers", "safetensors"]
    code = f"import fedjax_post, sys; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_package_is_installed():
    with open(ROOT / "pyproject.toml", "rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    there = {path.parent.relative_to(ROOT).parts for path in SOURCES if path.name == "__init__.py"}
    names = [".".join(parts) for parts in there]
    names = [n if n.startswith("fedjax_post") else f"fedjax_post.{n}" for n in names]
    assert sorted(names) == sorted(listed)


@pytest.mark.heavy
def test_folders_of_the_same_name_in_the_working_directory_stand_in_no_way(tmp_path):
    for name in ("algorithms", "experiments"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not ours')")
    code = "from fedjax_post import study; from fedjax_post.experiments import train"
    command = [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r}); {code}"]
    subprocess.run(command, cwd=tmp_path, check=True)
