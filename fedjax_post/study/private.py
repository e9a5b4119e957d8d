"""Differential privacy of an experiment: its guarantee, its noise, and what is printed of it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax_post import privacy
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.core.engine import State
from fedjax_post.data.load import Loaded
from fedjax_post.privacy import Account, accounts
from fedjax_post.privacy.adaptive import split_noise
from fedjax_post.simulate.record import Callback, Record
from fedjax_post.study import private_checks
from fedjax_post.study.private_checks import is_on as is_on
from fedjax_post.study.spec import Spec
from fedjax_post.study.versions import versions_of

_NOT_COVERED = "losses, scores and all else in records and summaries, and personal models"


class Guarantee(NamedTuple):
    """The guarantee of a private run, without its epsilon, which depends on the rounds."""

    account: Account
    noise_multiplier: float  # noise deviation over the largest contribution, as accounted
    clip: float  # maximum norm of a client's message, or of a row's gradient
    delta: float
    cohort_size: float  # expected number of clients in a round, of the account
    population: int  # clients, of the account
    noise_at: str  # who adds the noise, and to what: `privacy.noise_at`, or "shares"
    quantile: float | None = None  # that the clip norm follows, from `clip` on
    bands: int = 1  # of noise that is correlated over rounds
    # noise of the run over that of the account: below 1 where a larger cohort is simulated
    scale: float = 1.0
    bound: float = math.inf  # maximum norm of what the noise is added to, by one client


def promise(spec: Spec, data: Loaded, *, cohort_size: float) -> Guarantee | None:
    """Returns the guarantee of an experiment; None without privacy.

    Args:
      spec: the experiment, with every default filled in.
      data: its clients.
      cohort_size: expected number of clients in a round.

    Raises:
      ValueError: for numbers out of range, and for clients that may be one person, naming the
        field.
      ImportError: if the package for privacy accounting is not installed.
    """
    if not is_on(spec):
        return None
    given, population = spec.privacy, len(data.clients)
    noise_at = "shares" if given.secure else given.noise_at
    if noise_at != "step":
        private_checks.check_people(spec, data)
    if larger := given.noise_cohort:
        scale = cohort_size / larger
        population = given.noise_population or round(population / scale)
        cohort_size = larger
    else:
        scale = 1.0
    units = data.report["examples"] if noise_at == "step" else population
    delta = privacy.usual_delta(units) if given.delta is None else given.delta
    privacy.check_delta(delta, units)
    account = _account(spec, noise_at, cohort_size, population, report=data.report)
    noise, clip = given.noise_multiplier, given.clip
    assert clip is not None  # guaranteed by `check`
    if noise is None:
        assert given.epsilon is not None  # guaranteed by `is_on`
        rounds = spec.training.rounds
        noise = privacy.noise_for(given.epsilon, account, delta=delta, rounds=rounds)
    return Guarantee(
        account=account,
        noise_multiplier=noise,
        clip=clip,
        delta=delta,
        cohort_size=cohort_size,
        population=population,
        noise_at=noise_at,
        quantile=given.clip_quantile,
        bands=given.bands or 1,
        scale=scale,
    )


def _account(
    spec: Spec, noise_at: str, cohort_size: float, population: int, *, report: dict[str, Any]
) -> Account:
    if noise_at == "shares":
        return accounts.shares()
    if noise_at == "client":
        return accounts.uploads()
    if noise_at == "step":
        return accounts.row_steps(_passes(spec, report))
    drawn: dict[str, Any] = {"cohort_size": cohort_size, "population": population}
    if spec.training.sampling == "cyclic":
        assert spec.privacy.bands is not None  # guaranteed by `check`
        return accounts.cyclic(**drawn, bands=spec.privacy.bands)
    if spec.training.sampling == "full":
        return accounts.full()
    if spec.training.sampling == "poisson":
        return accounts.poisson(**drawn)
    return accounts.fixed_size(**drawn)


def _passes(spec: Spec, report: dict[str, Any]) -> int:
    """Returns how often a visit uses a row, at most: that of the client with the fewest rows."""
    if spec.training.local_epochs is not None:
        return spec.training.local_epochs
    taken = (spec.training.local_steps or 1) * spec.training.batch_size
    return math.ceil(taken / report["examples_min"])


def guard_loss(loss_fn: Callable, spec: Spec, promised: Guarantee | None) -> Any:
    """Returns the loss that clients train, with private gradients where rows are hidden."""
    if promised is None or promised.noise_at != "step":
        return loss_fn
    return privacy.private_rows(
        loss_fn,
        clip_norm=promised.clip,
        noise_multiplier=promised.noise_multiplier,
        at_once=spec.training.microbatch,
    )


def around(
    algorithm: Algorithm, spec: Spec, promised: Guarantee | None
) -> tuple[Algorithm, Guarantee | None]:
    """Returns the algorithm, made private if the experiment asks for it, and its guarantee.

    Args:
      algorithm: with its uplink.
      spec: the experiment.
      promised: as returned by `promise`.

    Raises:
      ValueError: for algorithms whose messages noise does not fully cover, naming the field.
      ImportError: if the package for correlated noise is not installed.
    """
    if promised is None or promised.noise_at == "step":
        return algorithm, promised
    clip, noise = promised.clip, promised.noise_multiplier * promised.scale
    bound = clip if promised.noise_at == "client" else algorithm.uplink.bound(clip)
    try:
        if promised.noise_at == "client":
            made = privacy.private_uploads(algorithm, clip_norm=clip, noise_multiplier=noise)
        else:
            made = privacy.private(
                algorithm,
                clip_norm=clip,
                noise_multiplier=0.0 if promised.noise_at == "shares" else noise,
                cohort_size=promised.cohort_size * promised.scale,
                seed=spec.seed,
                clip_quantile=promised.quantile,
                correlation=privacy.banded(rounds=spec.training.rounds, bands=promised.bands),
            )
    except ValueError as error:
        raise ValueError(f"privacy.clip={clip:g}: {error}") from error
    return made, promised._replace(bound=bound)


def epsilon_after(promised: Guarantee, rounds: int) -> float:
    """Returns the epsilon spent after a number of rounds."""
    noise, account = promised.noise_multiplier, promised.account
    return privacy.epsilon_of(noise, account, delta=promised.delta, rounds=rounds)


def curve(promised: Guarantee, spec: Spec) -> Callback:
    """Returns a callback that adds the `epsilon` spent so far at points of the learning curve.

    A clip norm that follows a quantile is added in every round, as `clip_norm`: that of the next.
    """

    def callback(state: State, record: Record) -> Record | None:
        found = {} if promised.quantile is None else {"clip_norm": float(state.shared.norm)}
        done = record["round"] + 1
        if done < spec.training.rounds and (not spec.scoring.every or done % spec.scoring.every):
            return found or None
        return {"epsilon": epsilon_after(promised, done), **found}

    return callback


def describe(promised: Guarantee, spec: Spec) -> list[str]:
    """Returns lines of text on the guarantee after all rounds: what it is of, and what it is not.

    Args:
      promised: the guarantee.
      spec: the experiment.
    """
    rounds, account = spec.training.rounds, promised.account
    first = (
        f"({epsilon_after(promised, rounds):.3g}, {promised.delta:.2g}) after {rounds} rounds: "
        f"clip {promised.clip:g}{_following(promised)}, noise multiplier "
        f"{promised.noise_multiplier:.3g}, {_deviation(promised, spec)}"
    )
    lines = [
        first,
        f"hides a {account.unit}; neighbours: {account.neighbours}",
        f"sampling: {account.sampling}; trust: {account.trust}",
        f"not covered: {_NOT_COVERED}",
    ]
    return lines if promised.scale == 1 else [*lines, _simulates(promised)]


def _following(promised: Guarantee) -> str:
    if promised.quantile is None:
        return ""
    return f" at first, then the {promised.quantile:g} quantile of norms"


def _deviation(promised: Guarantee, spec: Spec) -> str:
    noise = promised.noise_multiplier * promised.scale
    if promised.noise_at == "step":
        deviation = noise * promised.clip / spec.training.batch_size
        return f"deviation {deviation:.2g} on each coordinate of a batch's gradient"
    if promised.noise_at == "client":
        return f"deviation {noise * promised.bound:.2g} on each coordinate of an upload"
    cohort_size = promised.cohort_size * promised.scale
    if promised.quantile is not None:
        noise = float(split_noise(noise, cohort_size)[0])
    deviation = privacy.noise_deviation(noise, bound=promised.bound, cohort_size=cohort_size)
    over = f", {promised.bands} bands over rounds" if promised.bands > 1 else ""
    return (
        f"deviation {'at least ' * (promised.noise_at == 'shares')}{deviation:.2g} on each "
        f"coordinate of a mean over {cohort_size:g}{over}"
    )


def _simulates(promised: Guarantee) -> str:
    """Returns what a run promises that has the noise of a larger cohort."""
    return (
        f"SIMULATED: this is the noise in a mean over {promised.cohort_size:g} clients out of "
        f"{promised.population:,}. This run has {promised.cohort_size * promised.scale:g} in a "
        f"round and is less private than that: its own noise multiplier is "
        f"{promised.noise_multiplier * promised.scale:.3g}"
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
    account = promised.account
    return {
        "epsilon": last["epsilon"],
        "delta": promised.delta,
        "noise_multiplier": promised.noise_multiplier,
        "noise_at": promised.noise_at,
        "bands": promised.bands,
        "clip": promised.clip,
        "clip_quantile": promised.quantile,
        "last_clip_norm": last.get("clip_norm"),
        "bound": promised.bound if math.isfinite(promised.bound) else None,
        "cohort_size": promised.cohort_size,
        "population": promised.population,
        "unit": account.unit,
        "neighbours": account.neighbours,
        "sampling": sampling,
        "sampling_accounted": account.sampling,
        "trust": account.trust,
        "not_covered": _NOT_COVERED,
        "accountant": f"dp_accounting {version}, {account.by}",
        "simulated": None if promised.scale == 1 else _simulates(promised),
    }
