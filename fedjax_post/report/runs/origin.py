"""Where the numbers of a page come from: settings, commands, versions, folders."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedjax_post import integrity
from fedjax_post.report.markup import Block, Bullets, Code, Prose, Table
from fedjax_post.report.runs.folders import Experiment
from fedjax_post.report.runs.sections import missing, plain
from fedjax_post.report.scatter import readable


def settings(experiments: Sequence[Experiment]) -> list[Block]:
    """Returns tables of the settings in which the experiments differ, and of those they share."""
    found = {
        readable(one.label): one.any.summary.get("settings") or one.any.settings
        for one in experiments
    }
    keys = list(dict.fromkeys(key for own in found.values() for key in own if key != "seed"))
    if not keys:
        return [missing("settings")]
    text = lambda own, key: json.dumps(own.get(key), default=str)
    differ = [key for key in keys if len({text(own, key) for own in found.values()}) > 1]
    first = next(iter(found.values()))
    blocks: list[Block] = []
    if differ:
        rows = [[key, *(_shown(own.get(key)) for own in found.values())] for key in differ]
        blocks += [Prose("In these the experiments differ:"), Table(["setting", *found], rows)]
    alike = [[key, _shown(first.get(key))] for key in keys if key not in differ]
    told = "These are the same in all; settings that are not listed have their defaults:"
    return [*blocks, Prose(told), Table(["setting", "value"], alike)]


def origin(experiments: Sequence[Experiment]) -> list[Block]:
    """Returns models, data, devices, versions and commands of all runs."""
    summaries = [run.summary for one in experiments for run in one.ended.values()]
    if not summaries:
        return [missing("commands and versions, since no run has ended")]
    each = lambda name: _distinct(summary.get(name) for summary in summaries)
    versions = _distinct(
        ", ".join(f"{name} {number}" for name, number in summary.get("versions", {}).items())
        for summary in summaries
    )
    facts = [
        f"model: {each('model')}",
        f"data: {each('dataset')}",
        f"held-out rows: {each('heldout_examples')}",
        f"digest of the held-out rows: {each('heldout_digest')}",
        f"device: {each('device')}",
        f"commit: {each('commit')}",
        f"versions: {versions}",
    ]
    scored = {(summary.get("seed"), summary.get("heldout_digest")) for summary in summaries}
    if len(scored) > len({seed for seed, _ in scored}):
        facts.append("Runs with the same seed were not all scored on the same held-out rows.")
    commands = list(dict.fromkeys(filter(None, map(_command, _runs(experiments)))))
    told = Code(commands) if commands else missing("commands; the runs were made in a notebook")
    return [Bullets(facts), told]


def warnings(experiments: Sequence[Experiment]) -> list[str]:
    """Returns what the runs warn of."""
    return [
        f"{readable(one.label)}, seed {seed}: {warning}"
        for one in experiments
        for seed, run in one.ended.items()
        for warning in run.summary.get("warnings", [])
    ]


def gaps(experiments: Sequence[Experiment]) -> list[str]:
    """Returns the files that the runs lack, and what is missing without them."""
    return [
        f"{readable(one.label)}, seed {seed}: {gap}"
        for one in experiments
        for seed, run in one.runs.items()
        for gap in run.missing
    ]


def folders(experiments: Sequence[Experiment]) -> list[Block]:
    """Returns the table of the runs' folders."""
    rows = [
        [readable(one.label), str(seed), str(len(run.records)), str(run.directory)]
        for one in experiments
        for seed, run in one.runs.items()
    ]
    return [Table(["experiment", "seed", "rounds", "folder"], rows)]


def _runs(experiments: Sequence[Experiment]) -> list[Any]:
    return [run for one in experiments for run in one.runs.values()]


def _command(run: Any) -> str:
    """Returns the command that made a run, or the comparison that it is part of."""
    path = Path(run.directory).parent.parent / "comparison.json"
    own = run.summary.get("command")
    if own or not path.exists() or not run.directory.name.startswith("seed-"):
        return own or ""
    return integrity.read_file(path).get("command", "")


def _shown(value: Any) -> str:
    return (
        ", ".join(f"{key}={plain(item)}" for key, item in value.items())
        if isinstance(value, dict)
        else plain(value)
    )


def _distinct(values: Any) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if value)) or "missing"
