"""Hostile clients: what they send, written out in numpy, around every kind of algorithm."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

import fedjax_post
from fedjax_post import algorithms
from fedjax_post.adapters.robust import krum as krum_of_products
from fedjax_post.adapters.robust import on_products
from fedjax_post.attacks import (
    hostile_clients,
    little_is_enough,
    poisoned,
    scaled,
    sign_flip,
)
from fedjax_post.attacks.poisoning import largest_unnoticed
from fedjax_post.core import (
    clip,
    coordinate_median,
    engine,
    krum,
    quantize,
    stack,
    uniformly,
    with_aggregate,
    with_uplink,
)
from fedjax_post.privacy import private, secure_sum
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.simulate.visit import contexts_of, fresh_states, visit
from fedjax_post.testing import CHECKS, Case, toy, toy_lora, toy_loss
from fedjax_post.testing.contract import EXPENSIVE

SGD = optax.sgd(0.05)
HOSTILE = np.array([True, False, False, True, False, False])
NOBODY = np.zeros(6, bool)


KEY = jax.random.key(0)


def visits(world):
    return [world.toy_clients().visit(k, data_rng(0, 0, k)) for k in range(6)]


def played(algorithm, world=toy, chunks=((0, 1, 2, 3, 4, 5),)):
    """The value that one round gives to the server."""
    model, given = world.toy_model(), visits(world)

    @jax.jit
    def play(params, given):
        replica = engine.broadcast(algorithm, engine.init(algorithm, params))
        like = engine.value_like(algorithm, model, replica, given[0])
        total = engine.init_total(algorithm, like, 6)
        for chunk in chunks:
            data = jax.tree.map(lambda *x: jnp.stack(x), *[given[k] for k in chunk])
            ids = jnp.array(chunk)
            states = fresh_states(algorithm, model, replica, data, KEY, ids)
            contexts = contexts_of(KEY, 0, ids)
            total = visit(algorithm, model, replica, total, states, data, contexts)[0]
        return engine.finish(algorithm, total).value

    return play(world.toy_params(), given)


def values_of(algorithm, world=toy):
    """What each client of an algorithm without links uploads, leaves `[clients, ...]`."""
    return jax.tree.map(np.asarray, played(algorithm._replace(aggregate=stack()), world)[0])


def base():
    return algorithms.fed_avg(toy_loss, SGD, weigh_fn=uniformly)


def equal(one, other, atol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), one, other)


@pytest.mark.parametrize("attack", [sign_flip(), scaled(-10.0), little_is_enough()])
def test_with_nobody_hostile_it_is_the_algorithm(attack):
    equal(played(poisoned(base(), attack, hostile=NOBODY)), played(base()))


@pytest.mark.parametrize(("attack", "factor"), [(sign_flip(), -1.0), (scaled(7.0), 7.0)])
def test_hostile_clients_send_a_multiple_of_their_values(attack, factor):
    rule = with_aggregate(base(), coordinate_median())
    found = played(poisoned(rule, attack, hostile=HOSTILE))
    values, factors = values_of(base()), np.where(HOSTILE, factor, 1.0)
    middle = lambda v: np.median(v * factors.reshape(6, *(1,) * (v.ndim - 1)), axis=0)
    equal(found, jax.tree.map(middle, values), atol=1e-6)


@pytest.mark.heavy
def test_a_hostile_client_does_not_clip():
    clipped = with_uplink(base(), clip(0.01))
    honest = played(clipped)
    hostile = played(poisoned(clipped, scaled(100.0), hostile=HOSTILE))
    length = lambda tree: float(optax.tree.norm(tree))
    assert length(honest) <= 0.01
    assert length(hostile) > 0.1


def test_an_attack_comes_after_links_that_change_the_layout():
    linked = with_uplink(base(), quantize(8))
    everyone = np.ones(6, bool)
    found = played(poisoned(linked, sign_flip(), hostile=everyone))
    equal(found, jax.tree.map(jnp.negative, played(linked)))


@pytest.mark.heavy
def test_a_product_of_factors_changes_its_sign_once():
    """-A times -B is A B: negating a whole value would leave FLoRA as it is."""
    flora = algorithms.flora(toy_lora.toy_loss, SGD)
    honest = played(flora, toy_lora).product
    flipped = played(poisoned(flora, sign_flip(), hostile=np.ones(6, bool)), toy_lora).product
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(honest)) > 1e-3
    equal(flipped, jax.tree.map(jnp.negative, honest), atol=1e-7)


def test_a_federation_of_products_runs_with_hostile_clients():
    flora = algorithms.flora(toy_lora.toy_loss, SGD)
    algorithm = poisoned(on_products(flora, krum_of_products(1)), sign_flip(), hostile=HOSTILE)
    given = toy_lora.toy_model(), toy_lora.toy_clients()
    run = fedjax_post.run(algorithm, *given, params=toy_lora.toy_params(), rounds=1)
    assert [record["dropped"] for _, record in run] == [[]]


@pytest.mark.parametrize(("num_clients", "num_hostile"), [(50, 24), (20, 8), (16, 6), (101, 40)])
def test_the_largest_unnoticed_deviation_is_that_of_the_paper(num_clients, num_hostile):
    supporters = np.floor(num_clients / 2 + 1) - num_hostile
    honest = num_clients - num_hostile
    expected = norm.ppf((honest - supporters) / honest)
    found = largest_unnoticed(jnp.int32(num_clients), jnp.int32(num_hostile))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("num_clients", "num_hostile"), [(16, 1), (4, 3), (3, 3), (1, 0)])
def test_too_few_to_hide_and_a_majority_are_finite(num_clients, num_hostile):
    assert 0 <= float(largest_unnoticed(num_clients, num_hostile)) < 10


def test_a_little_is_the_mean_less_some_deviations_of_the_honest():
    attack = little_is_enough(1.5)
    found = played(poisoned(base(), attack, hostile=HOSTILE))

    def expected(v):
        honest = v[~HOSTILE]
        crafted = honest.mean(0) - 1.5 * honest.std(0)
        mixed = np.where(HOSTILE.reshape(6, *(1,) * (v.ndim - 1)), crafted, v)
        return mixed.mean(0)

    equal(found, jax.tree.map(expected, values_of(base())), atol=1e-6)


@pytest.mark.parametrize(
    ("attack", "rule"), [(sign_flip(), None), (little_is_enough(1.0), coordinate_median())]
)
def test_chunks_do_not_matter(attack, rule):
    algorithm = base() if rule is None else with_aggregate(base(), rule)
    algorithm = poisoned(algorithm, attack, hostile=HOSTILE)
    once, parts = played(algorithm), played(algorithm, chunks=((0, 1), (2, 3), (4, 5)))
    equal(once, parts, atol=1e-6)


def test_a_cohort_without_honest_clients_is_taken_as_it_is():
    everyone = np.ones(6, bool)
    found = played(poisoned(base(), little_is_enough(), hostile=everyone))
    equal(found, played(base()))


@pytest.mark.heavy
def test_a_mean_is_moved_and_a_median_is_not():
    """An attack that works unprotected, and a rule that stops it."""
    distance = lambda one, other: float(optax.tree.norm(optax.tree.sub(one, other)))
    far, one = {}, np.arange(6) == 2
    for name, rule in {"mean": None, "median": coordinate_median()}.items():
        algorithm = base() if rule is None else with_aggregate(base(), rule)
        honest = played(algorithm)
        attacked = played(poisoned(algorithm, scaled(-10.0), hostile=one))
        far[name] = distance(attacked, honest) / float(optax.tree.norm(honest))
    assert far["mean"] > 1
    assert far["median"] < 0.5


KEPT = [name for name in CHECKS if name not in ("learns", "trains_a_language_model")]


@pytest.mark.parametrize("name", ["scaled", "little"])
@pytest.mark.parametrize(
    "check", [pytest.param(c, marks=[pytest.mark.heavy] if c in EXPENSIVE else []) for c in KEPT]
)
def test_a_poisoned_algorithm_keeps_the_contract(check, name):
    CHECKS[check](CASES[name])


CASES = {
    "scaled": Case(poisoned(algorithms.scaffold(toy_loss, 0.05, participation=1.0), scaled(-0.5),
                            hostile=HOSTILE)),
    "little": Case(poisoned(base(), little_is_enough(0.5), hostile=HOSTILE)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("make", "attack", "reason"),
    [
        (lambda: algorithms.het_lora(toy_lora.toy_loss, SGD), sign_flip(), "not a change"),
        (lambda: algorithms.flora(toy_lora.toy_loss, SGD), little_is_enough(), "the same rank"),
        (lambda: secure_sum(with_uplink(base(), clip(1.0)), threshold=2, max_clients=6, seed=0),
         sign_flip(), "its uploads are masked"),
    ],
)  # fmt: skip
def test_an_attack_that_would_mean_nothing_is_refused(make, attack, reason):
    with pytest.raises(ValueError, match="cannot be used with this algorithm") as raised:
        poisoned(make(), attack, hostile=HOSTILE)
    assert reason in str(raised.value)


def test_nothing_goes_around_hostile_clients():
    algorithm = poisoned(base(), sign_flip(), hostile=HOSTILE)
    with pytest.raises(ValueError, match="put around it last"):
        with_aggregate(algorithm, krum(1))
    with pytest.raises(ValueError, match="put around it last"):
        private(algorithm, clip_norm=1.0, noise_multiplier=1.0, cohort_size=6, seed=0)


def test_the_share_is_exact_and_drawn_by_seed():
    found = hostile_clients(1000, 0.3, seed=1)
    assert found.sum() == 300
    np.testing.assert_array_equal(found, hostile_clients(1000, 0.3, seed=1))
    assert (found != hostile_clients(1000, 0.3, seed=2)).any()
    assert 120 < found[:500].sum() < 180


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hostile_clients(10, 1.0, seed=0), "share must be in"),
        (lambda: hostile_clients(10, 0.01, seed=0), "share=0.01 of 10 clients is none"),
        (lambda: scaled(1.0), "factor must be finite and not 1, got 1"),
        (lambda: little_is_enough(-1.0), "z must not be negative, got -1"),
    ],
)
def test_wrong_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match="must|none") as raised:
        make()
    assert message in str(raised.value)
