"""Several experiments on the same clients, seeds and budget, and what each gives for its bytes.

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
    """A picture in a file; a notebook shows it."""

    path: Path

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


class Comparison(NamedTuple):
    """Experiments that were carried out, read from their folders."""

    directory: Path
    labels: tuple[str, ...]

    def rows(self) -> list[comparison.Row]:
        """Returns a row for each experiment, with means and intervals over its seeds."""
        return comparison.compare(self.directory, self.labels)

    def table(self) -> str:
        """Returns the rows as a Markdown table, the best first."""
        return comparison.table(self.rows())

    def plot(self) -> Picture:
        """Returns the picture of utility against bytes."""
        return Picture(self.directory / "comparison.png")


def compare(
    specs: Sequence[Spec] | Mapping[str, Spec],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    directory: str | Path | None = None,
    command: str = "",
    show: cells.Show = print,
) -> Comparison:
    """Returns the comparison of some experiments; runs that are finished are not repeated.

    The same call on the same folder goes on after an interruption; experiments and seeds may be
    added.

    Args:
      specs: the experiments, by label or in order; the first is what others are held against.
      seeds: of the runs; they take the place of each experiment's own.
      directory: a new folder, or that of a comparison to go on with; by default below `runs`.
      command: how the comparison was made, for its files.
      show: called with a line for each run.

    Raises:
      ValueError, OSError, AccessError: for input that will not do, before any run is started.
    """
    directory = Path(directory or folder.fresh("comparison"))
    labelled = cells.labelled(specs)
    planned = cells.planned(labelled, seeds, directory)
    cells.check(planned)
    done = sum(cell.done for cell in planned)
    show(f"{len(planned)} runs, {done} of them finished, in {directory}")
    cells.carry_out_all(planned, show=show)
    comparison.write(directory, list(labelled), command=command)
    return Comparison(directory, tuple(labelled))


def sweep(
    spec: Spec,
    grid: Mapping[str, Sequence[Any]],
    *,
    seeds: Sequence[int] = (0,),
    directory: str | Path | None = None,
    command: str = "",
    show: cells.Show = print,
) -> Comparison:
    """Returns the comparison of all combinations of some fields' values.

    Args:
      spec: what does not vary.
      grid: values by the paths of fields, such as `{"method.client_lr": [0.1, 0.3]}`.
      seeds: as for `compare`.
      directory: as for `compare`.
      command: as for `compare`.
      show: as for `compare`.

    Raises:
      ValueError, OSError, AccessError: as `compare`.
    """
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    specs = {_named(point): spec.put(point) for point in points}
    return compare(specs, seeds=seeds, directory=directory, command=command, show=show)


def _named(point: Mapping[str, Any]) -> str:
    return ",".join(f"{path.rpartition('.')[2]}={value}" for path, value in point.items())
