"""Robust rules: breakdown points, invariances, and rules written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.core import (
    coordinate_median,
    fixed_mean,
    geometric_median,
    krum,
    multi_krum,
    norm_bounded,
    trimmed_mean,
    weighted_mean,
)

RNG = np.random.default_rng(0)
CLIENTS, HOSTILE = 11, 4
TREE = {"a": RNG.normal(size=(CLIENTS, 2, 3)) + 3, "b": RNG.normal(size=CLIENTS) - 2}
VALUES = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), TREE)
LIKE = jax.tree.map(lambda x: x[0], VALUES)
RULES = {
    "median": coordinate_median(),
    "trimmed": trimmed_mean(0.4),
    "krum": krum(HOSTILE),
    "multi_krum": multi_krum(HOSTILE, 3),
    "geometric": geometric_median(),
    "bounded": norm_bounded(2.0),
    "bounded median": norm_bounded(2.0, coordinate_median()),
}
SELECTING = {name: RULES[name] for name in ("median", "trimmed", "krum", "multi_krum", "geometric")}
ATTACKS = {
    "sign flip": lambda values: -10 * values,
    "large": lambda values: jnp.full_like(values, 1e6),
    "enormous": lambda values: jnp.full_like(values, 1e30),
    "apart": lambda v: v * 1e6 * jnp.arange(1, len(v) + 1).reshape(-1, *(1,) * (v.ndim - 1)),
}


def aggregated(rule, values=VALUES, weights=None, lanes=None, parts=None):
    weights = jnp.ones(len(values["b"])) if weights is None else jnp.asarray(weights, jnp.float32)
    total = rule.init(LIKE, lanes or len(weights))
    for part in parts or [slice(None)]:
        total = rule.add(total, jax.tree.map(lambda x, p=part: x[p], values), weights[part])
    return jax.jit(rule.finish)(total)


def flat(tree):
    """Rows of one matrix `[..., entries]`."""
    a, b = np.asarray(tree["a"], np.float64), np.asarray(tree["b"], np.float64)
    return np.concatenate([a.reshape(*b.shape, 6), b[..., None]], -1)


def attacked(attack, count):
    hit = lambda v: jnp.concatenate([ATTACKS[attack](v[:count]), v[count:]])
    return jax.tree.map(hit, VALUES)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rule", SELECTING.values(), ids=SELECTING)
def test_hostile_clients_within_the_breakdown_point_do_not_matter_much(rule, attack):
    found, honest = flat(aggregated(rule, attacked(attack, HOSTILE))), flat(VALUES)[HOSTILE:]
    centre = honest.mean(0)
    radius = np.linalg.norm(honest - centre, axis=1).max()
    assert np.linalg.norm(found - centre) <= 2 * radius


@pytest.mark.parametrize("attack", ["large", "enormous", "apart"])
def test_the_mean_does_not_withstand_one(attack):
    found, honest = flat(aggregated(weighted_mean(), attacked(attack, 1))), flat(VALUES)[1:]
    assert np.linalg.norm(found - honest.mean(0)) > 1e3


@pytest.mark.parametrize("rule", ["median", "trimmed"])
def test_coordinates_stay_within_those_of_the_honest(rule):
    for attack in ATTACKS:
        found = flat(aggregated(RULES[rule], attacked(attack, HOSTILE)))
        honest = flat(VALUES)[HOSTILE:]
        assert (found >= honest.min(0) - 1e-5).all()
        assert (found <= honest.max(0) + 1e-5).all()


@pytest.mark.parametrize(("rule", "count"), [("median", 6), ("trimmed", 5), ("geometric", 6)])
def test_the_breakdown_point_is_sharp(rule, count):
    """One hostile client more than the table says moves the outcome at will."""
    found = flat(aggregated(RULES[rule], attacked("large", count)))
    assert np.linalg.norm(found) > 1e4


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("rule", ["bounded", "bounded median"])
def test_a_norm_bound_holds_whatever_is_sent(rule, attack):
    assert np.linalg.norm(flat(aggregated(RULES[rule], attacked(attack, CLIENTS)))) <= 2.0


def test_a_wide_norm_bound_is_the_mean():
    one, other = (aggregated(rule) for rule in (norm_bounded(1e3), weighted_mean()))
    np.testing.assert_array_equal(flat(one), flat(other))


def test_values_are_scaled_not_cut():
    found = aggregated(norm_bounded(0.5), jax.tree.map(lambda v: v[:1], VALUES))
    direction = flat(VALUES)[0] / np.linalg.norm(flat(VALUES)[0])
    np.testing.assert_allclose(flat(found), 0.5 * direction, rtol=1e-4)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_absent_do_not_count(rule):
    """Padding lanes, dropped clients, values that are not finite, lanes never filled."""
    absent = np.array([0, 3, 10])
    weights = np.ones(CLIENTS)
    weights[absent] = 0
    poisoned = jax.tree.map(lambda v: v.at[absent].set(jnp.nan), VALUES)
    few = jax.tree.map(lambda v: np.delete(np.asarray(v), absent, 0), VALUES)
    expected = flat(aggregated(rule, few))
    found = flat(aggregated(rule, poisoned, weights, lanes=CLIENTS + 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_chunks_and_merging_do_not_matter(rule):
    once = flat(aggregated(rule))
    parts = [slice(0, 4), slice(4, 6), slice(6, CLIENTS)]
    np.testing.assert_allclose(flat(aggregated(rule, parts=parts)), once, rtol=1e-5, atol=1e-6)
    halves = []
    for part in (slice(0, 5), slice(5, CLIENTS)):
        values, total = jax.tree.map(lambda v, p=part: v[p], VALUES), rule.init(LIKE, CLIENTS)
        halves.append(rule.add(total, values, jnp.ones(len(values["b"]))))
    merged = flat(rule.finish(rule.merge(*halves)))
    np.testing.assert_allclose(merged, once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_nobody_is_zero(rule):
    np.testing.assert_array_equal(flat(aggregated(rule, weights=np.zeros(CLIENTS))), np.zeros(7))


@pytest.mark.parametrize("count", [1, 2, 10, 11])
def test_median_and_trimmed_mean_are_numpys(count):
    some = jax.tree.map(lambda v: v[:count], VALUES)
    found = flat(aggregated(coordinate_median(), some))
    np.testing.assert_allclose(found, np.median(flat(some), 0), rtol=1e-5)
    for fraction in (0.0, 0.1, 0.3):
        cut = int(np.floor(fraction * count + 1e-6))
        expected = np.sort(flat(some), 0)[cut : count - cut].mean(0)
        found = flat(aggregated(trimmed_mean(fraction), some))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_trimming_counts_exactly_in_large_cohorts():
    """Of 875 clients a fraction of 0.144 is 126, which float32 makes 125.99999."""
    values = np.concatenate([np.full(126, 1e6), np.zeros(875 - 252), np.full(126, -1e6)])
    rule, weights = trimmed_mean(0.144), jnp.ones(875)
    total = rule.add(rule.init(jnp.zeros(()), 875), jnp.asarray(values, jnp.float32), weights)
    assert float(rule.finish(total)) == 0.0
    lopsided = values.copy()
    lopsided[-1] = 0.0
    total = rule.add(rule.init(jnp.zeros(()), 875), jnp.asarray(lopsided, jnp.float32), weights)
    assert float(rule.finish(total)) == 0.0


def test_krum_is_its_definition():
    rows = flat(VALUES)
    distances = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    near = np.sort(distances, 1)[:, 1 : CLIENTS - HOSTILE - 2 + 1]
    order = np.argsort(near.sum(1))
    np.testing.assert_allclose(flat(aggregated(krum(HOSTILE))), rows[order[0]], rtol=1e-6)
    best = rows[order[:3]].mean(0)
    np.testing.assert_allclose(flat(aggregated(multi_krum(HOSTILE, 3))), best, rtol=1e-6)


def test_multi_krum_of_all_is_the_mean():
    found = flat(aggregated(multi_krum(1, CLIENTS)))
    np.testing.assert_allclose(found, flat(VALUES).mean(0), rtol=1e-5)


def test_pulls_balance_at_the_geometric_median():
    """Its gradient is zero: the weighted unit vectors to the values sum to nothing."""
    weights = RNG.uniform(0.5, 2.0, size=CLIENTS)
    point = flat(aggregated(geometric_median(num_steps=200), weights=weights))
    apart = flat(VALUES) - point
    pulls = weights[:, None] * apart / np.linalg.norm(apart, axis=1, keepdims=True)
    assert np.linalg.norm(pulls.sum(0)) < 1e-3 * weights.sum()
    few = flat(aggregated(geometric_median(), weights=weights))
    assert np.linalg.norm(few - point) < 1e-2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trimmed_mean(0.5), r"fraction must be in \[0, 0.5\), got 0.5"),
        (lambda: krum(-1), "num_hostile must not be negative .* got -1 and 1"),
        (lambda: multi_krum(1, 0), "num_kept at least 1, got 1 and 0"),
        (lambda: geometric_median(num_steps=0), "must be positive, got 0 and"),
        (lambda: norm_bounded(0), "max_norm must be positive, got 0"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", [*RULES, "mean", "fixed mean"])
def test_rules_that_declare_it_need_the_sum_alone(name):
    """Moving a part of one value to another changes no sum, and every other rule's result."""
    rule = {"mean": weighted_mean(), "fixed mean": fixed_mean(CLIENTS), **RULES}[name]
    moved = jax.tree.map(lambda v: v.at[0].add(20.0).at[1].add(-20.0), VALUES)
    before, after = flat(aggregated(rule)), flat(aggregated(rule, moved))
    assert rule.sums == np.allclose(before, after, atol=1e-5)
