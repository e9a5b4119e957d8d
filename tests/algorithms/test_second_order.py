"""Algorithms that use second derivatives, written as a user would, pass the whole contract.

FedSAM: Qu et al., ICML 2022, arXiv:2206.02618. FedSpeed: Sun et al., ICLR 2023,
arXiv:2302.10429, its perturbed gradient and its prox term. Per-FedAvg: Fallah et al.,
NeurIPS 2020, arXiv:2002.07948, with the Hessian (HF and FO are what it is compared with).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_post.algorithms import fed_avg, fed_prox
from fedjax_post.core import (
    Algorithm,
    Client,
    Upload,
    local_steps,
    mean_over_steps,
    server_optimizer,
    uniformly,
    weighted_mean,
)
from fedjax_post.core.algorithm import stateless
from fedjax_post.testing import CHECKS, Case, toy_loss, toy_model, toy_params
from fedjax_post.testing.contract import EXPENSIVE

SGD = optax.sgd(0.05)


def slope(loss_fn, params, model, batch, key):
    return jax.grad(lambda p: loss_fn(p, model, batch, key)[0])(params)


def fed_sam(loss_fn, client_tx, *, rho: float = 0.01):
    """FedAvg on the loss a step of length rho uphill, its inner gradient held fixed."""

    def sharp(params, model, batch, key):
        uphill = jax.lax.stop_gradient(slope(loss_fn, params, model, batch, key))
        step = rho / (optax.global_norm(uphill) + 1e-6)
        return loss_fn(optax.tree.add_scale(params, step, uphill), model, batch, key)

    return fed_avg(sharp, client_tx, weigh_fn=uniformly)


def fed_speed(loss_fn, client_tx, *, rho: float = 0.01, share: float = 0.5, mu: float = 0.05):
    """FedProx on a mix of the loss and of the loss after a step uphill, differentiated through."""

    def mixed(params, model, batch, key):
        uphill = slope(loss_fn, params, model, batch, key)
        there, _ = loss_fn(optax.tree.add_scale(params, rho, uphill), model, batch, key)
        here, metrics = loss_fn(params, model, batch, key)
        return (1 - share) * here + share * there, metrics

    return fed_prox(mixed, client_tx, mu=mu, weigh_fn=uniformly)


def per_fed_avg(loss_fn, client_tx, *, inner_lr: float = 0.02):
    """FedAvg on the loss after a step of training, which is what a client would then serve."""

    def adapted_loss(params, model, batch, key):
        moved = slope(loss_fn, params, model, batch, key)
        return loss_fn(optax.tree.add_scale(params, -inner_lr, moved), model, batch, key)

    def update(model, replica, state, data, ctx):
        params, _, metrics = local_steps(adapted_loss, client_tx, replica, model, data, ctx)
        return Upload(optax.tree.sub(params, replica), uniformly(data)), state, metrics

    server = server_optimizer(optax.sgd(1.0))
    return Algorithm(Client(stateless, update), server, weighted_mean())


def curved(loss_fn, client_tx):
    """One Newton step by conjugate gradients on products of the Hessian, forward over reverse."""
    del client_tx

    def update(model, replica, state, data, ctx):
        def mean_slope(params):
            fn = lambda batch, key: slope(loss_fn, params, model, batch, key)
            return mean_over_steps(fn, data, ctx)

        def product(v):
            along = jax.jvp(mean_slope, (replica,), (v,))[1]
            return optax.tree.add_scale(along, 1.0, v)  # damped

        slopes = mean_slope(replica)
        step, _ = jax.scipy.sparse.linalg.cg(product, slopes, maxiter=3)
        # of slopes that are not finite it makes zeros, and the engine shall see what they were
        step = optax.tree.add_scale(step, 0.0, slopes)
        return Upload(optax.tree.scale(-1.0, step), jnp.float32(1)), state, {}

    server = server_optimizer(optax.sgd(1.0))
    return Algorithm(Client(stateless, update), server, weighted_mean())


CASES = {fn.__name__: Case(fn(toy_loss, SGD)) for fn in (fed_sam, fed_speed, per_fed_avg, curved)}


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(name, check, marks=[pytest.mark.slow] if check in EXPENSIVE else [])
        for name in CASES
        for check in CHECKS
        if check != "trains_a_language_model"
    ],
)
def test_contract(name, check):
    CHECKS[check](CASES[name])


@pytest.mark.heavy
@pytest.mark.parametrize("name", CASES)
def test_they_train_a_language_model(name):
    CHECKS["trains_a_language_model"](CASES[name])


@pytest.mark.heavy
def test_a_loss_that_is_not_finite_on_a_language_model_is_found():
    def narrow(params, model, batch, key):
        loss, metrics = toy_loss(params, model, batch, key)
        return loss * (1.0 if "x" in batch else jnp.nan), metrics

    with pytest.raises(AssertionError, match="language model's loss is not finite"):
        CHECKS["trains_a_language_model"](Case(fed_avg(narrow, SGD)))


def test_per_fed_avg_has_the_hessian_in_its_step():
    """(I - a H) g(x - a g(x)), which the first-order form leaves out; H by differences."""
    rng = np.random.default_rng(0)
    batch = {
        "x": rng.normal(size=(4, 4)).astype(np.float32),
        "y": rng.normal(size=(4, 3)).astype(np.float32),
    }
    model, key, rate = toy_model(), jax.random.key(0), 0.1
    gradient = lambda p: slope(toy_loss, p, model, batch, key)

    def meta(params):
        after = optax.tree.add_scale(params, -rate, gradient(params))
        return toy_loss(after, model, batch, key)[0]

    params = toy_params()
    first_order = gradient(optax.tree.add_scale(params, -rate, gradient(params)))
    ends = [gradient(optax.tree.add_scale(params, s, first_order)) for s in (0.5, -0.5)]
    expected = optax.tree.add_scale(first_order, -rate, optax.tree.sub(*ends))
    found = jax.grad(meta)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    assert np.abs(found["change"] - first_order["change"]).max() > 0.01
