"""Privacy accounting: epsilon after a number of rounds, and the noise that an epsilon requires.

An `Account` states how rounds are drawn and noised, and therefore whose data the guarantee hides
and between which populations; `privacy.accounts` has one for each case. Google's `dp_accounting`
composes the rounds; its numbers are upper bounds, and exact for rounds without sampling. It comes
with the extra `[privacy]`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

LOSSES = "privacy loss distributions"
RENYI = "Renyi divergences"
EXACT = "one exact Gaussian mechanism"  # Balle and Wang 2018, arXiv:1805.06530

_TOLERANCE = 1e-3  # of the calibrated noise multiplier


class Account(NamedTuple):
    """What is counted, and what the resulting epsilon is a statement about."""

    # (noise multiplier, rounds) -> event of `dp_accounting`
    event: Callable[[float, int], Any]
    unit: str  # whose data are hidden
    neighbours: str  # how two populations differ that are hard to tell apart
    sampling: str  # what the account assumes of it
    trust: str  # who is trusted with what
    by: str = LOSSES  # how rounds are composed; EXACT needs repeated Gaussian events
    replaces: bool = False  # neighbours of `dp_accounting`: one replaced, else one added or removed


def epsilon_of(noise_multiplier: float, account: Account, *, delta: float, rounds: int) -> float:
    """Returns epsilon after some rounds, for a given delta.

    >>> from fedjax_post.privacy import accounts, epsilon_of
    >>> account = accounts.poisson(cohort_size=100, population=10_000)
    >>> print(f"{epsilon_of(0.8, account, delta=1e-5, rounds=100):.1f}")
    1.5

    Args:
      noise_multiplier: standard deviation of the noise, divided by the largest norm of what one
        unit contributes to the value that it is added to; 0 gives inf.
      account: of the rounds.
      delta: probability with which the bound may fail, in (0, 1).
      rounds: number of rounds, at least 0.

    Raises:
      ValueError: if `delta` is out of range.
      ImportError: if `dp_accounting` is not installed.
    """
    _check_delta(delta)
    if rounds == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    event = account.event(noise_multiplier, rounds)
    if account.by == EXACT:
        sigma = event.event.noise_multiplier / math.sqrt(event.count)
        return float(library().get_epsilon_gaussian(sigma, delta))
    return float(_accountant(account).compose(event).get_epsilon(delta))


def noise_for(epsilon: float, account: Account, *, delta: float, rounds: int) -> float:
    """Returns the least noise multiplier for which some rounds cost at most this epsilon.

    Args:
      epsilon: the target, positive.
      account: as in `epsilon_of`.
      delta: as in `epsilon_of`.
      rounds: as in `epsilon_of`, at least 1.

    Raises:
      ValueError: if `epsilon` or `delta` is out of range.
      ImportError: if `dp_accounting` is not installed.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon={epsilon:g} must be positive")
    _check_delta(delta)
    if account.by == EXACT:
        sigma, event = library().get_sigma_gaussian(epsilon, delta), account.event(1.0, rounds)
        return float(sigma * math.sqrt(event.count) / event.event.noise_multiplier)
    found = library().calibrate_dp_mechanism(
        lambda: _accountant(account),
        lambda noise: account.event(noise, rounds) if noise else library().NonPrivateDpEvent(),
        target_epsilon=epsilon,
        target_delta=delta,
        tol=_TOLERANCE,
    )
    return float(found)


def check_delta(delta: float, population: int) -> None:
    """Raises an error for a delta so large that publishing one unit's data would satisfy it.

    Args:
      delta: of the guarantee.
      population: number of units: of clients, or of rows.

    Raises:
      ValueError: unless `delta` is in (0, 1 / population).
    """
    if not 0 < delta < 1 / population:
        raise ValueError(
            f"delta={delta:g} must be in (0, {1 / population:.3g}), one over the {population} "
            "whose data are hidden: a larger one would allow publishing those of one at random"
        )


def usual_delta(population: int) -> float:
    """Returns population ** -1.1, as in McMahan et al. 2018, arXiv:1710.06963."""
    return population**-1.1


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta:g}")


def _accountant(account: Account) -> Any:
    if account.by == LOSSES:
        return library().pld.PLDAccountant()
    relations = library().NeighboringRelation
    relation = relations.REPLACE_ONE if account.replaces else relations.ADD_OR_REMOVE_ONE
    return library().rdp.RdpAccountant(neighboring_relation=relation)


@functools.cache
def library() -> Any:
    """Returns the module `dp_accounting`; raises ImportError that names the extra."""
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise ImportError(
            "accounting of differential privacy needs dp_accounting; "
            "install the extra: pip install 'fedjax_post[privacy]'"
        ) from error
    return dp_accounting
