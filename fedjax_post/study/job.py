"""A job: an experiment that has been checked and is ready to run, score and export.

Example:
  job = prepare(Spec(method="fed_adam"))
  print(job)  # model, clients, bytes on the wire and on disk
  for state, record in job.run(): ...
  job.score(state)
  job.export(state, "adapter")
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import fedjax_post
from fedjax_post.core.engine import State
from fedjax_post.evaluate.scores import Scores
from fedjax_post.simulate.record import Callback, Record
from fedjax_post.study import (
    build,
    export,
    factories,
    folder,
    hosting,
    metered,
    patience,
    peers,
    plan,
    scoring,
    watching,
)
from fedjax_post.study.build import Parts
from fedjax_post.study.fields import meaning_of
from fedjax_post.study.files import (
    Missing,
    plain_fields,
    read_unsupplied,
    supply,
    to_json,
    write_spec,
)
from fedjax_post.study.resolve import resolve
from fedjax_post.study.spec import PATHS, Spec

# Free fields that change the scores of a run, or what attacks on it are given
_COMPARED = (
    *("scoring.examples", "scoring.exact_match", "scoring.personal", "scoring.clients"),
    *("execution.record_wire", "execution.record_wire_clients"),
)


@dataclasses.dataclass(frozen=True)
class Job:
    """An experiment with its parts and its folder.

    Attributes:
      spec: as given; `parts.spec` has every default filled in.
      parts: models, data, algorithm and plan.
      directory: of the run; created when the run begins.
      resumed: the last checkpoint in the folder; None for a new run.
      ask_again: whether to repeat calls to a provider that may have been paid for already.
    """

    spec: Spec
    parts: Parts
    directory: Path
    resumed: Any = None
    ask_again: bool = False

    def __str__(self) -> str:
        return f"{plan.projection(self.parts)}\nresults    {self.directory}"

    @property
    def rounds_done(self) -> int:
        """Number of rounds up to the last checkpoint."""
        return 0 if self.resumed is None else self.resumed.rounds_done

    @property
    def start(self) -> State:
        """The state before the next round."""
        return self.parts.start if self.resumed is None else self.resumed.state

    def run(self, callbacks: Sequence[Callback] = ()) -> Iterator[tuple[State, Record]]:
        """Returns an iterator over (state, record), one pair for each round.

        A run that is left early can be continued: call `prepare` with `resume` on its folder.

        Args:
          callbacks: called with (state, record) after each round; their results are added to the
            record. The callbacks that compute the learning curve are included already.

        Raises:
          BlockingIOError: if another process writes to the folder.
        """
        with self.opened() as job:
            yield from rounds_of(job.parts, callbacks, rounds_done=job.rounds_done)

    def score(self, state: State) -> Scores:
        """Returns held-out scores of what is deployed; see `fedjax_post.evaluate.scores`."""
        return scoring.score_state(self.parts, state, self.parts.heldout, rounds=self.rounds_done)

    def export(self, state: State, path: str | Path) -> Path:
        """Writes the deployed model or adapter as a folder, and returns its path.

        See `hub.artefact`.
        """
        export.write(self.parts, state, Path(path))
        return Path(path)

    @contextlib.contextmanager
    def opened(self) -> Iterator["Job"]:
        """Returns a context with this job, which locks the folder while it is open.

        Writes the specification into the folder. Of a run that is resumed, the checkpoint is read
        again, as other processes may have continued the run since the job was prepared.

        Raises:
          BlockingIOError: if another process holds the folder; nothing is written then.
          FileExistsError: if another new run has been put there; nothing is written either.
          ValueError: if the run has more rounds by now than this job; nothing is written either.
        """
        with peers.hold(self.directory):
            resumed = _found(self.parts, self.directory) if self.parts.plan.resume else None
            with peers.together():
                if peers.is_first():
                    self._check_own()
                    write_spec(self.directory / folder.SPEC, self.spec)
            plan = self.parts.plan._replace(directory=self.directory)
            parts = self.parts._replace(plan=plan)
            if hosting.is_hosted(parts.spec):
                model = hosting.model_of(
                    parts.spec,
                    parts.tokenizer,
                    directory=self.directory,
                    ask_again=self.ask_again,
                    meter=parts.meter,
                )
                parts = parts._replace(model=model)
            yield dataclasses.replace(self, parts=parts, resumed=resumed)

    def _check_own(self) -> None:
        """Raises FileExistsError if a new run finds another one, prepared in the same second."""
        stored = self.directory / folder.SPEC
        if self.parts.plan.resume or not stored.exists():
            return
        if stored.read_text(encoding="utf-8") != to_json(self.spec):
            folder.check_unused(self.directory)


def prepare(
    spec: Spec,
    *,
    directory: str | Path | None = None,
    resume: bool = False,
    ask_again: bool = False,
) -> Job:
    """Returns the job of an experiment. Checks everything and writes nothing.

    Nothing is compiled, unless the algorithm asks the target: then two short rounds without the
    target are played, see `metering.confirm`.

    Args:
      spec: the experiment.
      directory: of the run: a new folder, or with `resume` that of a run. By default a new one
        below `runs`, named by the time and the algorithm.
      resume: whether to continue the run in `directory`. All fields must be equal except those
        marked `free`; the number of rounds may grow where no other setting depends on it.
      ask_again: with `resume`, whether to repeat calls to a provider that may have been paid for
        already.

    Raises:
      ValueError, OSError, AccessError: for invalid input, naming the field, its value and the
        remedy.

    >>> from fedjax_post.study.learning import Data
    >>> from fedjax_post.study.running import Training
    >>> data, training = Data("builtin", num_clients=8), Training(rounds=2, cohort_size=2)
    >>> job = prepare(Spec(method="fed_avg", data=data, training=training))
    >>> len(job.parts.data.clients), job.rounds_done
    (8, 0)
    """
    where = None if directory is None else Path(directory)
    if resume:
        spec = _keep_dtype(spec, folder.spec_file(where))
    resolved = resolve(spec)
    spec = spec.put({"model.dtype": resolved.model.dtype})
    if resume:
        check_same(spec, folder.spec_file(where))
    elif where is not None:
        folder.check_unused(where)
    with peers.together():
        parts = build.build(resolved)
        patience.check_scored(parts)
    where = peers.agree_on(where or folder.unused(_label(spec)))
    parts = parts._replace(plan=parts.plan._replace(resume=resume))
    return Job(spec, parts, where, _found(parts, where) if resume else None, ask_again)


def check_same(now: Spec, stored: Path, *, alike: bool = False) -> None:
    """Checks that an experiment is the one of a stored run.

    Args:
      now: the experiment.
      stored: file with the run's specification.
      alike: whether their scores are put in one table, so that the number of rounds must be equal
        too, and the free fields that decide what is scored or recorded.

    Raises:
      ValueError: naming the first field that differs, and both values.
    """
    before = read_unsupplied(stored)
    now = _keep_dtype(now, stored)
    written, given = (
        plain_fields(resolve(_without_missing(before, now))),
        plain_fields(resolve(now)),
    )
    fixed = set(_COMPARED if alike else ())
    fixed |= set(patience.DECIDES if now.scoring.patience is not None else ())
    for path, field in PATHS.items():
        meaning = meaning_of(field)
        is_free = meaning is not None and meaning.free and path not in fixed
        if written[path] == given[path] or is_free:
            continue
        why = _by_rounds(before) if path == "training.rounds" else ""
        if path == "training.rounds" and not (why or alike):
            continue
        raise ValueError(
            f"{path}={given[path]} differs from the run in {stored.parent}, which has "
            f"{written[path]}{why}; leave it out to resume, or give another `directory`"
        )


def _keep_dtype(spec: Spec, stored: Path) -> Spec:
    """Returns the experiment with the stored run's dtype, which its machine chose, or its own."""
    chosen = read_unsupplied(stored).model.dtype
    return spec if spec.model.dtype is not None else spec.put({"model.dtype": chosen})


