"""Client-level differential privacy, and its accounting."""

import dataclasses
import math
from typing import Any, NamedTuple

from fedjax_post import privacy
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.core.engine import State
from fedjax_post.simulate.record import Callback, Record
from fedjax_post.study.spec import Spec
from fedjax_post.study.versions import versions_of

_UNIT = "client, with all its rows: add or remove one"
_UNIT_OF_SHARES = "client, with all its rows: its values or zeros; the server sees who takes part"
_NOT_COVERED = "losses, scores and all else in records and summaries, and personal models; "
_TRUSTED = "the server is trusted to add the noise"
_TRUSTED_OF_SHARES = (
    "the clients are trusted to add the noise, and a client that works with the server takes its "
    "share of the noise away"
)
_SECURE = ("secure", "secure_threshold")


class Guarantee(NamedTuple):
    """The guarantee of a private run, without its epsilon, which depends on the rounds."""

    noise_multiplier: float  # noise deviation of a round over `bound`
    clip: float  # maximum norm of a client's message
    bound: float  # maximum norm of a client's contribution to the sum, after all links
    delta: float
    cohort_size: float  # expected number of clients in a round
    population: int
    by_clients: bool = False  # whether clients add the noise, in shares, and not the server


def is_on(spec: Spec) -> bool:
    """Returns whether the run is private."""
    return spec.privacy.epsilon is not None or spec.privacy.noise_multiplier is not None


def check(spec: Spec) -> None:
    """Checks that a guarantee is possible with these fields, before anything is read.

    Raises:
      ValueError: naming the field and the remedy.
    """
    own = dataclasses.asdict(spec.privacy)
    given = {name: x for name, x in own.items() if x is not None and name not in _SECURE}
    if not given:
        return
    name, value = next(iter(given.items()))
    field = f"privacy.{name}={value:g}"
    if not is_on(spec):
        raise ValueError(f"{field} needs `privacy.epsilon` or `privacy.noise_multiplier`")
    if len(given.keys() & {"epsilon", "noise_multiplier"}) == 2:
        raise ValueError(
            f"{field} and privacy.noise_multiplier={spec.privacy.noise_multiplier:g} both set the "
            "noise; give one"
        )
    if not spec.privacy.clip:
        raise ValueError(f"{field} needs `privacy.clip`, the maximum norm of a client's message")
    if spec.method.baseline != "none":
        raise ValueError(f"{field}: baseline={spec.method.baseline} has no cohorts; leave one out")
    if spec.training.buffer_size is not None:
        raise ValueError(
            f"{field}: privacy accounting needs synchronous rounds; leave `buffer_size` out"
        )
    if spec.method.aggregate:
        raise ValueError(
            f"{field}: the noise is calibrated for a mean, and "
            f"aggregate={spec.method.aggregate} is another rule; leave one out"
        )
    if spec.method.client_weight not in (None, "uniform"):
        raise ValueError(
            f"{field}: all clients must have weight 1, and "
            f"client_weight={spec.method.client_weight} gives others; leave it out"
        )
    if spec.training.sampling == "uniform" and not spec.privacy.secure:
        raise ValueError(
            f"{field}: privacy accounting needs clients drawn independently, or all of them; give "
            "sampling=poisson or full"
        )


