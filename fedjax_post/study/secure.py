"""Secure sums of an experiment: their settings, and what its records say of them."""

import math
from typing import Any, NamedTuple

from fedjax_post import privacy
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.core.engine import State
from fedjax_post.simulate.record import Callback, Record
from fedjax_post.study import private
from fedjax_post.study.private import Guarantee
from fedjax_post.study.rows import cohort_size
from fedjax_post.study.spec import Spec

_USUAL_THRESHOLD = 2 / 3
_TRUST = (
    "the server sees who takes part, the sum of those that stay, and nothing single, if fewer than "
    "`threshold` clients work with it; simulated in one process, which holds all keys"
)


class Agreed(NamedTuple):
    """What the clients and the server of a run agree on before its first round."""

    threshold: int  # least number of clients of which a sum is opened
    max_clients: int  # largest number in a round
    max_weight: float  # largest weight of a client


def check(spec: Spec) -> None:
    """Checks that secure sums are possible with these fields, before anything is read.

    Raises:
      ValueError: naming the field and the remedy.
    """
    if not spec.privacy.secure:
        if (share := spec.privacy.secure_threshold) is not None:
            raise ValueError(f"secure_threshold={share:g} needs `privacy.secure`")
        return
    field = "`privacy.secure`"
    if spec.method.baseline != "none":
        raise ValueError(f"{field}: baseline={spec.method.baseline} has no sums; leave one out")
    if spec.training.buffer_size is not None:
        raise ValueError(
            f"{field}: clients make masks with those of the same round; leave `buffer_size` out"
        )
    if spec.method.aggregate:
        raise ValueError(
            f"{field}: aggregate={spec.method.aggregate} needs single uploads, and the server sees "
            "only their sum; leave one out"
        )
    if spec.scoring.telemetry_clients:
        raise ValueError(
            f"{field}: telemetry_clients={spec.scoring.telemetry_clients} reads single uploads, "
            "which are masked; leave it out"
        )
    if not spec.method.uplink and not private.is_on(spec):
        raise ValueError(
            f"{field} needs a bound on what a client sends, so that a sum cannot overflow; give "
            "`method.uplink`, such as clip(1.0), or `privacy.clip` with its noise"
        )


def around(
    algorithm: Algorithm,
    spec: Spec,
    promised: Guarantee | None,
    *,
    population: int,
    report: dict[str, Any],
) -> tuple[Algorithm, Agreed | None]:
    """Returns the algorithm with secure sums if the experiment asks for them, and their settings.

    Args:
      algorithm: with its uplink, and with equal weights where a privacy is promised.
      spec: the experiment, with every default filled in.
      promised: the guarantee of differential privacy, if any; its noise is added by the clients.
      population: number of clients.
      report: of the data, see `data.load`.

    Raises:
      ValueError: for an algorithm or a link whose sum is not enough, naming the field.
    """
    if not spec.privacy.secure:
        return algorithm, None
    expected = cohort_size(spec, population)
    share = spec.privacy.secure_threshold or _USUAL_THRESHOLD
    agreed = Agreed(
        threshold=max(2, math.ceil(share * expected - 1e-9)),
        max_clients=_largest_cohort(spec, expected, population),
        max_weight=1.0 if promised else _largest_weight(spec, report),
    )
    try:
        algorithm = privacy.secure_sum(
            algorithm,
            **agreed._asdict(),
            noise_multiplier=0.0 if promised is None else promised.noise_multiplier,
            seed=spec.seed,
        )
    except ValueError as error:
        raise ValueError(f"`privacy.secure`: {error}") from error
    return algorithm, agreed


def _largest_cohort(spec: Spec, expected: int, population: int) -> int:
    """Returns the largest cohort; a Poisson cohort is larger with a probability below 1e-15."""
    if spec.training.sampling != "poisson":
        return expected
    return min(population, math.ceil(expected + 10 * math.sqrt(expected) + 10))


def _largest_weight(spec: Spec, report: dict[str, Any]) -> float:
    """Returns a bound on a client's weight, by the length of its visit or its number of rows."""
    rows, steps = report["examples_max"], spec.training.local_steps
    if steps is None:
        steps = math.ceil(rows / spec.training.batch_size) * (spec.training.local_epochs or 1)
    length = spec.data.pack_length or report["max_length"]
    tokens = steps * spec.training.batch_size * length
    known = {"uniform": 1, "examples": rows, "tokens": tokens}
    return float(known.get(spec.method.client_weight or "", max(known.values())))


def watch(agreed: Agreed) -> Callback:
    """Returns a callback that adds to every record whether the sum of its round was opened."""

    def callback(state: State, record: Record) -> Record:
        del state
        present = record["cohort"] - len(record["dropped"])
        opened = agreed.threshold <= present <= agreed.max_clients
        return {"sum_opened": opened, "sum_threshold": agreed.threshold}

    return callback


def describe(agreed: Agreed) -> str:
    """Returns the settings as one line of text."""
    return (
        f"masked uploads; a sum is opened of {agreed.threshold} to {agreed.max_clients} clients "
        f"of weight up to {agreed.max_weight:g}"
    )


def secure_summary(agreed: Agreed | None, records: list[Record]) -> dict[str, Any] | None:
    """Returns the entry `secure_sum` of a summary; None without secure sums.

    Args:
      agreed: the settings, if any.
      records: of all rounds.
    """
    if agreed is None:
        return None
    closed = [record["round"] for record in records if not record["sum_opened"]]
    return {**agreed._asdict(), "rounds_not_opened": closed, "trust": _TRUST}


def warnings_of(agreed: Agreed | None, records: list[Record]) -> list[str]:
    """Returns a warning about a run in which no sum could be opened."""
    if agreed is None or any(record["sum_opened"] for record in records):
        return []
    return [
        f"no round's sum could be opened, and nothing was learned: fewer than {agreed.threshold} "
        f"or more than {agreed.max_clients} clients stayed; lower `secure_threshold`, or choose "
        "larger cohorts"
    ]
