"""Laws of fixed-point codes: within half a step each, exact sums, and no overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.privacy.secure import fixed_point
from fedjax_post.privacy.secure.fixed_point import choose

RNG = np.random.default_rng(0)


def summed(codes, values, weights):
    """Sums of values [clients, ...] and weights, by way of codes modulo 2^32."""
    encode = jax.vmap(lambda v, w: fixed_point.encode(codes, v, w))
    total = jax.tree.map(lambda x: x.sum(0, dtype=jnp.uint32), encode(values, weights))
    return fixed_point.decode(codes, *total)


@pytest.mark.parametrize("bits", [4, 12, None])
def test_a_sum_of_n_is_within_n_half_steps_of_the_weighted_sum(bits):
    codes = choose(0.3, max_clients=9, max_weight=40.0, bits=bits)
    values = RNG.uniform(-0.3, 0.3, (9, 50)).astype(np.float32)
    weights = RNG.integers(0, 41, 9).astype(np.float32)
    value, weight = summed(codes, values, weights)
    exact = (weights.astype(np.float64)[:, None] * values).sum(0)
    rounding = 2.0**-23 * np.abs(weights[:, None] * values).sum(0).max()
    assert np.abs(np.asarray(value, np.float64) - exact).max() <= 9 / 2 * codes.step + rounding
    if bits is None:  # whole weights are exact as soon as they have their bits
        assert weight == weights.sum()


@pytest.mark.parametrize("clients", [1, 2, 100, 127, 128, 10**6])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_sum_does_not_overflow(clients, sign):
    codes = choose(2.0, max_clients=clients)
    most, _ = fixed_point.encode(codes, jnp.float32([2.0 * sign]), jnp.float32(1))
    total = jnp.uint32(clients) * most  # of as many clients at their bound
    value, _ = fixed_point.decode(codes, total, jnp.uint32(0))
    assert float(value[0]) == pytest.approx(sign * 2.0 * clients, rel=1e-6)


def test_one_more_bit_could_overflow():
    """The refusal is not more careful than it has to be."""
    assert choose(1.0, max_clients=255).bits == 23
    with pytest.raises(ValueError, match="bits must be from 1 to 23, got 24: sums of 255 clients"):
        choose(1.0, max_clients=255, bits=24)
    assert 255 * 2**23 < 2**31 <= 256 * 2**23


def test_noise_takes_its_room():
    quiet, loud = (choose(1.0, max_clients=64, noise=noise).bits for noise in (0.0, 50.0))
    assert quiet == 24
    assert 2**loud * (64 + 12 * 50) < 2**31 <= 2 ** (loud + 1) * (64 + 12 * 50)


@pytest.mark.parametrize(
    ("value", "weight", "expected"),
    [
        ([1.0, -1.0], 4.0, True),
        ([1.0, 1.0001], 4.0, False),
        ([0.0, np.nan], 1.0, False),
        ([0.0, np.inf], 1.0, False),
        ([0.0, 0.0], 4.1, False),
        ([0.0, 0.0], -1.0, False),
        ([0.0, 0.0], np.nan, False),
    ],
)
def test_only_what_has_a_code_fits(value, weight, expected):
    codes = choose(1.0, max_clients=4, max_weight=4.0)
    assert bool(fixed_point.fits(codes, jnp.float32(value), jnp.float32(weight))) is expected


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: choose(np.inf, max_clients=3), "bound must be positive and finite, got inf"),
        (lambda: choose(1.0, max_clients=3, max_weight=0), "max_weight must be positive"),
        (lambda: choose(1.0, max_clients=0), "max_clients must be at least 1, got 0"),
        (lambda: choose(1.0, max_clients=2**31), "have no room for sums of 2147483648 clients"),
        (lambda: choose(1.0, max_clients=3, bits=25), "bits must be from 1 to 24, got 25"),
    ],
)
def test_what_could_overflow_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
