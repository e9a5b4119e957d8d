"""Telemetry of adapters: against explicit dense matrices in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.adapters.factors import Factors, for_rank, widen
from fedjax_post.adapters.telemetry import adapter_telemetry, averaging_error, effective_rank
from fedjax_post.core.algorithm import Reading
from fedjax_post.testing import toy_lora

LAYERS, IN, OUT, RANK = 2, 7, 5, 3


def random_factors(seed, count):
    rng = np.random.default_rng(seed)
    shapes = {"q": (IN, OUT), "v": (IN, OUT + 1)}
    draw = lambda *shape: jnp.asarray(rng.normal(size=(count, LAYERS, *shape)), jnp.float32)
    return Factors(
        {name: draw(i, RANK) for name, (i, _) in shapes.items()},
        {name: draw(RANK, o) for name, (_, o) in shapes.items()},
    )


def dense(factors, name):
    """A B of each client in float64, `[clients, layers, in, out]`."""
    return np.asarray(factors.a[name], np.float64) @ np.asarray(factors.b[name], np.float64)


def dense_error(factors, weights):
    share = np.asarray(weights) / np.sum(weights)
    mean = lambda x: np.tensordot(share, np.asarray(x, np.float64), 1)
    apart = whole = 0.0
    for name in factors.a:
        product = mean(dense(factors, name))
        lost = product - mean(factors.a[name]) @ mean(factors.b[name])
        apart, whole = apart + (lost**2).sum(), whole + (product**2).sum()
    return np.sqrt(apart / whole)


def watch(watched, readings, weights, sizes):
    first = jax.tree.map(lambda x: x[0], readings)
    total, start = watched.init(first, len(weights)), 0
    for size in sizes:
        part = slice(start, start + size)
        reading = jax.tree.map(lambda x, part=part: x[part], readings)
        total = watched.add(total, reading, weights[part])
        start += size
    return watched.finish(total)


@pytest.mark.parametrize("sizes", [[6], [2, 4], [1, 2, 3]])
def test_the_error_is_that_of_dense_matrices(sizes):
    factors, weights = random_factors(0, 6), jnp.float32([1, 4, 0, 2, 0.5, 3])
    found = watch(averaging_error(8), Reading(after=factors), weights, sizes)
    assert found["aggregation_error"] == pytest.approx(dense_error(factors, weights), rel=1e-5)


def test_only_the_first_clients_are_kept_and_absent_ones_take_no_place():
    factors, weights = random_factors(1, 6), jnp.float32([0, 2, 0, 1, 3, 5])
    found = watch(averaging_error(3), Reading(after=factors), weights, [4, 2])
    first = jax.tree.map(lambda x: x[jnp.array([1, 3, 4])], factors)
    assert found["aggregation_error"] == pytest.approx(dense_error(first, [2, 1, 3]), rel=1e-5)


@pytest.mark.heavy
def test_halves_merge_to_the_whole():
    factors, weights, watched = random_factors(2, 5), jnp.arange(1.0, 6), averaging_error(4)
    empty = watched.init(jax.tree.map(lambda x: x[0], Reading(after=factors)), 5)
    parts = [
        watched.add(empty, jax.tree.map(lambda x, s=s: x[s], Reading(after=factors)), weights[s])
        for s in (slice(0, 2), slice(2, 5))
    ]
    first = jax.tree.map(lambda x: x[:4], factors)
    error = watched.finish(watched.merge(*parts))["aggregation_error"]
    assert error == pytest.approx(dense_error(first, weights[:4]), rel=1e-5)


def test_unequal_ranks_and_scales_count_as_dense_products_do():
    """Each client's own (alpha / r) A B, under its own rank, in the federation's units."""
    ranks, weights = [1, 2, 3], np.array([2.0, 1.0, 3.0])
    model, rng = toy_lora.toy_model(rank=3), np.random.default_rng(3)
    ends, products, scaled_b = [], [], []
    for rank in ranks:
        a = np.zeros((2, toy_lora.INPUTS, 3))
        b = np.zeros((2, 3, toy_lora.OUTPUTS))
        a[:, :, :rank] = rng.normal(size=a[:, :, :rank].shape)
        b[:, :rank] = rng.normal(size=b[:, :rank].shape)
        layer = lambda x: {"layers": {"mix": jnp.asarray(x, jnp.float32)}}
        ends.append(widen(Factors(layer(a), layer(b)), model, for_rank(model, rank)))
        scaled_b.append(toy_lora.ALPHA / rank * b)
        products.append(a @ scaled_b[-1])
    share = weights / weights.sum()
    mean = lambda xs: np.tensordot(share, np.stack(xs), 1)
    factors = jax.tree.map(lambda *x: jnp.stack(x), *ends)
    apart = mean(products) - mean([np.asarray(e.a["layers"]["mix"]) for e in ends]) @ mean(scaled_b)
    expected = np.linalg.norm(apart) / np.linalg.norm(mean(products))
    found = watch(averaging_error(3), Reading(after=factors), jnp.float32(weights), [3])
    assert found["aggregation_error"] == pytest.approx(expected, rel=1e-5)


def dense_rank(matrix):
    values = np.linalg.svd(matrix, compute_uv=False)
    share = values[values > 1e-9 * values.max()] / values.sum()
    return np.exp(-(share * np.log(share)).sum())


@pytest.mark.heavy
def test_the_effective_rank_is_that_of_the_dense_change():
    start, change = random_factors(4, 1), random_factors(5, 3)
    weights = np.array([1.0, 0.0, 2.0])
    mean = jax.tree.map(lambda x: (x[0] + 2 * x[2]) / 3, change)
    after = jax.tree.map(jnp.add, start, change)
    end = jax.tree.map(lambda s, c: s[0] + c, start, mean)
    expected = np.mean(
        [
            dense_rank((dense(end, name) - dense(jax.tree.map(lambda x: x[0], start), name))[layer])
            for name in start.a
            for layer in range(LAYERS)
        ]
    )
    found = watch(effective_rank(), Reading(change, after), jnp.float32(weights), [2, 1])
    assert found["effective_rank"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("values", "rank"), [([1, 1, 1], 3), ([5, 0, 0], 1), ([2, 2, 0], 2),
                                              ([2, 1, 1], 2**1.5)])  # fmt: skip
def test_effective_ranks_known_by_hand(values, rank):
    """B starts at zero and ends as singular values on the diagonal, A is orthonormal."""
    a = {"q": jnp.eye(IN, RANK)[None, None]}
    b = {"q": (jnp.diag(jnp.float32(values)) @ jnp.eye(RANK, OUT))[None, None]}
    still = jax.tree.map(jnp.zeros_like, a)
    found = watch(effective_rank(), Reading(Factors(still, b), Factors(a, b)), jnp.ones(1), [1])
    assert found["effective_rank"] == pytest.approx(rank, rel=1e-5)


def records(algorithm, rounds=2, **plan):
    run = fp.run(
        algorithm, toy_lora.toy_model(), toy_lora.toy_clients(), params=toy_lora.toy_params(),
        rounds=rounds, plan=fp.Plan(telemetry=adapter_telemetry(4), **plan),
    )  # fmt: skip
    return [record for _, record in run]


CHANGES = {"client_drift", "client_norm", "client_cosine"}
ALL = CHANGES | {"aggregation_error", "effective_rank"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fed_avg", ALL),
        ("ro_lora", ALL),
        ("ffa_lora", ALL),
        ("fed_svd", ALL),
        ("fed_sa_lora", CHANGES),
        ("fed_rep", CHANGES),  # B stays with the clients
        ("flora", {"aggregation_error"}),
        ("flex_lora", {"aggregation_error"}),
        ("fed_ex_lora", {"aggregation_error"}),
        ("het_lora", {"aggregation_error"}),
    ],
)
def test_each_algorithm_tells_what_can_be_told(name, expected):
    record = records(algorithms.ALGORITHMS[name](toy_lora.toy_loss, optax.sgd(0.05)))[-1]
    assert ALL & set(record) == expected
    error = record.get("aggregation_error", 0)
    if name in ("ro_lora", "ffa_lora", "fed_svd"):
        assert error == 0
    elif "aggregation_error" in expected:
        assert 0 < error < 1
