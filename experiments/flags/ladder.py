"""Reads a ladder from a file: one task at every level of access.

A task is a file in `experiments/ladders`, or your own file, named by a path that ends in .toml:

    [task]              title; gate = { manual, soft, full }: the cells that show whether the base
                        can be prompted (manual_prompt, soft_prompt and lora)
    [common]            flags of experiments.train for every run
    [cells.NAME]        title, kind = "open", "closed", "baseline" or "control"; of a control also
                        which one, as control = "proxy"; other keys are its own flags
                        measure = "accuracy" compares cells by the rank of labels; budget: tokens
                        through the model for each cell
    [bases]             other bases for H6: names, and the cells that run on them
    [drills]            cells and drills; flags for their runs; other keys as in experiments.drills
    [attacks]           cells, attacks and rounds; [attacks.wires] and [attacks.protected]: flags
                        for the runs that are attacked, by name
    [longer]            times, cells and seeds: which are run with several times the budget, and
                        with how many seeds; [longer.flags.NAME]: what a cell of one round has more
    [search]            seed and trials; [search.cells.NAME]: flags, each with a list of values, of
                        which all combinations may be tried; [[search.cells.NAME]]: flags of one
                        setting, where some change together to keep to the budget
"""

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.attacks import ATTACKS
from fedjax_post.experiments.flags.parse import changes_in
from fedjax_post.study import Extras, Faults, Rung, Spec, Task
from fedjax_post.study.calls import parse as parse_call
from fedjax_post.study.faults import Settings
from fedjax_post.study.fields import conform, kinds_of, unknown
from fedjax_post.study.files import check_trusted
from fedjax_post.study.ladder_parts import KINDS, check
from fedjax_post.study.leaks import Leaks
from fedjax_post.study.longer import Longer
from fedjax_post.study.search import Search, Setting

FOLDER = Path(__file__).parent.parent / "ladders"
_NOT_FLAGS = ("title", "kind", "control")
_FLAGS = Mapping[str, Any]
_SETTINGS = {key: kind for key, kind in kinds_of(Settings).items() if key != "measure"}
# The tables, the keys of each and the types of their values; None for a table of any keys
_TABLES: Mapping[str, Mapping[str, Any] | None] = {
    "task": kinds_of(Task),
    "common": None,
    "cells": None,
    "bases": {"names": Sequence[str], "cells": Sequence[str]},
    "drills": {"cells": Sequence[str], "drills": Sequence[str], "flags": _FLAGS, **_SETTINGS},
    "attacks": {
        "cells": Sequence[str],
        "attacks": Sequence[str],
        "rounds": str,
        "wires": Mapping[str, _FLAGS],
        "protected": Mapping[str, _FLAGS],
    },
    "longer": {
        "cells": Sequence[str],
        "times": int,
        "seeds": int,
        "flags": Mapping[str, _FLAGS],
    },
    "search": {"seed": int, "trials": int, "cells": Mapping[str, Any]},
}


class Ladder(NamedTuple):
    """A task, and the methods that are run on it; see `study.ladder`."""

    task: Task
    rungs: dict[str, Rung]
    extras: Extras


def ladder_names() -> list[str]:
    """Returns the names of the tasks that the project has."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_ladder(name: str, typed: Mapping[str, Any], *, trust_code: bool = False) -> Ladder:
    """Returns the ladder of a task, checked.

    Args:
      name: one of `ladder_names()`, or the path of your own file, ending in .toml.
      typed: fields of every experiment, by path; they replace the file's.
      trust_code: whether functions that the file names may be imported.

    Raises:
      ValueError: if the file is not a ladder; names the file, the field and the remedy.
      FileNotFoundError: if there is no such file.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    content = _content(path, name)
    try:
        return _read(path, content, typed, trust_code)
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path, raw, typed: Mapping[str, Any], trust_code: bool) -> Ladder:
    content = {table: _typed(table, lines) for table, lines in raw.items()}
    common = _changes(content.get("common", {}), trust_code)
    rungs = {
        cell: _rung(path, cell, table, common, typed, trust_code)
        for cell, table in content["cells"].items()
    }
    for rung in rungs.values():
        check_trusted(rung.spec, typed, source=path, trust_code=trust_code)
    task, bases = Task(**content.get("task", {})), content.get("bases", {})
    faults = _faults(content.get("drills", {}), trust_code)
    leaks = _leaks(content.get("attacks", {}), trust_code)
    more = _longer(content.get("longer", {}), trust_code)
    searched = dict(content.get("search", {}))
    named = searched.pop("cells", {})
    for cell in (*task.gate.values(), *named):  # `check` knows of the others
        if cell not in rungs and cell not in Task().gate.values():
            raise ValueError(
                f"{path}: there is no [cells.{cell}]; the cells are {', '.join(rungs)}"
            )
    if bases.get("cells") and not bases.get("names"):
        raise ValueError("[bases] has cells, but no names of bases that they run on; give some")
    settings = {
        cell: _settings(content["cells"][cell], values, typed, trust_code)
        for cell, values in named.items()
    }
    extras = Extras(
        bases={base: bases.get("cells", []) for base in bases.get("names", [])},
        faults=faults,
        leaks=leaks,
        search=Search(settings, **searched),
        longer=more,
    )
    check(rungs, task, extras)
    return Ladder(task, rungs, extras)


