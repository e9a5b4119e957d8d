"""Telemetry: against dense sums, and against cases whose answer is known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.core import telemetry
from fedjax_post.core.algorithm import Reading
from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params


def watch(changes, weights, *, sizes=None):
    """The numbers of some changes `[clients, ...]`, added in chunks of the given sizes."""
    watched = telemetry.change_statistics()
    total = watched.init(Reading(jax.tree.map(lambda x: x[0], changes)), len(weights))
    start = 0
    for size in sizes or [len(weights)]:
        part = slice(start, start + size)
        reading = Reading(jax.tree.map(lambda x, part=part: x[part], changes))
        total = watched.add(total, reading, weights[part])
        start += size
    return watched.finish(total)


def test_numbers_are_those_of_the_dense_sums():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(5, 10)) + 0.5
    weights = np.array([1.0, 3.0, 0.5, 2.0, 4.0])
    share = weights / weights.sum()
    mean = share @ flat
    units = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    pairs = (units @ units.T)[~np.eye(5, dtype=bool)]
    changes = {"a": jnp.float32(flat[:, :6].reshape(5, 2, 3)), "b": jnp.float32(flat[:, 6:])}
    found = watch(changes, jnp.float32(weights), sizes=[2, 3])
    spread = share @ ((flat - mean) ** 2).sum(1)
    assert found["client_drift"] == pytest.approx(spread / (mean**2).sum(), rel=1e-5)
    assert found["client_norm"] == pytest.approx(np.linalg.norm(flat, axis=1).mean(), rel=1e-5)
    assert found["client_cosine"] == pytest.approx(pairs.mean(), rel=1e-5)


def test_right_angles_and_opposites():
    """Two clients at a right angle: |D_k - M|^2 = |M|^2 = 1/2; opposites cancel."""
    found = watch(jnp.eye(2), jnp.ones(2))
    np.testing.assert_allclose([found["client_drift"], found["client_cosine"]], [1, 0], atol=1e-6)
    found = watch(jnp.float32([[2, 0], [-1, 0]]), jnp.ones(2))
    assert found["client_cosine"] == pytest.approx(-1)
    assert found["client_drift"] == pytest.approx(9)  # M = 1/2, both 3/2 away
    assert watch(jnp.ones((3, 4)), jnp.arange(1.0, 4))["client_drift"] == pytest.approx(0, abs=1e-6)


def test_absent_clients_do_not_count():
    changes = jnp.float32([[1, 0], [np.nan, np.inf], [0, 1], [0, 0]])
    found = watch(changes, jnp.float32([1, 0, 1, 0]))
    alone = watch(changes[::2], jnp.ones(2))
    assert found == alone


def test_what_is_not_defined_is_not_a_number():
    one = watch(jnp.float32([[3, 4]]), jnp.ones(1))
    assert not np.isfinite(one["client_cosine"])
    assert one["client_norm"] == 5
    assert not np.isfinite(list(watch(jnp.ones((2, 3)), jnp.zeros(2)).values())).any()
    still = watch(jnp.float32([[1, 0], [1, 0], [0, 0]]), jnp.ones(3))
    assert still["client_cosine"] == pytest.approx(1)  # of the pair that moved


def test_two_halves_merge_to_the_whole():
    changes = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)), jnp.float32)
    weights, watched = jnp.arange(1.0, 7), telemetry.join(telemetry.change_statistics())
    empty = watched.init(Reading(changes[0]), 6)
    halves = [watched.add(empty, Reading(changes[i::2]), weights[i::2]) for i in (0, 1)]
    merged = watched.finish(watched.merge(*halves))
    for name, value in watch(changes, weights).items():
        assert merged[name] == pytest.approx(float(value), rel=1e-5)


def records(algorithm, **plan):
    run = fp.run(
        algorithm, toy_model(), toy_clients(), params=toy_params(), rounds=2, plan=fp.Plan(**plan)
    )
    return list(run)


NAMES = {"client_drift", "client_norm", "client_cosine"}


@pytest.mark.parametrize("chunk_size", [6, 4, 1])
def test_watching_changes_no_bit_of_a_run_and_chunks_no_number(chunk_size):
    algorithm = algorithms.fed_avg(toy_loss, optax.sgd(0.05))
    plain = records(algorithm, chunk_size=chunk_size)
    plan = {"telemetry": telemetry.change_statistics()}
    watched = records(algorithm, chunk_size=chunk_size, **plan)
    jax.tree.map(np.testing.assert_array_equal, plain[-1][0], watched[-1][0])
    assert set(watched[-1][1]) - set(plain[-1][1]) == NAMES
    whole = records(algorithm, **plan)[-1][1]
    for name in NAMES:
        assert watched[-1][1][name] == pytest.approx(whole[name], rel=1e-4)
    for name in ("bytes_up", "bytes_down", "loss"):
        assert watched[-1][1][name] == plain[-1][1][name]


@pytest.mark.heavy
def test_the_host_sees_what_the_device_sees():
    algorithm = algorithms.scaffold(toy_loss, 0.05, participation=1.0)
    plan = {"telemetry": telemetry.change_statistics()}
    device, host = (records(algorithm, **plan, executor=e)[0][1] for e in (fp.device, fp.host))
    for name in NAMES:
        assert device[name] == pytest.approx(host[name], rel=1e-4)


def test_a_value_that_tells_nothing_gives_no_numbers():
    algorithm = algorithms.q_fed_avg(toy_loss, 0.05, q=0.5)
    record = records(algorithm, telemetry=telemetry.change_statistics())[0][1]
    assert not NAMES & set(record)
