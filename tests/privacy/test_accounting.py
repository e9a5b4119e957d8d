"""The privacy accounting against closed forms, and its refusals."""

import builtins
import math

import numpy as np
import pytest

from fedjax_post import privacy
from fedjax_post.privacy import accounting, accounts

ALL = accounts.full()
SOME = accounts.poisson(cohort_size=64, population=1000)


def normal_cdf(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


def delta_of(epsilon, deviation):
    """Balle & Wang 2018, arXiv:1805.06530, Theorem 8, for a sensitivity of 1."""
    a, b = 1 / (2 * deviation), epsilon * deviation
    return normal_cdf(a - b) - math.exp(epsilon) * normal_cdf(-a - b)


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (4.0, 7), (30.0, 60)])
def test_without_sampling_it_is_the_analytic_gaussian_mechanism(noise, rounds):
    """Rounds of equal noise are one mechanism of noise over the root of their number."""
    epsilon = privacy.epsilon_of(noise, ALL, delta=1e-5, rounds=rounds)
    exact = noise / math.sqrt(rounds)
    assert delta_of(epsilon, exact) <= 1e-5 * 1.0001  # an upper bound
    assert delta_of(0.99 * epsilon, exact) > 1e-5  # and a tight one


@pytest.mark.heavy
@pytest.mark.parametrize("rounds", [1, 60])
def test_sampling_lies_between_renyi_accounting_and_a_lower_bound(rounds):
    """Mironov et al. 2019, arXiv:1908.10530: the Renyi account is never below."""
    import dp_accounting
    from dp_accounting import rdp

    one = dp_accounting.PoissonSampledDpEvent(0.064, dp_accounting.GaussianDpEvent(1.0))
    renyi = rdp.RdpAccountant().compose(dp_accounting.SelfComposedDpEvent(one, rounds))
    found = privacy.epsilon_of(1.0, SOME, delta=1e-5, rounds=rounds)
    assert 0.6 * renyi.get_epsilon(1e-5) < found <= renyi.get_epsilon(1e-5)
    assert found < privacy.epsilon_of(1.0, ALL, delta=1e-5, rounds=rounds)


@pytest.mark.heavy
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_calibrated_noise_costs_what_was_asked_for(epsilon):
    noise = privacy.noise_for(epsilon, SOME, delta=1e-4, rounds=20)
    spent = privacy.epsilon_of(noise, SOME, delta=1e-4, rounds=20)
    assert 0.99 * epsilon < spent <= epsilon


def test_nothing_spends_nothing_and_no_noise_all():
    assert privacy.epsilon_of(1.0, SOME, delta=1e-5, rounds=0) == 0
    assert privacy.epsilon_of(0.0, SOME, delta=1e-5, rounds=3) == math.inf


@pytest.mark.heavy
def test_more_rounds_cost_more():
    spent = [privacy.epsilon_of(1.0, SOME, delta=1e-5, rounds=n) for n in (1, 2, 10)]
    assert np.all(np.diff(spent) > 0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: privacy.check_delta(0.02, 50), r"delta=0.02 must be in \(0, 0.02\)"),
        (lambda: privacy.check_delta(0.0, 50), "delta=0 must be in"),
        (lambda: privacy.noise_for(0.0, ALL, delta=1e-5, rounds=1), "epsilon=0 must be"),
        (lambda: privacy.epsilon_of(1.0, ALL, delta=2.0, rounds=1), "delta must be in"),
        (lambda: accounts.poisson(cohort_size=9, population=8), "cohort_size must be in"),
        (lambda: accounts.fixed_size(cohort_size=9, population=8), "cohort_size must be in"),
        (lambda: accounts.cyclic(cohort_size=3, population=8, bands=3), "got 9"),
        (lambda: accounts.row_steps(0), "passes must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_a_missing_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args):
        if name.startswith("dp_accounting"):
            raise ImportError(name)
        return real(name, *args)

    accounting.library.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'fedjax_post\[privacy\]'"):
        privacy.epsilon_of(1.0, SOME, delta=1e-5, rounds=1)


def test_the_usual_delta_is_less_than_one_over_the_clients():
    for population in (2, 128, 10**6):
        privacy.check_delta(privacy.usual_delta(population), population)


@pytest.mark.parametrize(("noise", "rounds"), [(0.7, 1), (4.0, 30)])
def test_noise_of_clients_costs_what_proposition_14_says(noise, rounds):
    """arXiv:2102.06387, with all its terms, for the coarsest noise that is allowed."""
    import dp_accounting
    from dp_accounting import rdp

    sigma, clients, entries = 4.0, 10**4, 10**9  # the sum's deviation is their root
    k = np.arange(1, clients)
    tau = 10 * np.exp(-2 * (np.pi * sigma) ** 2 * k / (k + 1)).sum()
    # sensitivity over the deviation of the sum
    concentrated = 1 / noise + tau * math.sqrt(entries)
    account = rdp.RdpAccountant()
    event = dp_accounting.ZCDpEvent(rho=concentrated**2 / 2)
    account.compose(dp_accounting.SelfComposedDpEvent(event, rounds))
    told = privacy.epsilon_of(noise, accounts.shares(), delta=1e-5, rounds=rounds)
    assert told == pytest.approx(account.get_epsilon(1e-5), rel=1e-9)
    # the same as of one Gaussian of the server, by the same accountant, without sampling
    central = rdp.RdpAccountant().compose(
        dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(noise), rounds)
    )
    assert told == pytest.approx(central.get_epsilon(1e-5), rel=1e-9)
    # and never below the exact account of it
    assert delta_of(told, noise / math.sqrt(rounds)) <= 1e-5


def test_calibrated_noise_of_clients_costs_what_was_asked_for():
    noise = privacy.noise_for(2.0, accounts.shares(), delta=1e-4, rounds=20)
    spent = privacy.epsilon_of(noise, accounts.shares(), delta=1e-4, rounds=20)
    assert 0.99 * 2 < spent <= 2
    assert privacy.epsilon_of(1.0, accounts.shares(), delta=1e-4, rounds=0) == 0
    assert privacy.epsilon_of(0.0, accounts.shares(), delta=1e-4, rounds=1) == math.inf
