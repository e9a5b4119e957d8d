"""The page of the releases' numbers: what the code has, and what benchmarks have measured of it.

Numbers of the first kind are counted when the site is built. Those of the second kind are lines of
`experiments/benchmark/results.jsonl`, each with version, commit, machine and command.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import fedjax_post
from fedjax_post.algorithms import ALGORITHMS
from fedjax_post.attacks import ATTACKS
from fedjax_post.data.rules import RULES as PARTITIONS
from fedjax_post.experiments.benchmark import lines, table
from fedjax_post.hub.families import FAMILIES
from fedjax_post.openness import passport_names
from fedjax_post.study.spec import PATHS
from fedjax_post.study.wires import LINKS, RULES

Line = Mapping[str, Any]
_HEAD = """# Numbers of the releases

Counted in the code of version {version}, and measured by its benchmarks. Scores of methods are on
the page [Results](docs/results.md), costs in full on the page [Costs](docs/costs.md), and what
changed in the [changelog](CHANGELOG.md).

Before a release `.ci/run` must pass from a clean environment: the main job, all tests, the
notebooks, wheel and sdist installed elsewhere, this site, and parity with PyTorch, peft and
lm-eval.
"""
_COUNTED = {
    "algorithms": ("fedjax_post.algorithms.ALGORITHMS", ALGORITHMS),
    "links (compression of uploads)": ("fedjax_post.study.wires.LINKS", LINKS),
    "robust aggregation rules": ("fedjax_post.study.wires.RULES", RULES),
    "rules of who holds what": ("fedjax_post.data.rules.RULES", PARTITIONS),
    "families of models": ("fedjax_post.hub.families.FAMILIES", FAMILIES),
    "attacks that invert updates": ("fedjax_post.attacks.ATTACKS", ATTACKS),
    "passports of models": ("fedjax_post.openness.passport_names()", passport_names()),
    "fields of an experiment": ("fedjax_post.study.spec.PATHS", PATHS),
}


def pages() -> dict[str, str]:
    """Returns Markdown by path."""
    return {"releases.md": text(lines.read(lines.RESULTS))}


def text(measured: Sequence[Line]) -> str:
    """Returns the page.

    Args:
      measured: lines of the results file, oldest first.
    """
    latest = table.latest(measured)
    parts = [
        _HEAD.format(version=fedjax_post.__version__).strip(),
        "## What the code has",
        _counted(),
    ]
    parts += ["## What was measured", _suites(latest), "## Aims that are not met"]
    missed = [line for line in latest if line["met"] is False]
    parts.append(table.figures_table(missed) if missed else "None.")
    parts += ["## Then and now", _changes(measured)]
    return "\n\n".join(parts) + "\n"


def _counted() -> str:
    rows = [(name, str(len(found)), f"`len({path})`") for name, (path, found) in _COUNTED.items()]
    return _table(("what", "number", "counted by"), rows)


def _suites(latest: Sequence[Line]) -> str:
    suites: dict[str, list[Line]] = {}
    for line in latest:
        suites.setdefault(line["suite"], []).append(line)
    rows = []
    for name, found in suites.items():
        aimed = [line for line in found if line["aim"]]
        met = f"{sum(line['met'] for line in aimed)} of {len(aimed)}" if aimed else "no aims"
        where = _list(f"{_version(line)}, {_commit(line)}" for line in found)
        command = f"`python -m experiments.benchmark --suite={name}`"
        rows.append((name, str(len(found)), met, where, command))
    return _table(("suite", "figures", "aims met", "version, commit", "command"), rows)


def _changes(measured: Sequence[Line]) -> str:
    """Returns the first and the last measurement of figures that have several."""
    figures: dict[tuple[str, str], list[Line]] = {}
    for line in measured:
        figures.setdefault((line["suite"], line["figure"]), []).append(line)
    rows = [
        (suite, figure, *(f"{_value(line)} ({_commit(line)})" for line in (found[0], found[-1])))
        for (suite, figure), found in figures.items()
        if len(found) > 1
    ]
    if not rows:
        return "No figure has been measured twice."
    head = ("suite", "figure", "first measured", "last measured")
    told = "Figures that were measured more than once, with the commit and the day of each."
    return f"{told}\n\n{_table(head, rows)}"


def _version(line: Line) -> str:
    return line["versions"]["fedjax_post"]


def _commit(line: Line) -> str:
    return f"{str(line['commit'])[:7]}, {line['date'][:10]}"


def _value(line: Line) -> str:
    return table.amount(line["value"], line["unit"])


def _list(texts) -> str:
    return "; ".join(dict.fromkeys(texts))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    every = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in every)
