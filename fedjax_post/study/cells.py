"""Many experiments with several seeds, each run in its own folder; finished runs are kept."""

import contextlib
import gc
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from fedjax_post.core.access import AccessError
from fedjax_post.report import comparison
from fedjax_post.report.records import read_summary
from fedjax_post.study import factories, folder, precision, trained
from fedjax_post.study.carry_out import carry_out
from fedjax_post.study.files import identity, read_unsupplied
from fedjax_post.study.job import Job, check_same, prepare
from fedjax_post.study.resolve import resolve
from fedjax_post.study.spec import Spec

Show = Callable[[str], object]
_PAUSE = 5.0  # seconds between two looks at runs of other processes


class Cell(NamedTuple):
    """One run of a comparison: an experiment with one seed, and its folder."""

    label: str
    spec: Spec
    directory: Path

    @property
    def done(self) -> bool:
        """Whether the run has ended."""
        return (self.directory / "summary.json").exists()


def label_specs(specs: Sequence[Spec] | Mapping[str, Spec]) -> dict[str, Spec]:
    """Returns experiments by label: the given one, else the method and the settings that differ.

    Raises:
      ValueError: if there are no experiments, or two are equal.
    """
    if isinstance(specs, Mapping):
        found = dict(specs)
    else:
        settings = [identity(spec) for spec in specs]
        common = [path for path in settings[0] if all(path in s for s in settings)] if specs else []
        common = [path for path in common if all(s[path] == settings[0][path] for s in settings)]
        names = [_label(spec, own, common) for spec, own in zip(specs, settings, strict=True)]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"specs contain {twice[0]} twice; give it once")
        found = dict(zip(names, specs, strict=True))
    if not found:
        raise ValueError("specs are empty; give at least one experiment")
    return found


def plan_runs(specs: Mapping[str, Spec], seeds: Sequence[int], directory: Path) -> list[Cell]:
    """Returns the runs, ordered by seed and then by experiment.

    Args:
      specs: experiments by label.
      seeds: distinct; each replaces the experiment's own seed.
      directory: parent of the runs' folders.

    Raises:
      ValueError: for an empty list of seeds, a repeated seed, or two labels of one folder.
    """
    check_seeds(seeds)
    planned = [
        Cell(label, spec.replace(seed=seed), where(directory, label, seed))
        for seed in seeds
        for label, spec in specs.items()
    ]
    _check_apart(planned)
    return planned


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises ValueError for an empty list of seeds, or a repeated seed."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={list(seeds)} must be distinct numbers; give some as 0, 1, 2")


def where(directory: Path, label: str, seed: int) -> Path:
    """Returns the folder of one run.

    Args:
      directory: of the comparison.
      label: of the experiment.
      seed: of the run.
    """
    return directory / comparison.folder_of(label) / f"seed-{seed}"


def _check_apart(cells: Sequence[Cell]) -> None:
    """Raises ValueError for two runs in one folder, of which one would be taken for the other."""
    labels: dict[Path, str] = {}
    for cell in cells:
        other = labels.setdefault(cell.directory, cell.label)
        if other != cell.label:
            raise ValueError(
                f"{other!r} and {cell.label!r} have the same folder, {cell.directory.parent.name}, "
                "as only letters, digits and _.= are kept of a label; give one of them another "
                "label, or another `directory`"
            )


