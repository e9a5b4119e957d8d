"""Rules on products, against dense matrices: only products count, not their factors."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_post import algorithms, core
from fedjax_post.adapters import comparison, robust
from fedjax_post.adapters.factors import Factors
from fedjax_post.core.robust import UNIT
from fedjax_post.testing import toy_lora

CLIENTS, HOSTILE, LAYERS, RANK = 9, 3, 2, 2
SIZES = {"q": (7, 5), "v": (4, 6)}
RNG = np.random.default_rng(0)
RULES = {
    "krum": robust.krum(HOSTILE),
    "multi_krum": robust.multi_krum(HOSTILE, 2),
    "geometric": robust.geometric_median(),
    "median": robust.coordinate_median(),
    "trimmed": robust.trimmed_mean(0.35),
    "bounded": robust.norm_bounded(6.0),
}
SELECTING = {name: rule for name, rule in RULES.items() if name != "bounded"}
FLORA, FLEX = (
    getattr(algorithms, name)(toy_lora.toy_loss, optax.sgd(0.1)) for name in ("flora", "flex_lora")
)


def near(spread=0.3):
    """Factors of clients that are like each other, `[CLIENTS, LAYERS, ..]`."""

    def draw(*shape):
        common = RNG.normal(size=(1, LAYERS, *shape))
        own = spread * RNG.normal(size=(CLIENTS, LAYERS, *shape))
        return jnp.asarray(common + own, jnp.float32)

    a = {name: draw(size_in, RANK) for name, (size_in, _) in SIZES.items()}
    return Factors(a, {name: draw(RANK, size_out) for name, (_, size_out) in SIZES.items()})


VALUES = near()


def scaled(values, factor, count=HOSTILE):
    """The first clients with A down and B up, their products as they were."""
    by = jnp.where(jnp.arange(CLIENTS) < count, factor, 1.0).reshape(-1, 1, 1, 1)
    down, up = (
        jax.tree.map(lambda x, s=s: x * s, tree)
        for tree, s in zip(values, (1 / by, by), strict=True)
    )
    return Factors(down, up)


def dense(values):
    """Rows `[CLIENTS, entries]` of all products, float64."""
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), values)
    return np.concatenate([(wide.a[n] @ wide.b[n]).reshape(CLIENTS, -1) for n in SIZES], 1)


@cache
def finish_of(rule):
    """The compiled end of a round of FLoRA."""
    return jax.jit(robust.on_products(FLORA, rule).aggregate.finish)


def stacked(values, weights):
    kept = core.stack()
    return kept.add(kept.init(jax.tree.map(lambda x: x[0], values), CLIENTS), values, weights)


def product(rule, values=VALUES, weights=None):
    """What a server of mean products is given, one row of all entries."""
    weights = jnp.ones(CLIENTS) if weights is None else jnp.asarray(weights, jnp.float32)
    means = finish_of(rule)(stacked(values, weights))
    return np.concatenate([np.asarray(means.product[n], np.float64).ravel() for n in SIZES])


def on_dense(rule, values, weights=None):
    """The rule of `core.robust` on the dense products themselves."""
    rows = jnp.asarray(dense(values), jnp.float32)
    weights = jnp.ones(CLIENTS) if weights is None else weights
    return np.asarray(rule.finish(rule.add(rule.init(rows[0], CLIENTS), rows, weights)))


def test_distances_are_those_of_the_dense_products():
    rows = dense(VALUES)
    expected = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    found = UNIT * comparison.distances(VALUES)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factor", [1.0, 1e4])
def test_small_distances_do_not_drown_in_large_products(factor):
    """Of clients that differ by a thousandth; even where some have shifted their scales."""
    values = near(1e-3)
    rows = dense(values)
    expected = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    found = UNIT * comparison.distances(comparison.orthonormal(scaled(values, factor)))
    apart = ~np.eye(CLIENTS, dtype=bool)
    np.testing.assert_allclose(np.asarray(found)[apart], expected[apart], rtol=1e-2)


@pytest.mark.heavy
def test_every_rule_is_its_definition_on_dense_matrices():
    rows = dense(VALUES)
    squares = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    order = np.argsort(np.sort(squares, 1)[:, 1 : CLIENTS - HOSTILE - 2 + 1].sum(1))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    expected = {
        "krum": rows[order[0]],
        "multi_krum": rows[order[:2]].mean(0),
        "median": np.median(rows, 0),
        "trimmed": np.sort(rows, 0)[3:-3].mean(0),
        "bounded": (rows * np.minimum(1, 6.0 / norms)).mean(0),
        "geometric": on_dense(core.geometric_median(num_steps=100), VALUES),
    }
    assert (norms > 6).any()
    assert (norms < 6).any() or norms.min() > 6
    for name, rule in RULES.items():
        np.testing.assert_allclose(product(rule), expected[name], rtol=2e-3, atol=2e-3)


def test_pulls_balance_at_the_geometric_median():
    weights = RNG.uniform(0.5, 2.0, size=CLIENTS)
    point = product(robust.geometric_median(num_steps=200), weights=weights)
    apart = dense(VALUES) - point
    pulls = weights[:, None] * apart / np.linalg.norm(apart, axis=1, keepdims=True)
    assert np.linalg.norm(pulls.sum(0)) < 2e-3 * weights.sum()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_scale_moved_from_one_factor_to_the_other_changes_nothing(rule):
    """The attack that moves a mean or a distance of factors at will."""
    moved = scaled(VALUES, 1e4)
    np.testing.assert_allclose(dense(moved), dense(VALUES), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(product(rule, moved), product(rule), rtol=1e-3, atol=1e-3)
    mean = lambda values: np.asarray(values.b["q"]).mean(0)
    assert np.abs(mean(moved) - mean(VALUES)).max() > 1e3


ATTACKS = {
    "sign flip": lambda values: Factors(jax.tree.map(lambda x: -10 * x, values.a), values.b),
    "large": lambda values: jax.tree.map(lambda x: jnp.full_like(x, 1e4), values),
    "enormous": lambda values: jax.tree.map(lambda x: jnp.full_like(x, 1e30), values),
    "flipped and scaled": lambda values: scaled(
        Factors(jax.tree.map(lambda x: -10 * x, values.a), values.b), 1e4
    ),
    # far products from factors that lie near the others': no norm of A or of B tells
    "turned": lambda values: Factors(values.a, jax.tree.map(lambda x: -x, values.b)),
}


def attacked(attack):
    hit = lambda bad, good: jnp.concatenate([bad[:HOSTILE], good[HOSTILE:]])
    return jax.tree.map(hit, ATTACKS[attack](VALUES), VALUES)


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_clients_within_the_breakdown_point_do_not_matter_much(attack):
    values, honest = attacked(attack), dense(VALUES)[HOSTILE:]
    centre = honest.mean(0)
    radius = np.linalg.norm(honest - centre, axis=1).max()
    for name, rule in SELECTING.items():
        found = product(rule, values)
        assert np.linalg.norm(found - centre) <= 2 * radius, name
        if name in ("median", "trimmed"):
            assert (found >= honest.min(0) - 1e-4).all()
            assert (found <= honest.max(0) + 1e-4).all()
    assert np.linalg.norm(product(RULES["bounded"], values)) <= 6.0


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_absent_do_not_count(rule):
    weights = np.ones(CLIENTS)
    weights[[0, 4]] = 0
    poisoned = jax.tree.map(lambda x: x.at[jnp.array([0, 4])].set(jnp.nan), VALUES)
    zeros = jax.tree.map(lambda x: x.at[jnp.array([0, 4])].set(0), VALUES)
    found = product(rule, poisoned, weights)
    np.testing.assert_array_equal(found, product(rule, zeros, weights))
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0.1
    np.testing.assert_array_equal(product(rule, VALUES, np.zeros(CLIENTS)), 0)


@pytest.mark.parametrize("name", ["krum", "geometric", "bounded"])
def test_weights_need_no_matrix_of_in_by_out(name, monkeypatch):
    """A block of rows at a time is made, of a size that does not grow with the matrices."""
    monkeypatch.setattr(comparison, "BLOCK", 2 * CLIENTS * 5)
    text = str(jax.make_jaxpr(RULES[name])(VALUES, jnp.ones(CLIENTS)))
    assert f",7,{RANK}]" in text
    assert not re.search(r"\b(7,5|5,7|4,6|6,4)\b", text)


def test_a_median_goes_on_as_one_client_of_full_rank():
    """FLoRA folds it whole and bills it dense; FlexLoRA keeps its best R components."""
    expected = np.median(dense(VALUES), 0)[: LAYERS * 35].reshape(LAYERS, 7, 5)
    total = stacked(VALUES, jnp.ones(CLIENTS))
    means = finish_of(RULES["median"])(total)
    np.testing.assert_allclose(means.product["q"], expected, rtol=1e-4, atol=1e-4)
    # components of all 5 outputs, or 6: as stacks they weigh no less than the dense matrix
    assert int(means.num_components) >= 5
    shared = jax.tree.map(lambda x: x[0], VALUES)
    cohort = robust.on_products(FLEX, RULES["median"]).aggregate.finish(total)
    best, _ = FLEX.server.update(cohort, (), shared)
    u, s, v = np.linalg.svd(expected, full_matrices=False)
    cut = u[..., :RANK] * s[:, None, :RANK] @ v[:, :RANK]
    np.testing.assert_allclose(best.a["q"] @ best.b["q"], cut, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: robust.krum(-1), "num_hostile must not be negative"),
        (lambda: robust.trimmed_mean(0.5), "fraction must be in"),
        (lambda: robust.geometric_median(smoothing=0), "must be positive"),
        (lambda: robust.norm_bounded(0), "max_norm must be positive"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
