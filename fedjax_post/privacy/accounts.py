"""Accounts of differential privacy: one for each way to draw clients and to add noise.

| account | noise | two populations are neighbours if | amplified by sampling |
| --- | --- | --- | --- |
| `poisson` | of the server | one client is added or removed | yes |
| `full` | of the server | the same | no: all take part |
| `fixed_size` | of the server | one client is replaced by another | yes, by Renyi divergences |
| `cyclic` | of the server, correlated | one client takes part or sends nothing | in its group |
| `shares` | of the clients, in the sum | one client sends its values, or zeros | no |
| `uploads` | of each client alone | one client sends anything else | no |
| `row_steps` | of each client, on gradients | one row has its gradient, or none | no |

No accountant knows the sampler that a run uses: give the account of that sampler. One client is
a person only if no person's rows are at several clients.
"""

import math
from typing import Any

from fedjax_post.privacy.accounting import EXACT, RENYI, Account, library

_CLIENT = "client, with all its rows"
_BY_SERVER = "the server is trusted with all uploads, and to add the noise"


def poisson(*, cohort_size: float, population: int) -> Account:
    """Returns the account of rounds to which every client is drawn independently.

    Args:
      cohort_size: expected clients in a round.
      population: number of clients.

    Raises:
      ValueError: if `cohort_size` is out of range.
    """
    share = _share(cohort_size, population)
    return Account(
        event=lambda noise, rounds: _repeated(_sampled(noise, share), rounds),
        unit=_CLIENT,
        neighbours="add or remove one client",
        sampling=f"each client independently, with probability {share:.3g}",
        trust=_BY_SERVER,
    )


def full() -> Account:
    """Returns the account of rounds in which all clients take part."""
    return Account(
        event=lambda noise, rounds: _repeated(_gaussian(noise), rounds),
        unit=_CLIENT,
        neighbours="add or remove one client",
        sampling="all clients in every round",
        trust=_BY_SERVER,
        by=EXACT,
    )


def fixed_size(*, cohort_size: int, population: int) -> Account:
    """Returns the account of rounds with cohorts of fixed size, drawn without replacement.

    Replacing a client changes a sum by up to twice what one client contributes (Wang, Balle and
    Kasiviswanathan 2019, arXiv:1808.00087, theorem 27). For an equal noise multiplier this costs
    a larger epsilon than Poisson sampling, for a stronger relation between neighbours.

    Args:
      cohort_size: clients in a round.
      population: number of clients, which is public here.

    Raises:
      ValueError: if `cohort_size` is out of range.
    """
    share = _share(cohort_size, population)

    def event(noise, rounds):
        one = library().SampledWithoutReplacementDpEvent(
            population, cohort_size, _gaussian(noise / 2)
        )
        return _repeated(one, rounds)

    return Account(
        event=event,
        unit=_CLIENT,
        neighbours="replace one client by another; the number of clients is public",
        sampling=f"{cohort_size:g} clients without replacement, a share of {share:.3g}",
        trust=_BY_SERVER,
        by=RENYI,
        replaces=True,
    )


def cyclic(*, cohort_size: float, population: int, bands: int) -> Account:
    """Returns the account of correlated noise, with clients drawn from one group after another.

    Rounds of `simulate.cohort.cyclic` with noise of `banded` cost as much as one round in
    `bands` of Poisson sampling within a group (Choquette-Choo et al. 2023, arXiv:2306.08153,
    theorem 4). A client's place in its group does not depend on others, so that neighbours are
    populations of the same ids.

    Args:
      cohort_size: expected clients in a round.
      population: number of clients.
      bands: number of groups, and of the bands of the noise.

    Raises:
      ValueError: if `cohort_size` is out of range.
    """
    share = _share(cohort_size * bands, population)
    return Account(
        event=lambda noise, rounds: _repeated(_sampled(noise, share), math.ceil(rounds / bands)),
        unit=_CLIENT,
        neighbours="one client takes part, or sends nothing in its place",
        sampling=f"one of {bands} groups in turn, each of its clients independently, with "
        f"probability {share:.3g}",
        trust=_BY_SERVER,
    )


def shares() -> Account:
    """Returns the account of noise that clients add in shares, under `secure.secure_sum`.

    A sum of n discrete Gaussians of parameter sigma, on whole numbers, is 1/2 e^2-concentrated
    private with e at most 1 / noise_multiplier + tau sqrt(d) for d entries, where tau = 10
    sum_{k < n} exp(-2 pi^2 sigma^2 k / (k + 1)) (Kairouz, Liu and Steinke 2021, arXiv:2102.06387,
    proposition 14). `secure_sum` refuses a sigma below 4, for which tau is below 1e-60 even for a
    million clients, and is left out here. Rounding to nearest is in the sensitivity: it lengthens
    a value by at most sqrt(d) / 2 steps. The noise multiplier is the deviation of the noise of
    `threshold` clients in the sum, over the largest norm of a client's codes.
    """
    return Account(
        event=lambda noise, rounds: _repeated(
            library().ZCDpEvent(rho=0.5 / noise**2) if noise else library().NonPrivateDpEvent(),
            rounds,
        ),
        unit=_CLIENT,
        neighbours="one client sends its values, or zeros",
        sampling="not counted, since the server sees who takes part",
        trust="the clients are trusted to add the noise, and a client that works with the server "
        "takes its share of the noise away",
        by=RENYI,
    )


def uploads() -> Account:
    """Returns the account of noise that each client adds to its own uploads, one a round.

    Two inputs of a client differ by up to twice the bound of an upload, so an epsilon costs far
    more noise than with a trusted server.
    """
    return Account(
        event=lambda noise, rounds: _repeated(_gaussian(noise / 2), rounds),
        unit=_CLIENT + ", in each of its uploads",
        neighbours="the client holds any other rows",
        sampling="not counted, since the server sees who takes part; a client is counted in "
        "every round",
        trust="nobody but the client itself, which adds the noise",
        by=EXACT,
    )


def row_steps(passes: int) -> Account:
    """Returns the account of noise on the local gradients of `rows.private_rows`.

    Args:
      passes: number of gradients in one round, of those of one client, to which a row may
        contribute.

    Raises:
      ValueError: if `passes` is not positive.
    """
    if passes < 1:
        raise ValueError(f"passes must be at least 1, got {passes}")
    return Account(
        event=lambda noise, rounds: _repeated(_gaussian(noise), passes * rounds),
        unit="row of a client",
        neighbours="one row has its gradient, or none; the number of rows is public",
        sampling=f"not counted; a row is counted {passes} times in every round",
        trust="the client that holds the row, which adds the noise; the server needs no trust",
        by=EXACT,
    )


def _share(cohort_size: float, population: int) -> float:
    if not 0 < cohort_size <= population:
        raise ValueError(
            f"cohort_size must be in (0, population = {population}], got {cohort_size:g}"
        )
    return cohort_size / population


def _sampled(noise: float, share: float) -> Any:
    return library().PoissonSampledDpEvent(share, _gaussian(noise))


def _gaussian(noise: float) -> Any:
    return library().GaussianDpEvent(noise)


def _repeated(event: Any, count: int) -> Any:
    return library().SelfComposedDpEvent(event, count)
