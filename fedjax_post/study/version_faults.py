"""Faults in which another version takes the place of the model, the same on both sides.

| notice | a host does it | whoever holds the weights does it |
| --- | --- | --- |
| none: what was trained meets the next version as it is | changed | base_update |
| enough to train again, as long as at first | base_retired | base_renewed |

Each row has the score at once, at the round at which faults begin, in `at_fault` and `at_change`.
Where all is trained again, `*_again` say what that takes. Weights that are held can also be kept:
then nothing is lost and nothing trained, by definition, which the row of `base_retired` says.
Passports name the notices of real hosts (`retirement`).
"""

from pathlib import Path
from typing import Any

import jax

from fedjax_post.core.values import SUMMED
from fedjax_post.disclosure.ledger import carried_in
from fedjax_post.disclosure.meter import Purpose
from fedjax_post.report.records import read_records
from fedjax_post.study import autonomy, costs, hosting, metering, other_hosts
from fedjax_post.study.autonomy import Row
from fedjax_post.study.faults import (
    Played,
    Stage,
    model_of,
    play,
    row_of,
    score_state,
    unchanged_row,
)
from fedjax_post.study.resolve import resolve

NO_WEIGHTS = "clients do not hold the target's weights"
_PINNED = (
    "whoever holds the weights keeps the old version: nothing is lost and nothing is trained, as "
    "long as it does without what the next version has"
)


def drill_changed(stage: Stage, name: str, played: Played) -> list[Row]:
    """Returns the rows of a host whose model changes at some round, without notice."""
    if autonomy.serves_alone(stage.parts.algorithm.access):
        return [unchanged_row(stage, name)]
    other = other_version(stage)
    once = _at_once(stage, other)  # what its host has tuned for it by now, the other one has
    after = score_state(stage, play(stage, name, after="fault", model=other))
    note = (
        f"{_told(once)} at once, with {_version(stage)}; those rounds that were left were trained "
        "with it"
    )
    return [row_of(stage, name, after, note, **once)]


def drill_base_update(stage: Stage, name: str, played: Played) -> list[Row]:
    """Returns the row of what was trained on one version of the base and is used on the next.

    That of a host is `changed`.
    """
    if not autonomy.serves_alone(stage.parts.algorithm.access):
        return [row_of(stage, name, stage.base, NO_WEIGHTS, by_definition=True)]
    other = other_version(stage)
    after = score_state(stage, played, model=other)
    note = f"what was trained is used on {_version(stage)}, without further training"
    return [row_of(stage, name, after, note, **_at_once(stage, other))]


def drill_base_retired(stage: Stage, name: str, played: Played) -> list[Row]:
    """Returns the rows of a host that serves the next version of its base alone, after a notice."""
    del played
    if autonomy.serves_alone(stage.parts.algorithm.access):
        return [unchanged_row(stage, name)._replace(note=_PINNED)]
    return [_renewed(stage, name)]


def drill_base_renewed(stage: Stage, name: str, played: Played) -> list[Row]:
    """Returns the row of whoever holds the weights, and trains again on the next version.

    That of a host is `base_retired`.
    """
    del played
    if not autonomy.serves_alone(stage.parts.algorithm.access):
        return [row_of(stage, name, stage.base, NO_WEIGHTS, by_definition=True)]
    return [_renewed(stage, name)]


def other_version(stage: Stage) -> Any:
    """Returns the models of a run with the next version of the target, or with changed weights."""
    where = stage.directory / "other"
    return _next_version(stage, where, of=stage.directory / "fault")


def trained_again(stage: Stage, name: str, model: Any, **extra: Any) -> Row:
    """Returns the row of a federation that trains from the start, for as many rounds as at first.

    Args:
      stage: the method.
      name: of the drill, and of the run's folder.
      model: the models that it trains with, and is scored with.
      extra: further entries of the row.
    """
    after = score_state(stage, play(stage, name, model=model))
    cost = _cost(stage, stage.directory / name)
    note = (
        f"trained again from the start: {cost['model_tokens_again']:,} tokens through the model, "
        f"{cost['labels_again']:,} labels and {cost['private_tokens_again']:,} private tokens sent "
        f"to a host, {cost['bytes_up_again']:,} bytes of updates"
    )
    return row_of(stage, name, after, note, **extra, **cost)


def _renewed(stage: Stage, name: str) -> Row:
    """Returns the row of a federation that trains again on the next version of its base."""
    once = _at_once(stage, other_version(stage))
    row = trained_again(stage, name, _next_version(stage, stage.directory / name), **once)
    return row._replace(note=f"{_told(once)} at once; {row.note}")


def _next_version(stage: Stage, where: Path, *, of: Path | None = None) -> Any:
    """Returns the models with the next version; that of a host has the files of the host in `of`.

    Args:
      stage: the method.
      where: folder for the calls to a hosted one.
      of: folder of the host whose files and jobs it has too; None: it has none.
    """
    spec, change = stage.spec, stage.settings.change
    if stage.settings.next_version:
        other = resolve(spec.put({"model.name": stage.settings.next_version}))
        return model_of(stage, where, spec=other)
    key = jax.random.key(spec.seed)
    change_fn = lambda model: autonomy.another_version(model, key, change=change)
    if hosting.is_hosted(spec):
        given: Any = {"meter": stage.parts.meter} if of is None else {"of": of}
        tokenizer = stage.parts.tokenizer
        return other_hosts.make(spec, tokenizer, directory=where, change_fn=change_fn, **given)
    model = stage.parts.model
    if isinstance(model, dict):
        return model | {"target": change_fn(model["target"])}
    return change_fn(model)


def _at_once(stage: Stage, other: Any) -> dict[str, float]:
    """Returns the scores where faults begin: with the model, and at once with the next version."""
    fault = play(stage, "fault", rounds=stage.settings.at_round)
    at_change = score_state(stage, fault, model=other)
    return {"at_fault": score_state(stage, fault), "at_change": at_change}


def _told(once: dict[str, float]) -> str:
    before, after = (100 * once[name] for name in ("at_fault", "at_change"))
    return f"the change moved the score from {before:.1f} % to {after:.1f} %"


def _version(stage: Stage) -> str:
    return stage.settings.next_version or (
        f"the base with noise of {stage.settings.change:g} deviations of each matrix"
    )


def _cost(stage: Stage, where: Path) -> dict[str, float]:
    """Returns what a run has taken, by its records and, at a host, by its journal of calls."""
    records, form = read_records(where), stage.parts.form
    sent = metering.sent_by_journal(where) or [
        (round, Purpose.TRAINING, carried_in(record, form))
        for round, record in enumerate(records)
        if any(name in record for name in SUMMED)
    ]
    total = {
        name: sum(record[name] for record in records)
        for name in ("num_read", "num_steps", "bytes_up", "seconds")
    }
    training = [carried for _, purpose, carried in sent if purpose == Purpose.TRAINING]
    given = {"read": total["num_read"], "num_steps": total["num_steps"]}
    return {
        "model_tokens_again": int(costs.model_tokens(stage.parts, sent=sent, **given)),
        "private_tokens_again": sum(carried.private_tokens for carried in training),
        "labels_again": sum(carried.labels for carried in training),
        "trained_tokens_again": sum(carried.trained for carried in training),
        "bytes_up_again": int(total["bytes_up"]),
        "seconds_again": total["seconds"],
    }