class _Once(logging.Filter):
    """Lets each message of a handler through once."""

    def __init__(self):
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a message is new."""
        message = record.getMessage()
        new = message not in self.said
        self.said.add(message)
        return new


@contextlib.contextmanager
def _saying_once() -> Iterator[None]:
    """A context in which a message is logged once: many runs read the same data."""
    handlers = logging.getLogger().handlers or filter(None, [logging.lastResort])
    filters = [(handler, _Once()) for handler in handlers]
    for handler, once in filters:
        handler.addFilter(once)
    try:
        yield
    finally:
        for handler, once in filters:
            handler.removeFilter(once)


@_saying_once()
@trained.reading_once()
def check(cells: Sequence[Cell], *, note_fn: Callable[[Cell, Job], object] | None = None) -> None:
    """Checks all experiments, and that folders hold no other runs, before any run starts.

    Runs with other seeds beside them, which a report reads too, must be the same experiments.

    Args:
      cells: the runs.
      note_fn: called with the first run of each label, and its job, unless the run has begun.

    Raises:
      ValueError, OSError, AccessError: for invalid input, naming the run.
    """
    _check_apart(cells)
    _check_begun(cells)
    check_dtypes(cells)
    seen = set()
    for cell in cells:
        if cell.label not in seen and not (cell.directory / folder.SPEC).exists():
            with _naming(cell):
                job = prepare(cell.spec, directory=cell.directory)
                if note_fn is not None:
                    note_fn(cell, job)
            del job
            gc.collect()  # a job holds a model in cycles of references; many would pile up
        seen.add(cell.label)


def _check_begun(cells: Sequence[Cell]) -> None:
    """Raises ValueError for a run that has begun with other settings than a cell of its folder."""
    checked = set()
    for cell in cells:
        for spec, stored in _begun(cell):
            if stored not in checked:
                checked.add(stored)
                with _naming(cell):
                    check_same(spec, stored, alike=True)


def check_dtypes(cells: Sequence[Cell]) -> None:
    """Checks that machines have chosen, and this one would choose, one dtype for runs of a model.

    Args:
      cells: the runs of a report.

    Raises:
      ValueError: naming a run of each dtype, and the remedy.
    """
    by_model: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if precision.is_chosen(cell.spec):
            model = cell.spec.model.name, cell.spec.model.quantize
            by_model.setdefault(model, []).append(cell)
    for own in by_model.values():
        _check_dtype(own)


def _check_dtype(cells: Sequence[Cell]) -> None:
    """Raises ValueError if runs of one model have two dtypes, or would have."""
    found: dict[str, str] = {}
    # Cells of one label share the runs beside them
    for stored in dict.fromkeys(stored for cell in cells for _, stored in _begun(cell)):
        if (dtype := read_unsupplied(stored).model.dtype) is not None:
            found.setdefault(dtype, f"the run in {stored.parent}")
    first = next(iter(found), None)
    new = next((cell for cell in cells if not (cell.directory / folder.SPEC).exists()), None)
    if new is not None:
        with _naming(new):
            chosen = str(resolve(new.spec).model.dtype)
        found.setdefault(chosen, f"{new.label} on this machine")
    if len(found) > 1:
        told = " and ".join(f"{dtype} in {run}" for dtype, run in found.items())
        raise ValueError(
            f"runs of {cells[0].spec.model.name} would have {told}, and one table cannot mix "
            f"them; give model.dtype={first}, and remove runs that have another one"
        )


def _begun(cell: Cell) -> Iterator[tuple[Spec, Path]]:
    """Yields what a run and those with other seeds beside it should be, and the stored files."""
    for stored in sorted(cell.directory.parent.glob(f"*/{folder.SPEC}")):
        seed = re.fullmatch(r"seed-(\d+)", stored.parent.name)
        if stored.parent == cell.directory:
            yield cell.spec, stored
        elif seed:
            yield cell.spec.replace(seed=int(seed[1])), stored


@contextlib.contextmanager
def _naming(cell: Cell) -> Iterator[None]:
    """A context whose errors begin with the label of a run."""
    try:
        yield
    except (ValueError, OSError, AccessError) as error:
        error.args = (f"{cell.label}: {error}",)
        raise


@_saying_once()
def carry_out_all(cells: Sequence[Cell], *, ask_again: bool = False, show: Show = print) -> None:
    """Runs the unfinished cells one after the other, and shows a line before and after each.

    Several processes may do so with the same cells: each takes those that no other one runs, and
    returns when all cells are done. If a process ends early, another one continues its run.

    Args:
      cells: the runs.
      ask_again: as for `prepare`, of runs that are continued.
      show: called with each line.

    Raises:
      ValueError: if another process has run a cell with other settings or another dtype.
    """
    left = [cell for cell in cells if not cell.done]
    total, began, waits = len(left), time.perf_counter(), False
    while left:
        number = total - len(left) + 1
        place = f"{number}/{total}"
        run = partial(_carry_out, cells=cells, show=show, place=place, ask_again=ask_again)
        mine = next((cell for cell in left if run(cell)), None)
        left = [cell for cell in left if not cell.done]
        if mine is not None:
            done = total - len(left)
            minutes = (time.perf_counter() - began) / done * len(left) / 60
            scores = comparison.describe(comparison.read_run(mine.directory))
            show(f"      {scores}; about {minutes:.0f} minutes left")
            for warning in read_summary(mine.directory).get("warnings") or []:
                show(f"      warning: {warning}")
        elif left:
            if not waits:
                show(f"waiting for {len(left)} runs of other processes")
            waits = True
            time.sleep(_PAUSE)
    _check_begun(cells)  # runs of other processes may have begun after `check`
    check_dtypes(cells)


def _carry_out(
    cell: Cell, *, cells: Sequence[Cell], show: Show, place: str, ask_again: bool
) -> bool:
    """Runs one of some cells unless it is done or another process runs it, and returns whether."""
    with folder.claim(cell.directory) as mine:
        if not mine or cell.done:
            return False
        show(f"{place}  {cell.label}, seed {cell.spec.seed}")
        resume = (cell.directory / folder.SPEC).exists()
        _check_begun([cell])
        check_dtypes(cells)
        job = prepare(cell.spec, directory=cell.directory, resume=resume, ask_again=ask_again)
        carry_out(job)
        del job
        gc.collect()  # its model is gone before the next one is read
        jax.clear_caches()  # the next experiment shares none of the compiled programs
    return True


def _label(spec: Spec, settings: Mapping[str, object], common: Sequence[str]) -> str:
    own = []
    for path, value in settings.items():
        if path in common or path in ("method.name", "seed"):
            continue
        if path == "method.params" and isinstance(value, Mapping):
            own += [f"{name}={item}" for name, item in value.items()]
        else:
            own.append(f"{path.rpartition('.')[2]}={value}")
    return ":".join([factories.display_name(spec.method.name), *own])
