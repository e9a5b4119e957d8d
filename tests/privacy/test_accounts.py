"""Every account against `dp_accounting` called directly, to 1e-6, and against each other."""

import dp_accounting as dp
import pytest
from dp_accounting import pld, rdp

from fedjax_post import privacy
from fedjax_post.privacy import accounts

DELTA, NOISE, ROUNDS = 1e-5, 1.3, 7
REPLACE = dp.NeighboringRelation.REPLACE_ONE


def gaussian(noise, count):
    return dp.get_epsilon_gaussian(noise / count**0.5, DELTA)


def sampled(noise, share, count):
    event = dp.PoissonSampledDpEvent(share, dp.GaussianDpEvent(noise))
    return pld.PLDAccountant().compose(event, count).get_epsilon(DELTA)


def without_replacement(noise, cohort_size, population, count):
    event = dp.SampledWithoutReplacementDpEvent(population, cohort_size, dp.GaussianDpEvent(noise))
    return rdp.RdpAccountant(neighboring_relation=REPLACE).compose(event, count).get_epsilon(DELTA)


# an account -> what dp_accounting is told of the same rounds
DIRECTLY = {
    "poisson": (
        accounts.poisson(cohort_size=50, population=1000),
        lambda: sampled(NOISE, 0.05, ROUNDS),
    ),
    "full": (accounts.full(), lambda: gaussian(NOISE, ROUNDS)),
    "fixed_size": (  # one client replaced changes a sum by twice its bound
        accounts.fixed_size(cohort_size=50, population=1000),
        lambda: without_replacement(NOISE / 2, 50, 1000, ROUNDS),
    ),
    "cyclic": (  # 7 rounds in 3 groups: a client's group has at most 3 turns
        accounts.cyclic(cohort_size=50, population=1000, bands=3),
        lambda: sampled(NOISE, 0.15, 3),
    ),
    "uploads": (accounts.uploads(), lambda: gaussian(NOISE / 2, ROUNDS)),
    "row_steps": (accounts.row_steps(4), lambda: gaussian(NOISE, 4 * ROUNDS)),
}


SLOW = {"poisson", "cyclic"}  # loss distributions


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.heavy] * (name in SLOW)) for name in DIRECTLY]
)
def test_an_account_is_what_dp_accounting_says(name):
    account, directly = DIRECTLY[name]
    found = privacy.epsilon_of(NOISE, account, delta=DELTA, rounds=ROUNDS)
    assert found == pytest.approx(directly(), abs=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["fixed_size", "uploads", "row_steps"])
def test_calibrated_noise_costs_what_was_asked_for(name):
    account, _ = DIRECTLY[name]
    noise = privacy.noise_for(2.0, account, delta=DELTA, rounds=ROUNDS)
    assert 1.97 < privacy.epsilon_of(noise, account, delta=DELTA, rounds=ROUNDS) <= 2


@pytest.mark.parametrize("name", ["full", "uploads", "row_steps"])
def test_without_sampling_loss_distributions_say_nearly_the_same(name):
    """They are an upper bound, rounded up by 1e-4 of a loss."""
    account, _ = DIRECTLY[name]
    exact = privacy.epsilon_of(4.0, account, delta=DELTA, rounds=1)
    bound = pld.PLDAccountant().compose(account.event(4.0, 1)).get_epsilon(DELTA)
    assert exact - 1e-6 < bound < exact + 1e-3


@pytest.mark.heavy
def test_correlated_noise_is_accounted_as_jax_privacy_does():
    accounting = pytest.importorskip("jax_privacy.accounting")
    accountant = accounting.DpsgdTrainingAccountant(accounting.PldAccountantConfig())
    parameters = accounting.DpParams(
        noise_multipliers=NOISE, num_samples=900, delta=DELTA, batch_size=50, cycle_length=3
    )
    account = accounts.cyclic(cohort_size=50, population=900, bands=3)
    found = privacy.epsilon_of(NOISE, account, delta=DELTA, rounds=ROUNDS)
    assert found == pytest.approx(accountant.compute_epsilon(ROUNDS, parameters), abs=1e-6)


@pytest.mark.heavy
def test_a_fixed_cohort_costs_more_than_a_poisson_one():
    """Its neighbours are further apart: one client replaced, not added or removed."""
    drawn = {"cohort_size": 50, "population": 1000}
    found = [
        privacy.epsilon_of(NOISE, make(**drawn), delta=DELTA, rounds=ROUNDS)
        for make in (accounts.poisson, accounts.fixed_size)
    ]
    assert found[0] < found[1]
