"""Differential privacy of an experiment: what its noise is of, what is said, what is refused."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_post.algorithms.fed_avg import fed_avg
from fedjax_post.data.load import load_clients
from fedjax_post.hub.tokenizer import load_tokenizer
from fedjax_post.privacy import accounts, epsilon_of
from fedjax_post.study import Spec, private, resolve
from fedjax_post.study.private_checks import check_people
from fedjax_post.study.running import Privacy, Training


def rows_of(*names):
    return [
        {"prompt": "opposites: hot dry", "response": "cold wet", "client": name} for name in names
    ]


@pytest.fixture(scope="module")
def data():
    names = [f"client {i % 20}" for i in range(60)]
    return load_clients(rows_of(*names), load_tokenizer("builtin"), batch_size=2, local_steps=3)


def promise_of(data, *, sampling="poisson", cohort_size=5, rounds=4, **given):
    given = {"noise_multiplier": 1.0, "clip": 0.5, "delta": 1e-3} | given
    training = Training(
        rounds=rounds, sampling=sampling, cohort_size=cohort_size, batch_size=2, local_steps=3
    )
    spec = resolve(Spec(training=training, privacy=Privacy(**given)))
    made = private.promise(spec, data, cohort_size=cohort_size)
    return spec, made


@pytest.mark.parametrize(
    ("given", "account"),
    [
        ({"sampling": "full"}, accounts.full()),
        ({"sampling": "uniform"}, accounts.fixed_size(cohort_size=5, population=20)),
        ({"noise_at": "client"}, accounts.uploads()),
        # three steps of two rows, by a client with two rows: each row is used three times
        ({"noise_at": "step"}, accounts.row_steps(3)),
    ],
)
def test_a_run_is_accounted_as_its_clients_are_drawn(data, given, account):
    _, made = promise_of(data, **given)
    expected = epsilon_of(1.0, account, delta=1e-3, rounds=4)
    assert private.epsilon_after(made, 4) == pytest.approx(expected, rel=1e-9)
    assert made.account._replace(event=None) == account._replace(event=None)


def test_the_account_of_cyclic_cohorts_knows_their_groups(data):
    _, made = promise_of(data, sampling="cyclic", bands=2)
    assert "one of 2 groups in turn" in made.account.sampling
    assert "probability 0.5" in made.account.sampling


def test_the_noise_of_a_larger_cohort_is_said_to_be_simulated(data):
    spec, made = promise_of(data, noise_cohort=500, sampling="uniform", delta=1e-4)
    assert (made.cohort_size, made.population, made.scale) == (500, 2000, 0.01)
    told = private.describe(made._replace(bound=0.5), spec)
    assert "SIMULATED" in told[-1]
    assert "is less private than that: its own noise multiplier is 0.01" in told[-1]
    assert private.privacy_summary(made, {"epsilon": 1.0}, "uniform")["simulated"] == told[-1]


@pytest.mark.parametrize(
    ("given", "divisor"), [({}, 5), ({"noise_cohort": 500, "delta": 1e-4}, 500)]
)
def test_the_noise_in_a_mean_is_that_of_the_cohort_that_is_accounted(data, given, divisor):
    """Measured: z times the clip norm over the cohort's size, simulated or the run's own."""
    spec, made = promise_of(data, noise_multiplier=1.5, **given)
    base = fed_avg(lambda params, model, batch, key: (0.0, {}), optax.sgd(1.0))
    algorithm, made = private.around(base, spec, made)
    zeros = jnp.zeros(20_000)
    drawn, _ = algorithm.server.update(zeros, algorithm.server.init(zeros), zeros)
    assert float(drawn.std()) == pytest.approx(1.5 * 0.5 / divisor, rel=0.03)


def test_a_private_run_says_whose_data_it_hides_from_whom(data):
    spec, made = promise_of(data, sampling="full")
    told = "\n".join(private.describe(made._replace(bound=0.5), spec))
    for text in ("hides a client, with all its rows", "add or remove one client", "all clients in"):
        assert text in told
    assert "not covered: losses, scores" in told


@pytest.mark.parametrize("other", ["Ann", " ann", "ａnn", "ann "])
def test_names_that_may_be_one_person_are_refused(other):
    rows = rows_of("ann", "bob", other, "ann", "bob", other)
    loaded = load_clients(rows, load_tokenizer("builtin"), batch_size=1, local_steps=1)
    assert len(loaded.names) == 3
    spec = Spec(privacy=Privacy(noise_multiplier=1.0, clip=1.0))
    with pytest.raises(ValueError, match="may be one person"):
        check_people(spec, loaded)


def test_every_field_of_the_summary_is_a_plain_number_or_text(data):
    _, made = promise_of(data, noise_at="step")
    told = private.privacy_summary(made, {"epsilon": math.pi}, "poisson")
    assert all(isinstance(x, str | int | float | None) for x in told.values())
    assert np.isfinite([x for x in told.values() if isinstance(x, float)]).all()
