"""Laws of products of stacked factors, against dense matrices in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.adapters import products
from fedjax_post.adapters.factors import Factors

CLIENTS, LAYERS, INPUTS, OUTPUTS, RANK = 4, 2, 11, 13, 3
SHARES = np.array([0.1, 0.4, 0.2, 0.3], np.float32)


def random_values(seed=0, inputs=INPUTS, outputs=OUTPUTS):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=(CLIENTS, LAYERS, *shape)), jnp.float32)
    return Factors(
        {"q": normal(inputs, RANK), "v": normal(outputs, RANK)},
        {"q": normal(RANK, outputs), "v": normal(RANK, inputs)},
    )


def dense_products(values):
    """Leaves `[CLIENTS, LAYERS, in, out]`, float64."""
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), values)
    return jax.tree.map(np.matmul, wide.a, wide.b)


def mean_of(tree):
    return jax.tree.map(lambda x: np.tensordot(SHARES.astype(np.float64), x, 1), tree)


def norm_of(tree):
    return np.sqrt(sum(np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(tree)))


def dense_error(values):
    """|mean of products - product of means| over |mean of products|."""
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), values)
    whole = mean_of(dense_products(values))
    of_means = jax.tree.map(np.matmul, mean_of(wide.a), mean_of(wide.b))
    return norm_of(jax.tree.map(np.subtract, whole, of_means)) / norm_of(whole)


def test_aggregation_error_equals_the_dense_one():
    values = random_values()
    for weights in (SHARES, 70 * SHARES):
        found = products.aggregation_error(values, jnp.asarray(weights))
        np.testing.assert_allclose(found, dense_error(values), rtol=1e-5)


@pytest.mark.parametrize("common", ["a", "b"])
def test_a_common_factor_leaves_no_aggregation_error(common):
    values = random_values()
    first = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), getattr(values, common))
    error = products.aggregation_error(values._replace(**{common: first}), jnp.asarray(SHARES))
    assert float(error) < 1e-6


def test_an_empty_cohort_has_no_aggregation_error():
    assert float(products.aggregation_error(random_values(), jnp.zeros(CLIENTS))) == 0


@pytest.mark.parametrize("name", ["aggregation_error", "top_components"])
def test_no_matrix_of_in_by_out_is_formed(name):
    inputs, outputs = 37, 41  # larger than CLIENTS * RANK, and no product of other sizes
    values = random_values(inputs=inputs, outputs=outputs)
    rank = (RANK,) if name == "top_components" else ()
    function = lambda v, w: getattr(products, name)(v, w, *rank)
    text = str(jax.make_jaxpr(function)(values, jnp.asarray(SHARES)))
    assert f",{inputs},{RANK}]" in text
    assert not re.search(rf"\b({inputs},{outputs}|{outputs},{inputs})\b", text)


@pytest.mark.heavy
def test_mean_products_equal_the_dense_mean_in_any_chunks():
    values, expected = random_values(), mean_of(dense_products(random_values()))
    aggregate = products.mean_products()
    weights = jnp.asarray(5 * SHARES)
    like = jax.tree.map(lambda x: x[0], values)
    part = lambda one, many: jax.tree.map(lambda x: x[one:many], (values, weights))
    whole = aggregate.finish(aggregate.add(aggregate.init(like, 4), values, weights))
    halves = [aggregate.add(aggregate.init(like, 2), *part(*ends)) for ends in ((0, 1), (1, 4))]
    for means in (whole, aggregate.finish(aggregate.merge(*halves))):
        close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
        jax.tree.map(close, means.product, expected)
        jax.tree.map(close, means.factors, Factors(*(mean_of(tree) for tree in values)))
        assert int(means.num_components) == CLIENTS * RANK


def test_mean_products_ignore_who_is_absent():
    values, aggregate = random_values(), products.mean_products()
    poisoned = jax.tree.map(lambda x: x.at[1].set(jnp.nan), values)
    weights = jnp.asarray(SHARES).at[1].set(0)
    like = jax.tree.map(lambda x: x[0], values)
    means, expected = (
        aggregate.finish(aggregate.add(aggregate.init(like, 4), v, weights))
        for v in (poisoned, values)
    )
    jax.tree.map(np.testing.assert_array_equal, means, expected)
    assert int(means.num_components) == (CLIENTS - 1) * RANK


@pytest.mark.parametrize("sizes", [(11, 13), (30, 40), (5, 2)])
def test_svd_equals_the_dense_svd(sizes):
    values = random_values(inputs=sizes[0], outputs=sizes[1])
    expected = mean_of(dense_products(values))
    for name in ("q", "v"):
        svd = products.product_svd(values.a[name], values.b[name], jnp.asarray(SHARES))
        dense = np.linalg.svd(expected[name], compute_uv=False)
        count = min(CLIENTS * RANK, *sizes)
        np.testing.assert_allclose(svd.values, dense[:, :count], rtol=1e-4, atol=1e-5)
        rebuilt = np.einsum("nip,np,npo->nio", svd.left, svd.values, svd.right)
        np.testing.assert_allclose(rebuilt, expected[name], atol=1e-5)
        eye = np.broadcast_to(np.eye(count), (LAYERS, count, count))
        np.testing.assert_allclose(svd.left.swapaxes(1, 2) @ svd.left, eye, atol=1e-5)
        np.testing.assert_allclose(svd.right @ svd.right.swapaxes(1, 2), eye, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_top_components_are_the_best_of_their_rank(rank):
    values = random_values()
    expected = mean_of(dense_products(values))
    best = products.top_components(values, jnp.asarray(SHARES), rank)
    for name in ("q", "v"):
        assert best.a[name].shape[-1] == best.b[name].shape[-2] == rank
        tail = np.linalg.svd(expected[name], compute_uv=False)[:, rank:]
        error = np.asarray(best.a[name] @ best.b[name]) - expected[name]
        np.testing.assert_allclose(np.square(error).sum(), np.square(tail).sum(), atol=1e-5)


def test_frobenius_norm_is_of_the_product():
    values = random_values()
    one = jax.tree.map(lambda x: x[2], values)
    expected = norm_of(jax.tree.map(lambda x: x[2], dense_products(values)))
    np.testing.assert_allclose(products.frobenius_norm(one), expected, rtol=1e-5)


def test_lapack_is_called_on_one_matrix_at_a_time():
    """Batched calls side by side waited for each other's threads for ever, on 2 cores."""
    function = lambda v, w: products.top_components(v, w, RANK)
    text = str(jax.make_jaxpr(function)(random_values(), jnp.asarray(SHARES)))
    shapes = re.findall(r"f32\[([\d,]+)\] = (?:qr|svd)\[", text)
    assert shapes
    assert all(shape.count(",") == 1 for shape in shapes)
