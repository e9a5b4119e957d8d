"""Reads folders of runs and comparisons, and finds which runs are seeds of one experiment."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post import integrity
from fedjax_post.report.comparison import RunScores, folder_of, read_run
from fedjax_post.report.holdings import NAME as HOLDINGS
from fedjax_post.report.records import Record

Content = dict[str, Any]
# Optional files of a run -> what is missing without them
_PARTS = {
    "spec.json": "its settings",
    "records.jsonl": "its rounds",
    "summary.json": "scores, costs, disclosure and origin, since the run has not ended",
    HOLDINGS: "who holds what",
    "clients.jsonl": "scores by client",
}


class RunFolder(NamedTuple):
    """The files of one run; those that it lacks are empty."""

    directory: Path
    settings: Content  # every field of the specification, by its path
    records: list[Record]
    summary: Content
    holdings: Content
    clients: list[Record]  # the scores of each client
    attacks: list[Record]  # what attacks on the run found
    disclosed: list[Record]  # the disclosure ledger

    @property
    def seed(self) -> int:
        """The seed of the run; -1 if the folder does not name it."""
        return next(
            (known["seed"] for known in (self.summary, self.settings) if "seed" in known), -1
        )

    @property
    def missing(self) -> list[str]:
        """Names of files that the folder lacks, and what is missing without them."""
        absent = {name: what for name, what in _PARTS.items() if not self.has(name)}
        return [f"{name}: {what}" for name, what in absent.items()]

    def has(self, name: str) -> bool:
        """Returns whether the run has a file."""
        return (self.directory / name).exists()


class Experiment(NamedTuple):
    """One experiment and its runs."""

    label: str
    runs: Mapping[int, RunFolder]  # by seed

    @property
    def any(self) -> RunFolder:
        """The run with the lowest seed that has ended, or else the one with the lowest seed."""
        return next(iter(self.ended.values()), next(iter(self.runs.values())))

    @property
    def ended(self) -> dict[int, RunFolder]:
        """The runs that have ended, by seed."""
        return {seed: run for seed, run in self.runs.items() if run.summary}

    @property
    def records(self) -> list[list[Record]]:
        """The records of each seed that has some."""
        return [run.records for run in self.runs.values() if run.records]

    def scores(self) -> dict[int, RunScores]:
        """Returns the results of the runs that have ended, by seed."""
        return {seed: read_run(run.directory) for seed, run in self.ended.items()}


def read_folder(directory: str | Path) -> RunFolder:
    """Returns the files of a run.

    Raises:
      FileNotFoundError: if the folder contains no run.
      DamagedError: naming a file that has changed since it was written.
    """
    directory = Path(directory)
    if not _is_run(directory):
        raise FileNotFoundError(
            f"{directory} contains neither a run nor a comparison; name a folder with spec.json, "
            "or one that experiments.compare or experiments.sweep has written"
        )
    whole = lambda name: (
        integrity.read_file(directory / name) if (directory / name).exists() else {}
    )
    lines = lambda name: (
        list(integrity.read_lines(directory / name)) if (directory / name).exists() else []
    )
    return RunFolder(
        directory,
        _flat(whole("spec.json")),
        lines("records.jsonl"),
        whole("summary.json"),
        whole(HOLDINGS),
        lines("clients.jsonl"),
        lines("attacks.jsonl"),
        lines("disclosure.jsonl"),
    )


def read_experiments(folders: Sequence[str | Path]) -> list[Experiment]:
    """Returns the experiments in some folders, in order; runs that differ only in seed are one.

    Args:
      folders: each of a run, or of a comparison, whose runs are then meant.

    Raises:
      FileNotFoundError: if a folder contains neither.
      DamagedError: naming a file that has changed since it was written.
      ValueError: if an experiment has two runs with the same seed.
    """
    if not folders:
        raise ValueError("folders are empty; give at least one run")
    groups: list[tuple[str | None, Content, dict[int, RunFolder]]] = []
    for label, run in _runs_in(map(Path, folders)):
        own = {path: value for path, value in run.settings.items() if path != "seed"}
        known = [g for g in groups if g[0] == label and g[1] == own and own]
        runs = known[0][2] if known else {}
        if not known:
            groups.append((label, own, runs))
        if run.seed in runs:
            raise ValueError(
                f"{run.directory} and {runs[run.seed].directory} are the same experiment with the "
                "same seed; give one of them"
            )
        runs[run.seed] = run
    labels = _labels(groups)
    return [
        Experiment(label, dict(sorted(runs.items())))
        for label, (_, _, runs) in zip(labels, groups, strict=True)
    ]


def _is_run(directory: Path) -> bool:
    return any((directory / name).exists() for name in ("spec.json", "records.jsonl"))


def _runs_in(folders: Iterator[Path]) -> Iterator[tuple[str | None, RunFolder]]:
    """Yields runs, with their labels where they are part of a comparison."""
    for folder in folders:
        found = [] if _is_run(folder) else sorted(folder.glob("*/seed-*"))
        if not found:
            yield None, read_folder(folder)
        labels = _labels_of(folder)
        order = {name: number for number, name in enumerate(labels)}
        place = lambda run, order=order: order.get(run.parent.name, len(order))
        for run in sorted(filter(_is_run, found), key=place):
            yield labels.get(run.parent.name, run.parent.name), read_folder(run)


def _labels_of(comparison: Path) -> dict[str, str]:
    """Returns the labels of a comparison by folder, in order; {} if it has not ended."""
    path = comparison / "comparison.json"
    rows = integrity.read_file(path)["rows"] if path.exists() else []
    return {folder_of(row["algorithm"]): row["algorithm"] for row in rows}


def _labels(groups: Sequence[tuple[str | None, Content, Mapping[int, RunFolder]]]) -> list[str]:
    """Returns the label of each experiment: as compared, or its method and what tells it apart."""
    named = [label or _method(next(iter(runs.values()))) for label, _, runs in groups]
    found = []
    for name, (label, own, runs) in zip(named, groups, strict=True):
        alike = [one for other, (_, one, _) in zip(named, groups, strict=True) if other == name]
        differ = [path for path in own if any(one.get(path) != own[path] for one in alike)]
        told = [f"{path.rpartition('.')[2]}={own[path]}" for path in differ]
        if len(alike) > 1 and not told:
            told = [f"folder={next(iter(runs.values())).directory.name}"]
        found.append(":".join([name, *told]) if len(alike) > 1 else label or name)
    return found


def _method(run: RunFolder) -> str:
    """Returns the name of a run's method; that of its folder if its files do not name it."""
    name = run.summary.get("algorithm", run.settings.get("method.name", run.directory.name))
    baseline = run.settings.get("method.baseline", "none")
    return str(name) if baseline == "none" else f"{name}, {baseline}"


def _flat(spec: Content) -> Content:
    """Returns the fields of a specification by their paths."""
    found: Content = {}
    for key, value in spec.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": item for name, item in value.items()}
        elif key not in ("format", "version"):
            found[key] = value
    return found
