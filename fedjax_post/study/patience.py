"""Early stopping: training ends when a held-out score has not improved for some points.

What decides is a function of the records alone, so that a run that is interrupted and resumed
stops after the same round as an uninterrupted one.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedjax_post.core.engine import State
from fedjax_post.evaluate.heldout import score_names
from fedjax_post.integrity import DamagedError, read_lines
from fedjax_post.simulate.record import Callback, Record
from fedjax_post.study import factories
from fedjax_post.study.build import Parts
from fedjax_post.study.private_checks import is_on
from fedjax_post.study.spec import Spec

STOPPED = "stopped"  # entry of the last record of a run that stopped early
# Fields that may else differ in a resumed run, and that decide when training stops
DECIDES = ("scoring.every", "scoring.curve_examples")


def check(spec: Spec) -> None:
    """Checks that there is a curve to watch, and that watching it is allowed.

    Raises:
      ValueError: naming the field and the remedy.
    """
    given = f"patience={spec.scoring.patience}"
    if spec.scoring.patience is None:
        if spec.scoring.patience_score != "loss":
            raise ValueError(
                f"patience_score={spec.scoring.patience_score} has no effect without `patience`"
            )
        return
    if not spec.scoring.every:
        raise ValueError(f"{given} watches the learning curve, and every=0 makes none; raise it")
    if is_on(spec):
        raise ValueError(
            f"{given} decides by scores that the privacy guarantee does not cover; leave it out"
        )


def check_scored(parts: Parts) -> None:
    """Checks that there is a shared model to watch, and that its rows have the score.

    Raises:
      ValueError: naming the method or the score.
    """
    spec, heldout = parts.spec, parts.heldout
    if spec.scoring.patience is None:
        return
    if not parts.has_shared_model:
        name = factories.display_name(spec.method.name)
        raise ValueError(
            f"patience={spec.scoring.patience}: {name} with baseline={spec.method.baseline} shares "
            "no model, so that it has no learning curve; leave it out"
        )
    names = score_names(heldout)
    if spec.scoring.patience_score not in names:
        raise ValueError(
            f"patience_score={spec.scoring.patience_score}: the held-out rows are not scored by "
            f"it; there is {', '.join(names)}"
        )


def is_over(scores: Sequence[float], patience: int, *, falls: bool) -> bool:
    """Returns whether none of the last scores is better than the best one before them.

    A score that is not finite is never better.

    Args:
      scores: at the points of the learning curve, in order.
      patience: number of last scores.
      falls: whether a lower score is better.

    >>> is_over([3.0, 2.0, 2.5, 2.0], 2, falls=True), is_over([3.0, 2.0, 2.5], 2, falls=True)
    (True, False)
    """
    if len(scores) <= patience:
        return False
    worst = -math.inf
    value = [worst if math.isnan(x) else -x if falls else x for x in scores]
    return max(value[-patience:]) <= max(value[:-patience])


def watch(spec: Spec, earlier: Sequence[Record]) -> Callback:
    """Returns a callback that adds `stopped` to the record after which training ends.

    Args:
      spec: with a patience.
      earlier: records of rounds before the next one; those of rounds that are repeated are
        replaced.
    """
    patience, entry = spec.scoring.patience, f"eval_{spec.scoring.patience_score}"
    assert patience is not None
    # A score that was not finite is null in its file
    scores = {r["round"]: math.nan if r[entry] is None else r[entry] for r in earlier if entry in r}

    def callback(state: State, record: Record) -> Record | None:
        del state
        if entry not in record:
            return None
        for round in [round for round in scores if round >= record["round"]]:
            del scores[round]
        scores[record["round"]] = record[entry]
        is_last = is_over(list(scores.values()), patience, falls=entry == "eval_loss")
        return {STOPPED: True} if is_last else None

    return callback


def earlier_records(directory: Path, count: int) -> list[Record]:
    """Returns the first records of a run, up to the first damaged one.

    A run whose records are damaged goes back to an earlier checkpoint and writes them again.
    """
    found: list[Record] = []
    path = directory / "records.jsonl"
    with contextlib.suppress(DamagedError):
        for record in itertools.islice(read_lines(path) if path.exists() else (), count):
            found.append(record)
    return found


def describe_rounds(spec: Spec) -> str:
    """Returns how long training takes, such as `60 rounds`."""
    scoring, rounds = spec.scoring, spec.training.rounds
    if scoring.patience is None:
        return f"{rounds} rounds"
    score = scoring.patience_score.replace("_", " ")
    return f"at most {rounds} rounds, until {score} is no better for {scoring.patience} points"


def until_stopped(rounds: Iterator[tuple[State, Record]]) -> Iterator[tuple[State, Record]]:
    """Yields rounds up to the one whose record says that training ends."""
    for state, record in rounds:
        yield state, record
        if record.get(STOPPED):
            return
