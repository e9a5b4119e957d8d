"""One malicious client of six against every rule on products: the result of a round, in float64.

The oracle is numpy: products of the honest clients' factors, their norms and their distances.
Nothing of the hostile client is trusted, least of all that its product is what its factors say.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_post import algorithms, core
from fedjax_post.adapters import comparison, products, robust
from fedjax_post.adapters.factors import Factors
from fedjax_post.testing import toy_lora

CLIENTS, LAYERS, RANK, ROWS, COLUMNS = 6, 2, 4, 7, 5
BOUND = 0.3  # over the honest products' norms
RULES = {
    "krum": robust.krum(1),
    "multi_krum": robust.multi_krum(1, 3),
    "geometric": robust.geometric_median(),
    "median": robust.coordinate_median(),
    "trimmed": robust.trimmed_mean(0.2),
}
FLORA = algorithms.flora(toy_lora.toy_loss, optax.sgd(0.1))
RNG = np.random.default_rng(0)
DIRECTION = RNG.normal(size=(3, LAYERS, ROWS, COLUMNS))


def honest(scale):
    """Factors of the other five, whose products have a size of about `scale`."""
    a = 1 + 0.1 * RNG.normal(size=(CLIENTS - 1, LAYERS, ROWS, RANK))
    b = 0.1 * scale * (1 + 0.3 * RNG.normal(size=(CLIENTS - 1, LAYERS, RANK, COLUMNS)))
    return a.astype(np.float32), b.astype(np.float32)


def cancelling(size, scale, left):
    """A = [a, -a], B = [b; b + e]: components of `size` each, of which -a e is left."""
    half = RANK // 2
    a = size * RNG.normal(size=(LAYERS, ROWS, half))
    b = size * RNG.normal(size=(LAYERS, half, COLUMNS))
    e = left * scale / size * RNG.normal(size=b.shape)
    return np.concatenate([a, -a], 2), np.concatenate([b, b + e], 1)


def enormous(size, scale, left):
    del scale, left
    return np.full((LAYERS, ROWS, RANK), size), np.full((LAYERS, RANK, COLUMNS), size)


def lopsided(size, scale, left):
    """A product like the honest ones, `left` times, its scale all in one factor."""
    a, b = (x[0].astype(np.float64) for x in honest(scale))
    return a * size, b * left / size


ATTACKS = {"cancelling": cancelling, "enormous": enormous, "lopsided": lopsided}


def cohort(attack, *, size, scale, left):
    """Factors of six clients, the hostile one first, where ties would be decided."""
    a, b = honest(scale)
    hostile = [np.clip(x, -3.4e38, 3.4e38)[None] for x in ATTACKS[attack](size, scale, left)]
    join = lambda bad, good: {"q": jnp.asarray(np.concatenate([bad, good]), jnp.float32)}
    return Factors(join(hostile[0], a), join(hostile[1], b)), a.astype(float) @ b.astype(float)


FINISH = {
    name: jax.jit(robust.on_products(FLORA, rule).aggregate.finish) for name, rule in RULES.items()
}


def finish(end, values, weights=None):
    weights = jnp.ones(CLIENTS) if weights is None else weights
    kept = core.stack()
    total = kept.add(kept.init(jax.tree.map(lambda x: x[0], values), CLIENTS), values, weights)
    return np.asarray(end(total).product["q"], np.float64)


def length(x):
    """Without squares that overflow: float64 holds those of float32."""
    return np.linalg.norm(np.asarray(x, np.float64).ravel())


SIZES = [1e-6, 1.0, 1e3, 1e6, 1e15, 1e19, 1e30, 3e38]


@pytest.mark.parametrize("scale", [1e-25, 1e-6, 0.1, 1e6, 1e19, 1e30])
@pytest.mark.parametrize("attack", ATTACKS)
def test_one_hostile_client_of_six_stays_within_what_a_rule_promises(attack, scale):
    for size in SIZES:
        for left in (0.0, 1.0, 1e3):
            values, dense = cohort(attack, size=size, scale=scale, left=left)
            centre = dense.mean(0)
            radius = max(length(p - centre) for p in dense)
            for name, end in FINISH.items():
                found = finish(end, values)
                where = f"{name}, size {size}, left {left}: {length(found - centre) / radius}"
                assert length(found - centre) <= 2 * radius, where
                if name in ("median", "trimmed"):
                    margin = 1e-5 * np.abs(dense).max()
                    assert (found >= dense.min(0) - margin).all(), where
                    assert (found <= dense.max(0) + margin).all(), where


@pytest.mark.parametrize("scale", [1e-25, 0.1, 1e19, 1e30])
@pytest.mark.parametrize("attack", ATTACKS)
def test_one_hostile_client_moves_a_bounded_mean_by_the_bound_at_most(attack, scale):
    bound = BOUND * scale
    end = jax.jit(robust.on_products(FLORA, robust.norm_bounded(bound)).aggregate.finish)
    for size in SIZES:
        values, dense = cohort(attack, size=size, scale=scale, left=1.0)
        moved = finish(end, values)
        lengths = np.array([length(p) for p in dense])
        held = dense * np.minimum(1, bound / lengths)[:, None, None, None]
        rest = held.sum(0) / CLIENTS  # what the other five make of it, if it counts
        away = min(length(moved - rest), length(moved - held.mean(0)))
        assert away <= bound / CLIENTS * (1 + 1e-4), size
        assert length(moved) <= bound


def test_what_is_judged_is_what_goes_on():
    """Cancelling components leave rounding, which no later sum of theirs may find different."""
    values, _ = cohort("cancelling", size=1e6, scale=0.1, left=1.0)
    fixed = comparison.orthonormal(values)
    a, b = (np.asarray(x["q"], np.float64) for x in fixed)
    for i in range(CLIENTS):
        product = np.asarray(products.product_of(jax.tree.map(lambda x, i=i: x[i], fixed))["q"])
        assert length(product) == pytest.approx(length(b[i]), rel=1e-5)
        assert length(product - a[i] @ b[i]) < 1e-5 * length(b[i])


def test_honest_products_are_kept_and_their_components_counted():
    """Of clients with fewer components too, wherever their zeros are."""
    a, b = honest(1.0)
    a[0, :, :, 1:] = b[0, :, 1:] = 0  # rank 1
    a[1, :, :, 0] = b[1, :, 0] = 0  # rank 3, its first component empty
    fixed = comparison.orthonormal(Factors({"q": jnp.asarray(a)}, {"q": jnp.asarray(b)}))
    found_a, found_b = (np.asarray(x["q"], np.float64) for x in fixed)
    np.testing.assert_allclose(found_a @ found_b, a.astype(float) @ b, rtol=1e-4, atol=1e-5)
    live = (found_a != 0).any((1, 2)).sum(1)
    np.testing.assert_array_equal(live, [1, 3, 4, 4, 4])
    grams = found_a.swapaxes(2, 3) @ found_a
    np.testing.assert_allclose(grams[2:], np.broadcast_to(np.eye(RANK), grams[2:].shape), atol=1e-5)


def test_more_components_than_rows():
    a, b = RNG.normal(size=(2, 1, 3, 5)), RNG.normal(size=(2, 1, 5, 6))
    fixed = comparison.orthonormal(Factors({"q": jnp.asarray(a, "f")}, {"q": jnp.asarray(b, "f")}))
    assert fixed.a["q"].shape == a.shape
    np.testing.assert_allclose(fixed.a["q"] @ fixed.b["q"], a @ b, rtol=1e-4, atol=1e-4)


def test_a_product_that_float32_does_not_hold_does_not_count():
    values, dense = cohort("enormous", size=1e30, scale=0.1, left=0.0)
    end = jax.jit(robust.on_products(FLORA, robust.norm_bounded(1e9)).aggregate.finish)
    np.testing.assert_allclose(finish(end, values), dense.mean(0), rtol=1e-4)


def test_a_hostile_majority_of_little_weight_does_not_move_the_geometric_median():
    values, dense = cohort("lopsided", size=1.0, scale=0.1, left=1e6)
    far = jax.tree.map(lambda x: x.at[:4].set(x[0]), values)
    weights = jnp.asarray([1.0, 1.0, 1.0, 1.0, 9.0, 9.0])
    found = finish(FINISH["geometric"], far, weights)
    pair = dense[3:]
    assert length(found - pair.mean(0)) <= 2 * length(pair[0] - pair[1])
