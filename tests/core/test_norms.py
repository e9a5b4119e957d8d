"""Bounds over all of float32: longer values are shortened, values that are not finite dropped.

Norms are checked against numpy's in float64, which holds the squares of every float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post import algorithms, core
from fedjax_post.core.algorithm import no_context
from fedjax_post.core.norms import limit_norm, narrow, norm
from fedjax_post.privacy import private
from fedjax_post.simulate.host import host

SCALES = [0.0, 1e-45, 1e-38, 2e-38, 1e-19, 1.0, 1e19, 1e25, 1e30, 8.5e37, 1e38, 3.4e38]
NOT_FINITE = [np.inf, -np.inf, np.nan]
DTYPES = ["float32", "bfloat16", "float16"]
RNG = np.random.default_rng(0)
LARGEST = np.finfo(np.float32).max
DIRECTIONS = {"one": np.ones(1), "few": RNG.uniform(-1, 1, 7), "many": RNG.uniform(-1, 1, 4099)}


def tree_of(direction, scale, dtype="float32"):
    """Two leaves along a direction whose largest entry is `scale`, and one that is no float."""
    with np.errstate(over="ignore", invalid="ignore"):
        x = (direction / np.abs(direction).max()).astype(np.float32) * np.float32(scale)
    leaves = {"a": x[: len(x) // 2], "b": x[len(x) // 2 :]}
    return {"count": jnp.int32(3)} | {k: jnp.asarray(v).astype(dtype) for k, v in leaves.items()}


def flat(tree):
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return np.concatenate([np.asarray(x.astype(jnp.float32), np.float64).ravel() for x in floats])


NORM, HELD = jax.jit(norm), jax.jit(lambda tree: limit_norm(tree, 0.5))


@pytest.mark.parametrize("size", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_are_numpys_and_values_are_held_within_one(size, dtype):
    for scale in SCALES:
        tree = tree_of(DIRECTIONS[size], scale, dtype)
        given, held = flat(tree), flat(HELD(tree))
        if not np.isfinite(given).all():  # beyond the dtype
            assert not np.isfinite(held).all()
            continue
        exact = np.linalg.norm(given)
        if 1e-30 < exact < 3e38:  # entries below 1.2e-38 may count as zero
            np.testing.assert_allclose(NORM(tree), exact, rtol=2e-6)
        assert np.linalg.norm(held) <= 0.5
        if exact > 0.5:
            assert np.linalg.norm(held) > 0.5 * (0.98 if dtype == "bfloat16" else 0.998)
            assert held @ given > 0.999 * np.linalg.norm(held) * exact
        else:
            np.testing.assert_array_equal(held, given)


@pytest.mark.parametrize("bad", NOT_FINITE)
def test_what_is_not_finite_does_not_become_finite(bad):
    tree = {"a": jnp.asarray([1.0, bad]), "b": jnp.ones(3)}
    assert not np.isfinite(flat(HELD(tree))).all()


def test_narrow_numbers_do_not_grow_below_the_least_normal_one():
    x = jnp.asarray([3.1e-8, -5e-8, 1e-7, 6.2e-5, 1.0003], jnp.float32)
    found = np.asarray(narrow(x, jnp.float16), np.float64)
    assert (np.abs(found[:3]) <= np.abs(np.asarray(x, np.float64)[:3])).all()
    np.testing.assert_array_equal(found[3:], np.asarray(x[3:].astype(jnp.float16), np.float64))


LINKS = {
    "clip": core.clip(0.7),
    "cast": core.cast(jnp.bfloat16),
    "half": core.cast(jnp.float16),
    "top_k": core.top_k(0.3),
    "int8": core.quantize(8),
    "int4": core.quantize(4, block_size=5),
    "sign": core.sign(),
    "random_k": core.random_k(0.4),
    "clip, half": core.chain(core.clip(1e-6), core.cast(jnp.float16)),
    "clip, random_k, int4": core.chain(core.clip(0.5), core.random_k(0.4), core.quantize(4)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LINKS)
def test_what_decodes_is_within_the_bound_or_not_finite(name, dtype):
    link = LINKS[name]

    @jax.jit
    def there_and_back(tree):
        ctx = no_context()
        return link.decode(link.encode(tree, None, link.init(tree), ctx)[0], tree)

    for scale in [*SCALES, 1e-7, 3e-6, *NOT_FINITE]:
        tree = tree_of(DIRECTIONS["few"], scale, dtype)
        given, found = flat(tree), flat(there_and_back(tree))
        if np.isfinite(given).all() and np.isfinite(found).all():
            bound = link.bound(np.linalg.norm(given))
            assert np.linalg.norm(found) <= bound * (1 + 1e-6), scale
        if name != "sign" and np.abs(given).max() <= 1e4:
            assert np.isfinite(found).all()


RULES = {
    "median": core.coordinate_median(),
    "trimmed": core.trimmed_mean(0.2),
    "krum": core.krum(1),
    "multi_krum": core.multi_krum(1, 3),
    "geometric": core.geometric_median(),
}
ENDS = {name: jax.jit(rule.finish) for name, rule in RULES.items()}


@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1.0, 1e19, 1e30, 1e38])
def test_one_hostile_client_of_six_stays_within_what_a_rule_promises(scale):
    """At any scale of the others and of its own, first among them, where ties are decided."""
    rows = 1 + 0.3 * RNG.uniform(-1, 1, (5, 4))
    for size in SCALES + [-x for x in SCALES[2:]]:
        values = np.concatenate([np.full((1, 4), size), scale * rows]).astype(np.float32)
        good = values[1:].astype(np.float64)
        centre = good.mean(0)
        radius = np.linalg.norm(good - centre, axis=1).max()
        for name, rule in RULES.items():
            total = rule.add(rule.init(jnp.zeros(4), 6), jnp.asarray(values), jnp.ones(6))
            found = np.asarray(ENDS[name](total), np.float64)
            assert np.linalg.norm(found - centre) <= 2 * radius, (name, size)


def test_the_geometric_median_has_no_unit():
    """Its smoothing is no length: small values have the median of large ones."""
    rows = RNG.normal(size=(6, 3))
    rows[0] = 40.0
    ends = []
    for scale in (1e-25, 1e-9, 1.0, 1e9, 1e25):
        rule, values = RULES["geometric"], jnp.asarray(scale * rows, jnp.float32)
        total = rule.add(rule.init(values[0], 6), values, jnp.ones(6))
        ends.append(np.asarray(ENDS["geometric"](total), np.float64) / scale)
    np.testing.assert_allclose(ends, np.broadcast_to(ends[2], (5, 3)), rtol=1e-4)


def test_a_norm_bound_of_the_server_holds_at_every_scale():
    rule = core.norm_bounded(0.5)
    for scale in SCALES:
        value = jnp.asarray(tree_of(DIRECTIONS["few"], scale)["b"])[None]
        total = rule.add(rule.init(value[0], 1), value, jnp.ones(1))
        assert np.linalg.norm(flat(rule.finish(total))) <= 0.5, scale


def constant_slope(params, model, batch, key):
    """A loss whose gradient is what the client wants it to be, on the whole line."""
    del model, key
    return -jax.lax.stop_gradient(batch["slope"][0]) @ params, {}


def moved(slopes, wrap, executor):
    """Where zeros go in one round of clients that walk by their slopes, `[clients, d]`."""
    arrays = [{"slope": np.asarray(s, np.float32)[None]} for s in slopes]
    run = fp.run(
        wrap(algorithms.fed_avg(constant_slope, optax.sgd(1.0), weigh_fn=core.uniformly)),
        None, fp.ArrayClients(arrays, batch_size=1, local_steps=1),
        params=jnp.zeros(len(slopes[0])), rounds=1,
        plan=fp.Plan() if executor is None else fp.Plan(executor=executor),
    )  # fmt: skip
    return np.asarray(list(run)[-1][0].shared, np.float64)


EXECUTORS = {"device": None, "host": host}
CASTS = {"plain": core.plain(), "int8": core.quantize(8)}


@pytest.mark.heavy
@pytest.mark.parametrize("executor", EXECUTORS.values(), ids=EXECUTORS)
@pytest.mark.parametrize("link", CASTS.values(), ids=CASTS)
def test_one_client_moves_a_private_mean_by_its_bound_at_most(link, executor):
    """Three clients, two of which stand still; the bound is what the wire makes of the clip."""
    wrap = lambda base: private(
        core.with_uplink(base, link), clip_norm=1.0, noise_multiplier=0.0, cohort_size=3, seed=0
    )
    limit = core.chain(core.clip(1.0), link).bound(np.inf) / 3
    still = np.zeros(2)
    for slope in [-1e38, -LARGEST, np.inf, np.nan]:
        found = moved([[slope, slope / 2], still, still], wrap, executor)
        assert np.linalg.norm(found) <= limit
        if not np.isfinite(slope):
            np.testing.assert_array_equal(found, 0.0)
        else:
            assert np.linalg.norm(found) > 0.3


@pytest.mark.heavy
@pytest.mark.parametrize("executor", EXECUTORS.values(), ids=EXECUTORS)
def test_who_sends_what_is_not_finite_is_dropped(executor):
    """In the value, in the message that a narrow type overflows in, and in what decodes."""
    at_server = core.plain()._replace(decode=lambda message, like: message * 1e3)
    cases = [
        (core.plain(), np.nan), (core.cast(jnp.float16), 1e5), (core.cast(jnp.bfloat16), LARGEST),
        (core.error_feedback(core.cast(jnp.float16)), 1e5), (at_server, 1e37),
    ]  # fmt: skip
    for link, slope in cases:
        found = moved(
            [[slope, slope], [0.0, 0.0]], lambda b, u=link: core.with_uplink(b, u), executor
        )
        np.testing.assert_array_equal(found, 0.0)
