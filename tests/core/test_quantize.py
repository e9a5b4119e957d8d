"""Laws of quantization: means, variances, norms and bytes, as the module's table states them."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.core import (
    cast,
    chain,
    clip,
    error_feedback,
    num_bytes,
    pack,
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
    "a": jnp.asarray(RNG.normal(size=(7, 3)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=9) * 0.1, jnp.float32),
    "zero": jnp.zeros(5),
    "half": jnp.asarray(RNG.normal(size=6), jnp.bfloat16),
    "count": jnp.int32(3),
}
LINKS = {
    "int8": quantize(8),
    "int8, blocks": quantize(8, block_size=4),
    "int4": quantize(4),
    "int4, blocks": quantize(4, block_size=5),
    "sign": sign(),
    "random_k": random_k(0.3),
    "random_k, as it is": random_k(0.3, scaled=False),
    "clip, int8": chain(clip(0.5), quantize(8)),
    "clip, random_k, int4": chain(clip(0.5), random_k(0.4), quantize(4, block_size=8)),
    "top_k, int4": chain(top_k(0.5), quantize(4)),
    "cast, int8": chain(cast(jnp.bfloat16), quantize(8, block_size=6)),
}
UNBIASED = {name: LINKS[name] for name in ("int8", "int4", "int4, blocks", "random_k")}
UNBIASED["random_k, int8"] = chain(random_k(0.5), quantize(8, block_size=4))


def there_and_back(link, value, seed=0):
    return sent(link, value, jax.random.key(seed))


@partial(jax.jit, static_argnums=0)
def sent(link, value, key):
    message, _ = link.encode(value, None, link.init(value), no_context()._replace(key=key))
    return link.decode(message, value), message


def samples(link, value, count):
    """Decoded values, leaves `[count, ...]`."""
    keys = jax.random.split(jax.random.key(1), count)
    return jax.jit(jax.vmap(lambda key: sent(link, value, key)[0]))(keys)


def norm(value):
    floats = [x for x in jax.tree.leaves(value) if jnp.issubdtype(x.dtype, jnp.floating)]
    return math.sqrt(sum((np.asarray(x).astype(np.float64) ** 2).sum() for x in floats))


def scaled(value, scale):
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    numpy = lambda x: (np.asarray(x).astype(np.float32) * np.float32(scale)).astype(x.dtype)
    return jax.tree.map(lambda x: jnp.asarray(numpy(x)) if floating(x) else x, value)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e25])
@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_what_decodes_is_within_the_bound(link, scale):
    value = scaled(VALUE, scale)
    bound = link.bound(norm(value))
    assert math.isfinite(bound)
    for seed in range(3):
        assert norm(there_and_back(link, value, seed)[0]) <= bound


@pytest.mark.parametrize("bits", [4, 8])
def test_the_bound_holds_for_the_worst_block(bits):
    """One large entry sets the scale; all others are as likely to round up to a level."""
    levels = 2 ** (bits - 1) - 1
    value = jnp.full(128, 1 / levels + 1e-6).at[0].set(1.0)
    link = quantize(bits)
    for seed in range(20):
        assert norm(there_and_back(link, value, seed)[0]) <= link.bound(norm(value))


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_layout_returns_and_only_floating_leaves_are_touched(link):
    decoded, message = there_and_back(link, VALUE)
    layout = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert layout(decoded) == layout(VALUE)
    assert int(decoded["count"]) == int(message["count"]) == 3
    assert np.abs(np.asarray(decoded["zero"])).max() == 0


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_pack_has_the_length_that_shapes_promise(link):
    decoded, message = there_and_back(link, VALUE)
    data = pack(message)
    assert len(data) == num_bytes(message_like(link, VALUE)) == num_bytes(message)
    restored = jax.jit(link.decode)(unpack(data, message), VALUE)
    jax.tree.map(np.testing.assert_array_equal, decoded, restored)


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (quantize(8), 1000 + 4 * 8),
        (quantize(4), 500 + 4 * 8),
        (quantize(4, block_size=1000), 500 + 4),
        (sign(), 125 + 4),
        (random_k(0.1), 100 * 4 + 4),
        (chain(random_k(0.1), quantize(4)), 50 + 4 + 4),
    ],
)
def test_a_thousand_entries_cost(link, expected):
    assert len(pack(there_and_back(link, jnp.ones(1000))[1])) == expected


def test_odd_leaves_fill_their_last_byte():
    decoded, message = there_and_back(quantize(4), jnp.asarray([1.0, -1.0, 0.0]))
    assert len(pack(message)) == 2 + 4
    np.testing.assert_array_equal(decoded, [1.0, -1.0, 0.0])


@pytest.mark.parametrize("link", UNBIASED.values(), ids=UNBIASED)
def test_the_mean_of_many_is_the_value(link):
    count = 4000
    drawn = samples(link, {"v": VALUE["a"]}, count)["v"]
    error = np.asarray(drawn.mean(0) - VALUE["a"])
    # five standard errors of each entry, measured
    assert (np.abs(error) <= 5 * np.asarray(drawn.std(0)) / math.sqrt(count) + 1e-6).all()


@pytest.mark.parametrize(("bits", "block"), [(8, 21), (4, 21), (4, 3)])
def test_the_variance_of_quantize_is_within_its_bound(bits, block):
    drawn = samples(quantize(bits, block_size=block), VALUE["a"], 2000)
    variance = float(((drawn - VALUE["a"][None]) ** 2).sum((1, 2)).mean())
    assert 0 < variance <= block / 4 / (2 ** (bits - 1) - 1) ** 2 * norm(VALUE["a"]) ** 2


@pytest.mark.parametrize(("scaled", "factor"), [(True, 21 / 7 - 1), (False, 1 - 7 / 21)])
def test_the_variance_of_random_k_is_what_the_table_says(scaled, factor):
    drawn = samples(random_k(7 / 21, scaled=scaled), VALUE["a"], 4000)
    error = float(((drawn - VALUE["a"][None]) ** 2).sum((1, 2)).mean())
    assert error == pytest.approx(factor * norm(VALUE["a"]) ** 2, rel=0.05)


def test_the_error_of_sign_is_what_the_table_says():
    value = VALUE["a"]
    error = norm(there_and_back(sign(), value)[0] - value) ** 2
    expected = norm(value) ** 2 - float(jnp.abs(value).sum()) ** 2 / value.size
    assert error == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "link", [sign(), random_k(0.3, scaled=False), quantize(4)], ids=["sign", "random_k", "int4"]
)
def test_error_feedback_loses_nothing_in_the_sum(link):
    link = error_feedback(link)
    value, total, state = {"v": VALUE["a"]}, 0.0, link.init({"v": VALUE["a"]})

    @jax.jit
    def send(state, seed):
        ctx = no_context()._replace(key=jax.random.key(seed))
        message, state = link.encode(value, None, state, ctx)
        return link.decode(message, value)["v"], state

    for round in range(40):
        decoded, state = send(state, round)
        total = total + decoded
    np.testing.assert_allclose(total + state[0]["v"], 40 * value["v"], rtol=1e-4, atol=1e-4)
    assert norm(state[0]) < 40 * norm(value) / 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quantize(5), "bits must be 4 or 8, got 5"),
        (lambda: quantize(4, block_size=0), "block_size must be at least 1, got 0"),
        (lambda: random_k(0.0), r"fraction must be in \(0, 1\], got 0"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
