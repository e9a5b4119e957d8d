"""Faults of a host that fine-tunes its model: the result is withdrawn, or its base retires.

Both are announced with a notice, in which a federation can have its rows trained on again. In the
first case this is on the same base, which by definition gives the same model: measured is only what
it takes, since all rows are disclosed and paid for once more. In the second case it is on the next
version of the base, and what that yields is measured too. Whoever does not act within the notice
has nothing that answers. Passports name the notices of real hosts (`retirement`).
"""

import time
from collections.abc import Callable
from typing import Any

import jax

from fedjax_post.disclosure.ledger import is_tuned_by_host
from fedjax_post.disclosure.meter import Purpose, add
from fedjax_post.study import autonomy, metering, other_hosts
from fedjax_post.study.autonomy import Row
from fedjax_post.study.faults import (
    Played,
    Stage,
    other_version,
    play,
    row_of,
    score_state,
    unchanged_row,
)


def drill_tuned_withdrawn(stage: Stage, name: str, played: Played) -> list[Row]:
    """Returns the rows of a host that withdraws the model that it has fine-tuned."""
    del played
    if not is_tuned_by_host(stage.parts.algorithm.access):
        note = "no host keeps a model that was fine-tuned for it"
        return [row_of(stage, name, stage.base, note, by_definition=True)]
    found = _tuned_anew(stage, name, None)
    return [found._replace(extra={**found.extra, "by_definition": True})]


def drill_base_retired(stage: Stage, name: str, played: Played) -> list[Row]:
    """Returns the rows of a host that serves the next version of its base alone."""
    if autonomy.serves_alone(stage.parts.algorithm.access):
        return [unchanged_row(stage, name)]
    key, change = jax.random.key(stage.spec.seed), stage.settings.change
    if is_tuned_by_host(stage.parts.algorithm.access):
        change_fn = lambda model: autonomy.another_version(model, key, change=change)
        return [_tuned_anew(stage, name, change_fn)]
    after = score_state(stage, played, model=other_version(stage))
    return [row_of(stage, name, after, "what was learned is used with the next version")]


def _tuned_anew(stage: Stage, name: str, change_fn: Callable[[Any], Any] | None) -> Row:
    """Returns the row of a federation that uploads its rows to a host without any of its files."""
    where, began = stage.directory / name, time.perf_counter()
    parts = stage.parts
    host = other_hosts.make(
        stage.spec, parts.tokenizer, directory=where, meter=parts.meter, change_fn=change_fn
    )
    after = score_state(stage, play(stage, name, model=host))
    sent = metering.sent_by_journal(where)
    again = add([carried for _, purpose, carried in sent if purpose == Purpose.TRAINING])
    extra = {
        "private_tokens_again": again.private_tokens,
        "labels_again": again.labels,
        "trained_tokens_again": again.trained,
        "seconds_again": time.perf_counter() - began,
    }
    note = (
        f"{again.labels:,} rows with {again.private_tokens:,} private tokens were uploaded and "
        "trained on again within the notice; without that nothing answers after it"
    )
    return row_of(stage, name, after, note, **extra)
