"""Losses of language models have second derivatives; see also `model/test_token_loss.py`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_post.adapters.lora import add_lora
from fedjax_post.adapters.prompt import add_soft_prompt
from fedjax_post.core.access import Access, AccessError
from fedjax_post.model import token_loss
from fedjax_post.model.quantize import quantize_model
from fedjax_post.objectives.choice import choice_loss
from fedjax_post.objectives.dpo import dpo_loss
from fedjax_post.objectives.grpo import grpo_loss
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.testing.models import tiny_model

TOKENS = jax.random.randint(jax.random.key(1), (4, 8), 3, 32)
MASK = jnp.broadcast_to(jnp.arange(8) >= 4, TOKENS.shape)
BATCH = {"tokens": TOKENS, "loss_mask": MASK}
PACKED = BATCH | {"segments": jnp.broadcast_to(jnp.repeat(jnp.array([1, 2]), 4), TOKENS.shape)}
PAIRS = jax.tree.map(lambda leaf: leaf.reshape(2, 2, 8), BATCH)
ANSWERS = BATCH | {
    "advantages": jnp.array([1.0, -1.0, 0.5, -0.5]),
    # Some ratios are clipped, and none crosses an end of the clip within the differences below.
    "old_log_probs": jnp.full((4, 7), -2.5),
}


@pytest.fixture(scope="module", autouse=True)
def short_strips():
    """Strips of a few rows, so that a batch has several."""
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_loss, "MIN_ROWS", 5)
        yield


def adapted(*, layers=None, kind=None, **changes):
    """A model and a start of its adapter away from zero, where B alone would hide A."""
    base = tiny_model(**({"num_layers": 1} | changes))
    base = base if kind is None else quantize_model(base, kind)
    model, params = add_lora(base, jax.random.key(0), rank=2, alpha=4, layers=layers)
    return model, jax.tree.map(lambda leaf: leaf + 0.1, params)


def prompted_whole():
    """All weights, the tied head among them, and a soft prompt."""
    model = tiny_model(num_layers=1)
    prompt = add_soft_prompt(model, jax.random.key(0), length=2)
    return model, {"params": model.variables["params"], **prompt}


@functools.partial(jax.jit, static_argnums=0)
def products(loss_fn, params, model, batch, direction):
    """The Hessian times a direction: forward over reverse, and reverse over reverse."""
    slopes = jax.grad(lambda p: loss_fn(p, model, batch, None)[0])
    along = lambda p: optax.tree.vdot(slopes(p), direction)
    return jax.jvp(slopes, (params,), (direction,))[1], jax.grad(along)(params)


@functools.partial(jax.jit, static_argnums=0)
def gradient(loss_fn, params, model, batch):
    return jax.grad(loss_fn, has_aux=True)(params, model, batch, None)[0]


def direction_like(params):
    return optax.tree.random_like(jax.random.key(3), params, jax.random.normal)


def assert_close(found, expected, tolerance):
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert scale > 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * scale), found, expected
    )


def slopes_of_gradients(loss_fn, params, model, batch, direction):
    """Central differences of the gradient, extrapolated to the fourth order of the step."""

    def slope(step):
        ends = [optax.tree.add_scale(params, s, direction) for s in (step, -step)]
        ends = [gradient(loss_fn, end, model, batch) for end in ends]
        return optax.tree.scale(0.5 / step, optax.tree.sub(*ends))

    near, far = slope(0.0025), slope(0.005)
    return jax.tree.map(lambda a, b: (4 * a - b) / 3, near, far)


PLAIN = adapted
ODD = functools.partial(  # what may stand in a derivative's way, at once
    adapted,
    num_layers=2,
    layers=(1, 2),
    remat=True,
    kind="nf4",
    tied_head=False,
    logit_softcap=5.0,
)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("loss_fn", "start", "batch"),
    [
        (sft_loss, PLAIN, BATCH),
        (dpo_loss(beta=0.5), PLAIN, PAIRS),
        (grpo_loss(clip=0.9, beta=0.1), PLAIN, ANSWERS),
        (choice_loss([5, 6, 7]), PLAIN, BATCH),
        pytest.param(sft_loss, ODD, PACKED, marks=pytest.mark.slow),
        pytest.param(sft_loss, prompted_whole, BATCH, marks=pytest.mark.slow),
    ],
    ids=["sft", "dpo", "grpo", "choice", "sft, odd model", "sft, all weights"],
)
def test_hessians_are_the_slopes_of_gradients(loss_fn, start, batch):
    model, params = start()
    direction = direction_like(params)
    expected = slopes_of_gradients(loss_fn, params, model, batch, direction)
    for found in products(loss_fn, params, model, batch, direction):
        assert_close(found, expected, 2e-3)


@pytest.mark.heavy
def test_lesser_views_refuse_second_derivatives_too():
    model, params = adapted()
    view = model.restrict(Access.WEIGHTS)
    loss = lambda p: sft_loss(p, view, BATCH, None)[0]
    along = lambda p: jax.jvp(loss, (p,), (p,))[1]
    for derivative in (jax.hessian(loss), jax.grad(along), jax.grad(lambda p: 0.0 * loss(p))):
        with pytest.raises(AccessError, match="needs GRADIENTS"):
            derivative(params)
