"""Products of operands rounded to bfloat16: exact sums, in every mode and under every map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.model.product import bits, product

ROWS, WIDTH, FEATURES, GROUPS = 5, 64, 32, 3
# Sums of 64 products of numbers near 1, against float64
NEAR = {"rtol": 1e-5, "atol": 1e-5}


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def rounded(x):
    return np.asarray(x.astype(jnp.bfloat16), np.float64)


def operands(tied=False, grouped=False):
    shape = (FEATURES, WIDTH) if tied else (WIDTH, FEATURES)
    shape = (GROUPS, *shape) if grouped else shape
    return normal(0, GROUPS, ROWS, WIDTH), normal(1, *shape), normal(2, GROUPS, ROWS, FEATURES)


FORMS = [(tied, grouped) for tied in (False, True) for grouped in (False, True)]


@pytest.mark.parametrize(("tied", "grouped"), FORMS)
def test_products_and_derivatives_are_those_of_rounded_operands(tied, grouped):
    x, kernel, cotangent = operands(tied, grouped)
    out, pull = jax.vjp(functools.partial(product, tied=tied), x, kernel)
    grad_x, grad_kernel = pull(cotangent)
    turned = (lambda a: np.swapaxes(a, -1, -2)) if tied else (lambda a: a)
    wide, g = turned(rounded(kernel)), rounded(cotangent)
    np.testing.assert_allclose(out, rounded(x) @ wide, **NEAR)
    np.testing.assert_allclose(grad_x, g @ np.swapaxes(wide, -1, -2), **NEAR)
    sums = np.einsum("gmk,gmn->gkn" if grouped else "gmk,gmn->kn", rounded(x), g)
    np.testing.assert_allclose(turned(np.asarray(grad_kernel)), sums, **NEAR)
    assert out.dtype == grad_x.dtype == grad_kernel.dtype == jnp.float32


@pytest.mark.parametrize(("tied", "grouped"), FORMS)
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (1, 1)])
def test_mapped_products_are_those_one_by_one(tied, grouped, axes):
    x, kernel, _ = operands(tied, grouped)
    loss = lambda x, kernel: jnp.sin(product(x, kernel, tied=tied)).sum()
    step = jax.value_and_grad(loss, argnums=(0, 1))
    many = [
        leaf if at is None else jnp.stack([leaf, 2 * leaf], at)
        for leaf, at in zip((x, kernel), axes, strict=True)
    ]
    mapped = jax.vmap(step, axes)(*many)
    for i in range(2):
        one = [
            leaf if at is None else jnp.take(leaf, i, axis=at)
            for leaf, at in zip(many, axes, strict=True)
        ]
        for got, want in zip(jax.tree.leaves(mapped), jax.tree.leaves(step(*one)), strict=True):
            np.testing.assert_allclose(got[i], want, **NEAR)


def test_rows_of_many_clients_are_one_product():
    x, kernel, _ = operands()
    text = jax.jit(jax.vmap(product, (0, None))).lower(x, kernel).as_text()
    dots = [line for line in text.splitlines() if "dot_general" in line]
    assert len(dots) == 1
    assert f"tensor<{GROUPS * ROWS}x{FEATURES}xf32>" in dots[0]
    assert dots[0].count("xbf16>") == 2


def test_second_derivatives_exist_in_either_mode():
    x, kernel, _ = operands()
    loss = lambda x: jnp.tanh(product(x, kernel)).sum()
    along = lambda x: jax.jvp(loss, (x,), (x,))[1]
    forward_over_reverse = jax.jvp(jax.grad(loss), (x,), (x,))[1]
    reverse_over_reverse = jax.grad(lambda x: (jax.grad(loss)(x) * operands()[0]).sum())(x)
    reverse_over_forward = jax.grad(along)(x) - jax.grad(loss)(x)
    # operands of the three are rounded at different places: 8 bits
    scale = float(jnp.abs(forward_over_reverse).max())
    for other in (reverse_over_reverse, reverse_over_forward):
        np.testing.assert_allclose(other, forward_over_reverse, atol=0.02 * scale)


def test_bits_multiply_like_the_numbers_they_hold_and_have_no_derivative():
    x, kernel, _ = operands()
    narrow = kernel.astype(jnp.bfloat16)
    np.testing.assert_array_equal(product(x, bits(narrow)), product(x, kernel))
    with pytest.raises(NotImplementedError, match="pass the weights to differentiate as `params`"):
        jax.grad(lambda kernel: product(x, bits(kernel)).sum())(narrow)