def around(
    algorithm: Algorithm, spec: Spec, *, population: int, cohort_size: float
) -> tuple[Algorithm, Guarantee | None]:
    """Returns the algorithm, made private if the experiment asks for it, and its guarantee.

    Args:
      algorithm: with its uplink.
      spec: the experiment.
      population: number of clients.
      cohort_size: expected number of clients in a round.

    Raises:
      ValueError: for numbers out of range, and for algorithms whose messages noise does not
        fully cover, naming the field.
      ImportError: if the package for privacy accounting is not installed.
    """
    if not is_on(spec):
        return algorithm, None
    delta = privacy.usual_delta(population) if spec.privacy.delta is None else spec.privacy.delta
    privacy.check_delta(delta, population)
    drawn: dict[str, Any] = {"delta": delta, "cohort_size": cohort_size, "population": population}
    noise, clip, by_clients = _noise(spec, drawn), spec.privacy.clip, spec.privacy.secure
    assert clip is not None  # guaranteed by `check`
    try:
        algorithm = privacy.private(
            algorithm,
            clip_norm=clip,
            noise_multiplier=0.0 if by_clients else noise,
            cohort_size=cohort_size,
            seed=spec.seed,
        )
    except ValueError as error:
        raise ValueError(f"privacy.clip={clip:g}: {error}") from error
    bound = algorithm.uplink.bound(math.inf)
    return algorithm, Guarantee(noise, clip, bound, **drawn, by_clients=by_clients)


def _noise(spec: Spec, drawn: dict[str, Any]) -> float:
    """Returns the noise multiplier that is given, or that costs the epsilon that is given."""
    noise, epsilon, rounds = (
        spec.privacy.noise_multiplier,
        spec.privacy.epsilon,
        spec.training.rounds,
    )
    if noise is not None:
        return noise
    assert epsilon is not None  # guaranteed by `is_on`
    if spec.privacy.secure:
        return privacy.noise_for_shares(epsilon, delta=drawn["delta"], rounds=rounds)
    return privacy.noise_for(epsilon, rounds=rounds, **drawn)


def epsilon_after(promised: Guarantee, rounds: int) -> float:
    """Returns the epsilon spent after a number of rounds."""
    if promised.by_clients:
        return privacy.epsilon_of_shares(
            promised.noise_multiplier, delta=promised.delta, rounds=rounds
        )
    return privacy.epsilon_of(
        promised.noise_multiplier,
        delta=promised.delta,
        rounds=rounds,
        cohort_size=promised.cohort_size,
        population=promised.population,
    )


def curve(promised: Guarantee, spec: Spec) -> Callback:
    """Returns a callback that adds the `epsilon` spent so far at points of the learning curve."""

    def callback(state: State, record: Record) -> Record | None:
        del state
        done = record["round"] + 1
        if done < spec.training.rounds and (not spec.scoring.every or done % spec.scoring.every):
            return None
        return {"epsilon": epsilon_after(promised, done)}

    return callback


def describe(promised: Guarantee, rounds: int) -> str:
    """Returns the guarantee after some rounds as one line of text."""
    deviation = privacy.noise_deviation(
        promised.noise_multiplier, bound=promised.bound, cohort_size=promised.cohort_size
    )
    return (
        f"({epsilon_after(promised, rounds):.3g}, {promised.delta:.2g}) of a client after "
        f"{rounds} rounds: clip {promised.clip:g}, noise multiplier "
        f"{promised.noise_multiplier:.3g}, deviation {'at least ' * promised.by_clients}"
        f"{deviation:.2g} on each coordinate of a mean over {promised.cohort_size:g}"
    )


def privacy_summary(
    promised: Guarantee | None, last: Record, sampling: str
) -> dict[str, Any] | None:
    """Returns the entry `privacy` of a summary; None without privacy.

    Args:
      promised: the guarantee, if any.
      last: record of the last round.
      sampling: how cohorts were drawn.
    """
    if promised is None:
        return None
    version = versions_of(["dp_accounting"])["dp_accounting"]
    return {
        "epsilon": last["epsilon"],
        **promised._asdict(),
        "unit": _UNIT_OF_SHARES if promised.by_clients else _UNIT,
        "sampling": f"{sampling}, not counted" if promised.by_clients else sampling,
        "accountant": f"dp_accounting {version}, "
        f"{'Renyi divergences' if promised.by_clients else 'privacy loss distributions'}",
        "not_covered": _NOT_COVERED + (_TRUSTED_OF_SHARES if promised.by_clients else _TRUSTED),
    }
