"""Laws of uplinks: bounds hold, feedback loses nothing, bytes equal those that are packed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_post.core import (
    cast,
    chain,
    clip,
    error_feedback,
    num_bytes,
    pack,
    plain,
    quantize,
    random_k,
    sign,
    top_k,
    unpack,
)
from fedjax_post.core.algorithm import no_context
from fedjax_post.core.uplinks import message_like

RNG = np.random.default_rng(0)
VALUE = {
    "a": jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=7), jnp.float32),
    "count": jnp.int32(3),
}
CHAINS = {
    "plain": plain(),
    "clip": clip(1.0),
    "top_k": top_k(0.3),
    "cast": cast(jnp.bfloat16),
    "clip, top_k, cast": chain(clip(0.7), top_k(0.3), cast(jnp.bfloat16)),
    "clip, float16": chain(clip(2.0), cast(jnp.float16)),
    "clip of clip": chain(chain(clip(1.0), cast(jnp.bfloat16)), top_k(0.5)),
}


def there_and_back(link, value, state=None):
    state = link.init(value) if state is None else state
    message, state = link.encode(value, None, state, no_context())
    return link.decode(message, value), message, state


def norm(value):
    floats = [np.asarray(x, np.float64) for x in jax.tree.leaves(value) if x.dtype == jnp.float32]
    return math.sqrt(sum((x**2).sum() for x in floats))


def scaled(value, scale):
    grow = lambda x: x * scale if x.dtype == jnp.float32 else x
    return jax.tree.map(grow, value)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e6, 1e25])
@pytest.mark.parametrize("link", CHAINS.values(), ids=CHAINS)
def test_what_decodes_is_within_the_bound(link, scale):
    value = scaled(VALUE, scale)
    decoded, _, _ = there_and_back(link, value)
    bound = link.bound(norm(value))
    assert norm(decoded) <= bound * (1 + 1e-7)


def test_bounds_fold_through_a_chain():
    link = chain(clip(1.0), top_k(0.1), cast(jnp.bfloat16))
    assert link.bound(math.inf) == pytest.approx(1 + 2**-7, abs=2**-8)
    assert link.bound(math.inf) >= 1
    assert error_feedback(link).bound(1.0) == math.inf
    assert chain(cast(jnp.float16)).bound(1e6) == math.inf


def test_clip_leaves_a_short_value_to_the_bit():
    decoded, _, _ = there_and_back(clip(100.0), VALUE)
    assert all(
        np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (decoded, VALUE)), strict=True)
    )


def test_clip_keeps_the_direction():
    decoded, _, _ = there_and_back(clip(0.5), VALUE)
    ratio = np.asarray(decoded["b"]) / np.asarray(VALUE["b"])
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    assert norm(decoded) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(
    "links", [(top_k(0.5), clip(1.0)), (plain(), chain(clip(1.0), top_k(0.5)))]
)
def test_clip_must_come_first(links):
    with pytest.raises(ValueError, match="clip acts on values, so it must be the first link"):
        chain(*links)


@pytest.mark.parametrize("link", CHAINS.values(), ids=CHAINS)
def test_only_floating_leaves_are_touched(link):
    decoded, message, _ = there_and_back(link, VALUE)
    assert message["count"].dtype == jnp.int32
    assert int(decoded["count"]) == 3
    assert jax.tree.map(lambda x: (x.shape, x.dtype), decoded) == jax.tree.map(
        lambda x: (x.shape, x.dtype), VALUE
    )


@pytest.mark.parametrize("link", CHAINS.values(), ids=CHAINS)
def test_pack_has_the_length_that_shapes_promise(link):
    _, message, _ = there_and_back(link, VALUE)
    data = pack(message)
    assert len(data) == num_bytes(message_like(link, VALUE)) == num_bytes(message)
    restored = unpack(data, message)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (restored, message)), strict=True)
    )


def test_unpack_refuses_another_length():
    with pytest.raises(ValueError, match="has 8 bytes, got 7"):
        unpack(b"1234567", jnp.zeros(2))


def test_top_k_costs_eight_bytes_an_entry():
    _, message, _ = there_and_back(top_k(0.2), VALUE)
    assert len(pack(message)) == (3 + 1) * 8 + 4  # round(0.2 * 15), round(0.2 * 7), the count


def test_top_k_keeps_the_largest():
    decoded, _, _ = there_and_back(top_k(0.2), VALUE)
    kept = np.flatnonzero(decoded["a"])
    assert set(kept) == set(np.argsort(-np.abs(np.asarray(VALUE["a"]).ravel()))[:3])


def test_error_feedback_loses_nothing_in_the_sum():
    link = error_feedback(chain(top_k(0.2), cast(jnp.bfloat16)))
    state, sent = None, jax.tree.map(jnp.zeros_like, VALUE)
    for _ in range(20):
        decoded, _, state = there_and_back(link, VALUE, state)
        sent = optax.tree.add(sent, decoded)
    total = jax.tree.map(lambda s, lost: s + lost, sent, state[0])
    np.testing.assert_allclose(total["a"], 20 * VALUE["a"], rtol=1e-4)
    np.testing.assert_allclose(total["b"], 20 * VALUE["b"], rtol=1e-4)
    # and what is still to be sent stays of the size of a few rounds' values
    assert norm(state[0]) < 20 * norm(VALUE) / 3


@pytest.mark.parametrize("fraction", [0.0, -1, 1.1])
def test_top_k_checks_its_fraction(fraction):
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\]"):
        top_k(fraction)


def test_clip_checks_its_norm():
    with pytest.raises(ValueError, match="max_norm must be positive, got 0"):
        clip(0)


def test_a_link_that_reads_the_replica_declares_its_shape():
    """`shape` is what a chain goes by where a replica is not at hand."""
    offset = plain()._replace(
        encode=lambda value, replica, state, ctx: (optax.tree.sub(value, replica), state),
        shape=lambda like: like,
    )
    link = chain(offset, top_k(0.2))
    state = link.init(VALUE)
    message, _ = link.encode(VALUE, VALUE, state, no_context())
    assert norm(link.decode(message, VALUE)) == 0


SUMMABLE = {
    **CHAINS,
    "fed back clip": error_feedback(clip(1.0)),
    "fed back top_k": error_feedback(top_k(0.3)),
    "int8": quantize(8),
    "random_k": random_k(0.5),
    "sign": sign(),
}


@pytest.mark.parametrize("name", SUMMABLE)
def test_sums_of_messages_decode_where_a_link_declares_it(name):
    """Those of values whose own sum decodes otherwise show that a link must not declare it."""
    link = SUMMABLE[name]
    values = [VALUE, scaled(VALUE, 0.01), jax.tree.map(jnp.flip, VALUE)]
    parts = [there_and_back(link, value)[:2] for value in values]
    assert link.linear == (name in ("plain", "clip", "fed back clip"))
    if link.linear:
        total = jax.tree.map(lambda *x: sum(x), *[message for _, message in parts])
        wanted = jax.tree.map(lambda *x: sum(x), *[value for value, _ in parts])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            link.decode(total, VALUE),
            wanted,
        )