def _content(path: Path, name: str) -> Mapping[str, Any]:
    if not path.exists():
        raise FileNotFoundError(
            f"--task={name}: there is no {path}; give a path ending in .toml, or one of "
            f"{', '.join(ladder_names())}"
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--task={name}: {path} is not TOML: {error}") from None
    others = [table for table in content if table not in _TABLES]
    missing = not isinstance(content.get("cells"), dict) or not content["cells"]
    if others or missing:
        raise ValueError(
            f"--task={name}: {f'[{others[0]}] is unknown' if others else '[cells] is missing'}; "
            f"the tables are {', '.join(_TABLES)}"
        )
    return content


def _typed(table: str, lines: Any) -> dict[str, Any]:
    """Returns the lines of a table, whose keys and types are those of `_TABLES`."""
    if not isinstance(lines, dict):
        raise ValueError(f"{table} is not a table; write [{table}] above its lines")
    kinds = _TABLES[table]
    if kinds is None:
        return lines
    for key in lines:
        if key not in kinds:
            raise ValueError(unknown(key, kinds, what=f"key of [{table}]"))
    return {key: conform(value, kinds[key], f"{table}.{key}") for key, value in lines.items()}


def _rung(path, name: str, table: Any, common, typed, trust_code: bool) -> Rung:
    if not isinstance(table, dict) or table.get("kind") not in KINDS:
        kind = table.get("kind") if isinstance(table, dict) else table
        raise ValueError(
            f"{path}: [cells.{name}] has kind = {kind!r}; give one of {', '.join(KINDS)}"
        )
    if "algorithm" not in table:
        raise ValueError(f"{path}: [cells.{name}] names no algorithm; give one")
    own = _changes(
        {key: value for key, value in table.items() if key not in _NOT_FLAGS}, trust_code
    )
    control = str(table.get("control", ""))
    if control and "model.name" in own:  # another model is what makes it a control
        typed = {path: value for path, value in typed.items() if path != "model.name"}
    spec = Spec().put(dict(common) | own | dict(typed))
    return Rung(spec, table["kind"], str(table.get("title", name)), control)


def _faults(table: Mapping[str, Any], trust_code: bool) -> Faults:
    rest = dict(table)
    cells, changes = rest.pop("cells", ()), _changes(rest.pop("flags", {}), trust_code)
    chosen = {"chosen": rest.pop("drills")} if "drills" in rest else {}
    return Faults(cells, changes=changes, settings=Settings(**rest), **chosen)


def _leaks(table: Mapping[str, Any], trust_code: bool) -> Leaks:
    rest = dict(table)
    wires, protected = (
        {name: _changes(flags, trust_code) for name, flags in rest.pop(key, {}).items()}
        for key in ("wires", "protected")
    )
    calls = [parse_call(text, ATTACKS)[0] for text in rest.pop("attacks", [])]
    return Leaks(attacks=calls, wires=wires, protected=protected, **rest)


def _longer(table: Mapping[str, Any], trust_code: bool) -> Longer:
    rest = dict(table)
    flags = rest.pop("flags", {})
    changes = {cell: _changes(own, trust_code) for cell, own in flags.items()}
    return Longer(changes=changes, **rest)


def _settings(table: Mapping[str, Any], values: Any, typed, trust_code: bool) -> list[Setting]:
    """Returns the settings of a cell: those that are listed, or all combinations of values."""
    own = {key: value for key, value in table.items() if key not in _NOT_FLAGS}
    before, found = _changes(own, trust_code), []
    for told in _listed(values):
        changed = _changes(own | told, trust_code)
        new = {
            path: x for path, x in changed.items() if path not in typed and before.get(path) != x
        }
        found.append(Setting(told, new))
    return found


def _listed(values: Any) -> list[dict[str, Any]]:
    """Returns the flags of each setting that a table of lists, or a list of tables, describes."""
    if isinstance(values, list) and all(isinstance(one, dict) for one in values):
        return values
    if isinstance(values, dict) and all(isinstance(one, list) for one in values.values()):
        combinations = itertools.product(*values.values())
        return [dict(zip(values, one, strict=True)) for one in combinations]
    raise ValueError(
        f"[search.cells] has {values!r}; give each flag a list of values, as client_lr = [0.1, 0.2]"
    )


def _changes(table: Mapping[str, Any], trust_code: bool) -> dict[str, Any]:
    if "flagfile" in table:
        raise ValueError(
            "a ladder has the key flagfile, another file; give that on the command line"
        )
    given = [f"--{name}={_text(value)}" for name, value in table.items()]
    return changes_in(given, trusted=trust_code)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
