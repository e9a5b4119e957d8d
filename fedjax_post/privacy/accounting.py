"""Privacy accounting: epsilon after a number of rounds, and the noise that an epsilon requires.

Two populations are neighbours if they differ in one client with all its rows. Each round draws
every client independently with probability cohort size over population (Poisson sampling), and
releases a sum with Gaussian noise. Google's `dp_accounting` composes the privacy loss
distributions of the rounds; its numbers are upper bounds. It comes with the extra `[privacy]`.

Noise that clients add in shares (`secure.secure_sum`) is accounted in `epsilon_of_shares`, for
other neighbours: the server sees who takes part, so two populations differ in whether one client
sends its values or zeros.
"""

import functools
import math
from typing import Any

_TOLERANCE = 1e-3  # of the calibrated noise multiplier


def epsilon_of(
    noise_multiplier: float, *, delta: float, rounds: int, cohort_size: float, population: int
) -> float:
    """Returns epsilon after some rounds, for a given delta.

    >>> from fedjax_post.privacy import epsilon_of
    >>> epsilon = epsilon_of(0.8, delta=1e-5, rounds=100, cohort_size=100, population=10_000)
    >>> print(f"{epsilon:.1f}")
    1.5

    Args:
      noise_multiplier: standard deviation of the noise on the sum, divided by the largest change
        of the sum that one client can cause; 0 gives inf.
      delta: probability with which the bound may fail, in (0, 1).
      rounds: number of rounds, at least 0.
      cohort_size: expected clients in a round; if it equals the population, there is no sampling.
      population: number of clients.

    Raises:
      ValueError: if `delta` or `cohort_size` is out of range.
      ImportError: if `dp_accounting` is not installed.
    """
    _check(delta, cohort_size, population)
    if rounds == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    event = _event(noise_multiplier, rounds, cohort_size / population)
    return float(_accountant().compose(event).get_epsilon(delta))


def noise_for(
    epsilon: float, *, delta: float, rounds: int, cohort_size: float, population: int
) -> float:
    """Returns the least noise multiplier for which some rounds cost at most this epsilon.

    Args:
      epsilon: the target, positive.
      delta: as in `epsilon_of`.
      rounds: as in `epsilon_of`, at least 1.
      cohort_size: as in `epsilon_of`.
      population: as in `epsilon_of`.

    Raises:
      ValueError: if `epsilon`, `delta` or `cohort_size` is out of range.
      ImportError: if `dp_accounting` is not installed.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon={epsilon:g} must be positive")
    _check(delta, cohort_size, population)
    found = _library().calibrate_dp_mechanism(
        _accountant,
        lambda noise: _event(noise, rounds, cohort_size / population),
        target_epsilon=epsilon,
        target_delta=delta,
        tol=_TOLERANCE,
    )
    return float(found)


def epsilon_of_shares(noise_multiplier: float, *, delta: float, rounds: int) -> float:
    """Returns epsilon after some rounds in which a client may take part, with noise of clients.

    A sum of n discrete Gaussians of parameter sigma, on whole numbers, is 1/2 e^2-concentrated
    private with e at most 1 / noise_multiplier + tau sqrt(d) for d entries, where tau = 10
    sum_{k < n} exp(-2 pi^2 sigma^2 k / (k + 1)) (Kairouz, Liu and Steinke 2021, arXiv:2102.06387,
    proposition 14). `secure_sum` refuses a sigma below 4, for which tau is below 1e-60 even for a
    million clients, and is left out here. Rounding to nearest is in the sensitivity: it lengthens
    a value by at most sqrt(d) / 2 steps. Sampling is not counted, since the server sees who takes
    part. `dp_accounting` composes the rounds by Renyi divergences.

    Args:
      noise_multiplier: deviation of the noise of `threshold` clients in the sum, over the
        largest norm of a client's codes; 0 gives inf.
      delta: as in `epsilon_of`.
      rounds: number of rounds, at least 0.

    Raises:
      ValueError: if `delta` is out of range.
      ImportError: if `dp_accounting` is not installed.
    """
    _check(delta, 1, 1)
    if rounds == 0:
        return 0.0
    event = _event_of_shares(noise_multiplier, rounds)
    return float(_renyi_accountant().compose(event).get_epsilon(delta))


def noise_for_shares(epsilon: float, *, delta: float, rounds: int) -> float:
    """Returns the least noise multiplier for which `epsilon_of_shares` is at most this epsilon.

    Args:
      epsilon: the target, positive.
      delta: as in `epsilon_of`.
      rounds: as in `epsilon_of_shares`, at least 1.

    Raises:
      ValueError: if `epsilon` or `delta` is out of range.
      ImportError: if `dp_accounting` is not installed.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon={epsilon:g} must be positive")
    _check(delta, 1, 1)
    found = _library().calibrate_dp_mechanism(
        _renyi_accountant,
        lambda noise: _event_of_shares(noise, rounds),
        target_epsilon=epsilon,
        target_delta=delta,
        tol=_TOLERANCE,
    )
    return float(found)


def check_delta(delta: float, population: int) -> None:
    """Raises an error for a delta so large that publishing one client's data would satisfy it.

    Raises:
      ValueError: unless `delta` is in (0, 1 / population).
    """
    if not 0 < delta < 1 / population:
        raise ValueError(
            f"delta={delta:g} must be in (0, {1 / population:.3g}), one over the "
            f"{population} clients: a larger one would allow publishing one random client"
        )


def usual_delta(population: int) -> float:
    """Returns population ** -1.1, as in McMahan et al. 2018, arXiv:1710.06963."""
    return population**-1.1


def _check(delta: float, cohort_size: float, population: int) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta must be in (0, 1), got {delta:g}")
    if not 0 < cohort_size <= population:
        raise ValueError(
            f"cohort_size must be in (0, population = {population}], got {cohort_size:g}"
        )


def _event(noise_multiplier: float, rounds: int, share: float) -> Any:
    library = _library()
    one = library.GaussianDpEvent(noise_multiplier)
    if share < 1:
        one = library.PoissonSampledDpEvent(share, one)
    return library.SelfComposedDpEvent(one, rounds)


def _event_of_shares(noise_multiplier: float, rounds: int) -> Any:
    library = _library()
    if noise_multiplier == 0:
        return library.NonPrivateDpEvent()
    return library.SelfComposedDpEvent(library.ZCDpEvent(rho=0.5 / noise_multiplier**2), rounds)


def _accountant() -> Any:
    return _library().pld.PLDAccountant()


def _renyi_accountant() -> Any:
    return _library().rdp.RdpAccountant()


@functools.cache
def _library() -> Any:
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