def _without_missing(before: Spec, now: Spec) -> Spec:
    """Returns the stored experiment with its `Missing` values supplied from the present one."""
    found = {path: now.at(path) for path in PATHS if isinstance(before.at(path), Missing)}
    return supply(before, found, source="the run's specification") if found else before


def rounds_of(
    parts: Parts, callbacks: Sequence[Callback], *, rounds_done: int
) -> Iterator[tuple[State, Record]]:
    """Returns an iterator over the remaining rounds; the caller holds the run's folder.

    Args:
      parts: of the run.
      callbacks: as for `Job.run`.
      rounds_done: number of rounds up to the checkpoint that the run continues from.
    """
    spec, directory = parts.spec, Path(parts.plan.directory or "")
    stopping: list[Callback] = []
    if spec.scoring.patience is not None:
        earlier = patience.earlier_records(directory, rounds_done)
        if len(earlier) == rounds_done and any(record.get(patience.STOPPED) for record in earlier):
            return
        stopping = [patience.watch(spec, earlier)]
    model, counting = metered.training(parts)
    with watching.watched(spec, directory, rounds_done=rounds_done) as watchers:
        rounds: Any = fedjax_post.run(
            parts.algorithm,
            model,
            parts.data.clients,
            params=parts.params,
            rounds=spec.training.rounds,
            plan=parts.plan,
            callbacks=[*scoring.callbacks(parts), *counting, *stopping, *callbacks, *watchers],
        )
        with closing(rounds):
            yield from patience.until_stopped(rounds)


def _by_rounds(spec: Spec) -> str:
    """Returns which setting depends on the number of rounds, as the end of a sentence, or ""."""
    for name in ("client_schedule", "server_schedule"):
        if getattr(spec.method, name) not in (None, "constant"):
            return f" and `{name}` depends on it"
    for name in ("epsilon", "bands"):
        if getattr(spec.privacy, name) is not None:
            return f" and `privacy.{name}` depends on it"
    return ""


def _found(parts: Parts, directory: Path) -> Any:
    """Returns the run's last checkpoint; None if it stopped before its first one."""
    if not (directory / "checkpoints").exists():
        return None
    snapshot = fedjax_post.restore(
        directory, parts.algorithm, parts.params, identity=parts.plan.identity
    )
    rounds = parts.spec.training.rounds
    if snapshot is not None and snapshot.rounds_done > rounds:
        raise ValueError(
            f"`training.rounds={rounds}`: the run in {directory} has {snapshot.rounds_done} rounds "
            "already; give at least as many"
        )
    return snapshot


def _label(spec: Spec) -> str:
    name = factories.display_name(spec.method.name)
    return name if spec.method.baseline == "none" else f"{name}-{spec.method.baseline}"
