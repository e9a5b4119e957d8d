"""Autonomy drills: what methods lose when a model stops, changes, or shuts clients out."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedjax_post.report.position.drills import FORGOTTEN
from fedjax_post.study import autonomy as faults_of
from fedjax_post.study import (
    cells,
    drill_folder,
    faults,
    folder,
    held_faults,
    hosting,
    other_hosts,
    peers,
    service_faults,
    version_faults,
)
from fedjax_post.study.build import build
from fedjax_post.study.faults import Settings
from fedjax_post.study.resolve import resolve
from fedjax_post.study.spec import Spec

_DRILLS = {
    "shutdown": faults.drill_shutdown,
    "changed": version_faults.drill_changed,
    "rate_limited": faults.drill_rate_limited,
    "refused": faults.drill_refused,
    **dict.fromkeys(faults_of.EXCLUSIONS, faults.drill_excluded),
    "tuned_withdrawn": service_faults.drill_tuned_withdrawn,
    "base_retired": version_faults.drill_base_retired,
    "excluded_memory": held_faults.drill_memory,
    "excluded_weights_licence": held_faults.drill_weights_licence,
    "withdrawn": held_faults.drill_withdrawn,
    "base_update": version_faults.drill_base_update,
    "base_renewed": version_faults.drill_base_renewed,
    FORGOTTEN: held_faults.drill_forgotten,
    "artefact": faults.drill_artefact,
}
_CHANGES = ("changed", "base_retired")  # those of another version of the target


class Drilled(NamedTuple):
    """Finished drills and their results."""

    directory: Path
    rows: list[dict[str, Any]]  # see `study.autonomy.over_seeds`

    def table(self) -> str:
        """Returns the rows as a text table."""
        return faults_of.table(self.rows)


def drills(
    specs: Sequence[Spec] | Mapping[str, Spec],
    *,
    chosen: Sequence[str] = faults_of.DRILLS,
    seeds: Sequence[int] = (0,),
    settings: Settings = Settings(),  # noqa: B008 - immutable
    directory: str | Path | None = None,
    ask_again: bool = False,
    command: str = "",
    show: cells.Show = print,
) -> Drilled:
    """Returns the losses of some experiments under faults.

    A fault begins at a state of the undisturbed run, or at the first round where it is an
    exclusion. After an interruption, the same call on the same folder continues; settings that
    change no run, such as budgets, may then differ. At a provider, calls are kept as those of any
    run are, and `max_queries` and `max_cost` hold for each run of a drill, the calls of the run
    that it continues included.

    Args:
      specs: the experiments, by label or in order.
      chosen: some of `study.autonomy.DRILLS`.
      seeds: of the runs.
      settings: when faults begin and how severe they are.
      directory: a new folder, or that of drills to continue; by default one below `runs`.
      ask_again: whether to repeat calls to a provider that may have been paid for already.
      command: how the drills were made, recorded in their file.
      show: called with each line of progress.

    Raises:
      ValueError, OSError, AccessError: for invalid input.
    """
    check(chosen)
    with folder.given_or_fresh(directory, "drills") as where:
        planned = cells.plan_runs(cells.label_specs(specs), seeds, where)
        rows = carry_out(planned, chosen, settings, ask_again=ask_again, show=show)
        folder.write_json(where / "drills.json", {"command": command, "rows": rows})
    return Drilled(where, rows)


def check(chosen: Sequence[str]) -> None:
    """Raises ValueError unless the names are some of `study.autonomy.DRILLS`."""
    wrong = [name for name in chosen if name not in faults_of.DRILLS]
    if wrong or not chosen:
        raise ValueError(f"drills={wrong or chosen}: give some of {', '.join(faults_of.DRILLS)}")


def carry_out(
    planned: Sequence[cells.Cell],
    chosen: Sequence[str],
    settings: Settings,
    *,
    ask_again: bool = False,
    show: cells.Show,
) -> list[dict[str, Any]]:
    """Runs all drills, and returns their rows as `study.autonomy.over_seeds` does.

    Args:
      planned: an experiment, seed and folder each.
      chosen: some of `study.autonomy.DRILLS`.
      settings: when faults begin and how severe they are.
      ask_again: as for `drills`.
      show: called with each line of progress.
    """
    rows: list[faults_of.Row] = []
    for cell in planned:
        rows += drill(cell, chosen, settings, ask_again=ask_again, show=show)
        jax.clear_caches()  # the next method shares none of the compiled programs
    return faults_of.over_seeds(rows)


def drill(
    cell: cells.Cell,
    chosen: Sequence[str],
    settings: Settings,
    *,
    ask_again: bool = False,
    show: cells.Show,
) -> list[faults_of.Row]:
    """Runs the drills of one method with one seed, and returns their rows.

    Args:
      cell: the experiment, its label in the rows, and the folder for its runs.
      chosen: some of `autonomy.DRILLS`.
      settings: when faults begin and how severe they are.
      ask_again: as for `drills`.
      show: called with each line of progress.

    Raises:
      BlockingIOError: if another process works on the folder; nothing is written then.
      ValueError, OSError, AccessError: for invalid input.
    """
    stage = _prepare(cell, chosen, settings)._replace(ask_again=ask_again)
    rows = []
    with peers.hold(cell.directory):
        drill_folder.claim(cell.directory, stage.spec, stage.settings)
        faults.play(stage, "fault", rounds=stage.settings.at_round)
        played = faults.play(stage, "undisturbed", after="fault")
        stage = stage._replace(base=faults.score_state(stage, played))
        show(f"{cell.label}, seed {stage.spec.seed}: {100 * stage.base:.1f} % undisturbed")
        for name in chosen:
            began = time.perf_counter()
            rows += _DRILLS[name](stage, name, played)
            show(f"  {name}: {time.perf_counter() - began:.0f} s")
    return rows


def _prepare(cell: cells.Cell, chosen: Sequence[str], settings: Settings) -> faults.Stage:
    """Returns a method prepared for its drills, after all was checked; writes nothing."""
    exact = settings.measure == "exact_match"
    spec = resolve(cell.spec.put({"scoring.exact_match": "on"}) if exact else cell.spec)
    settings = faults.fill_settings(settings, spec.training.rounds)
    changed = [name for name in chosen if name in _CHANGES]
    if hosting.is_hosted(spec) and changed and not settings.next_version:
        other_hosts.check(spec)  # before anything is paid
    if changed and settings.next_version and hosting.tunes(spec):
        raise ValueError(
            f"next_version={settings.next_version}: {changed[0]} of a model that its host has "
            "fine-tuned needs its host's files, which a host of another model does not have; leave "
            "next_version out, and the weights are changed instead, or leave out the method"
        )
    parts = build(spec)
    if any(name in chosen for name in (*faults_of.EXCLUSIONS, "excluded_weights_licence")):
        faults_of.check_excluded(faults.num_excluded(settings, parts), len(parts.data.clients))
    watch = () if parts.plan.telemetry is None else (parts.plan.telemetry,)
    programs = parts.plan.executor(parts.algorithm, *watch)
    plan = parts.plan._replace(executor=lambda *_: programs, resume=True)
    parts = parts._replace(plan=plan)
    return faults.Stage(parts, spec, cell.label, cell.directory, settings, base=0.0)
