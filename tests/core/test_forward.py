"""Estimated gradients: their mean, their variance, and that nothing is differentiated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.core import Access, AccessError
from fedjax_post.core.forward import forward_gradient, two_point
from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params

BATCH = jax.tree.map(lambda x: x[0], toy_clients().visit(0, np.random.default_rng(0)).batches)
KINDS = {"two_point": two_point, "forward_gradient": forward_gradient}


def flat(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def gradient(loss_fn, key, model=None):
    grad_fn = jax.grad(loss_fn, has_aux=True)
    return grad_fn(toy_params(), toy_model() if model is None else model, BATCH, key)


@pytest.mark.parametrize("num_directions", [1, 4])
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_mean_and_variance_of_an_estimate(make, num_directions):
    """Its mean is the gradient; its mean squared error (d + 1) |g|^2 / n."""
    loss_fn, count = make(toy_loss, num_directions=num_directions), 4000
    keys = jax.random.split(jax.random.key(0), count)
    drawn = jax.jit(jax.vmap(lambda key: gradient(loss_fn, key)[0]))(keys)
    drawn = np.concatenate([np.asarray(x).reshape(count, -1) for x in jax.tree.leaves(drawn)], 1)
    exact = flat(gradient(toy_loss, keys[0])[0])
    assert (np.abs(drawn.mean(0) - exact) <= 5 * drawn.std(0) / np.sqrt(count)).all()
    error = ((drawn - exact) ** 2).sum(1).mean()
    expected = (len(exact) + 1) * (exact**2).sum() / num_directions
    assert error == pytest.approx(expected, rel=0.15)


def test_both_estimates_agree_on_a_direction():
    one, other = (gradient(make(toy_loss), jax.random.key(3))[0] for make in KINDS.values())
    np.testing.assert_allclose(flat(one), flat(other), rtol=1e-2)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_metrics_are_those_of_the_loss(make):
    _, metrics = gradient(make(toy_loss, num_directions=2), jax.random.key(0))
    _, exact = gradient(toy_loss, jax.random.key(0))
    np.testing.assert_allclose(metrics["loss"], exact["loss"], rtol=1e-4)


def test_two_points_need_no_more_than_weights():
    model = toy_model().restrict(Access.WEIGHTS)
    one, _ = gradient(two_point(toy_loss), jax.random.key(0), model)
    other, _ = gradient(two_point(toy_loss), jax.random.key(0))
    np.testing.assert_array_equal(flat(one), flat(other))


def test_a_forward_gradient_differentiates():
    model = toy_model().restrict(Access.WEIGHTS)
    with pytest.raises(AccessError):
        gradient(forward_gradient(toy_loss), jax.random.key(0), model)


@pytest.mark.heavy
def test_a_language_model_below_gradients_is_enough():
    from fedjax_post.adapters.lora import add_lora
    from fedjax_post.objectives.sft import sft_loss
    from fedjax_post.testing.models import tiny_model

    model, params = add_lora(tiny_model(), jax.random.key(0), rank=2, alpha=4)
    batch = {"tokens": jnp.arange(16).reshape(2, 8), "loss_mask": jnp.ones((2, 8), bool)}
    view = model.restrict(Access.WEIGHTS)
    grads, _ = jax.grad(two_point(sft_loss), has_aux=True)(params, view, batch, jax.random.key(1))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    assert np.abs(flat(grads)).max() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: two_point(toy_loss, epsilon=0), "epsilon must be positive, got 0"),
        (lambda: two_point(toy_loss, num_directions=0), "num_directions must be at least 1, got 0"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
