"""Comparisons of experiments with the same seeds, by utility and by bytes sent.

Example:
  compare([spec, spec.replace(method="scaffold")], seeds=(0, 1, 2)).table()
  sweep(spec, {"method.client_lr": [0.1, 0.3]}, seeds=(0, 1)).plot()
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.report import comparison
from fedjax_post.study import cells, folder
from fedjax_post.study.spec import Spec


class Picture(NamedTuple):
    """A PNG file that a notebook shows inline."""

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


class Comparison(NamedTuple):
    """Finished experiments, read from their folders."""

    directory: Path
    labels: tuple[str, ...]

    def rows(self) -> list[comparison.Row]:
        """Returns one row for each experiment, with means and intervals over its seeds."""
        return comparison.compare(self.directory, self.labels)

    def table(self) -> str:
        """Returns the rows as a Markdown table, best first."""
        return comparison.table(self.rows())

    def plot(self) -> Picture:
        """Returns the plot of utility against bytes."""
        return Picture(self.directory / "comparison.png")


def compare(
    specs: Sequence[Spec] | Mapping[str, Spec],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    directory: str | Path | None = None,
    ask_again: bool = False,
    command: str = "",
    show: cells.Show = print,
) -> Comparison:
    """Returns the comparison of some experiments; finished runs are not repeated.

    After an interruption, the same call on the same folder continues. Experiments and seeds may
    be added to a finished comparison in the same way. Several processes that make the same call
    share its runs, and the first one that finds all of them done writes the files.

    Args:
      specs: the experiments, by label or in order; the others are compared with the first.
      seeds: of the runs; each replaces the experiment's own seed.
      directory: a new folder, or that of a comparison to continue; by default one below `runs`.
      ask_again: whether to repeat calls to a provider that may have been paid for already.
      command: how the comparison was made, recorded in its files.
      show: called with each line of progress.

    Raises:
      ValueError, OSError, AccessError: for invalid input, before any run starts.
    """
    labelled = cells.label_specs(specs)
    with folder.given_or_fresh(directory, "comparison") as where:
        planned = cells.plan_runs(labelled, seeds, where)
        cells.check(planned)
        done = sum(cell.done for cell in planned)
        show(f"{len(planned)} runs, {done} of them finished, in {where}")
        cells.carry_out_all(planned, ask_again=ask_again, show=show)
        with folder.claim(where) as mine:
            if mine:
                comparison.write(where, list(labelled), command=command)
            else:
                show(f"another process writes the files, in {where}")
    return Comparison(where, tuple(labelled))


def sweep(
    spec: Spec,
    grid: Mapping[str, Sequence[Any]],
    *,
    seeds: Sequence[int] = (0,),
    directory: str | Path | None = None,
    ask_again: bool = False,
    command: str = "",
    show: cells.Show = print,
) -> Comparison:
    """Returns the comparison of all combinations of values of some fields.

    Args:
      spec: the experiment whose fields are varied.
      grid: values by the paths of fields, such as `{"method.client_lr": [0.1, 0.3]}`.
      seeds: as for `compare`.
      directory: as for `compare`.
      ask_again: as for `compare`.
      command: as for `compare`.
      show: as for `compare`.

    Raises:
      ValueError, OSError, AccessError: as `compare`.

    `sweep(spec, {"method.client_lr": [0.1, 0.3]}, seeds=(0, 1))` makes four runs.
    """
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    specs = {_label_of(point): spec.put(point) for point in points}
    given: Any = {"seeds": seeds, "directory": directory, "ask_again": ask_again}
    return compare(specs, **given, command=command, show=show)


def _label_of(point: Mapping[str, Any]) -> str:
    return ",".join(f"{path.rpartition('.')[2]}={value}" for path, value in point.items())
