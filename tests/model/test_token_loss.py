"""Laws of the loss under the head: the numbers of the dense computation, without its logits."""

import dataclasses
import operator
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_post.adapters.lora import add_lora
from fedjax_post.core.access import Access, AccessError
from fedjax_post.model import token_loss
from fedjax_post.model.token_loss import Form, Head, strip_length, total_loss
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.testing.models import tiny_model

WIDTH, VOCAB = 6, 13
FORMS = [Form(False, None), Form(True, None), Form(False, 2.0), Form(True, 2.0)]


@pytest.fixture(scope="module", autouse=True)
def short_strips():
    """Strips of a few rows, so that a batch has several."""
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_loss, "MIN_ROWS", 3)
        yield


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def rows(seed=0, *lead, share=0.4):
    """Hidden states, targets and a mask of two rows of ten."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], (*lead, 2, 10, WIDTH))
    targets = jax.random.randint(keys[1], (*lead, 2, 10), 0, VOCAB)
    return x, targets, jax.random.bernoulli(keys[2], share, (*lead, 2, 10))


def weights(seed, form, *lead, bias=False):
    shape = (VOCAB, WIDTH) if form.tied else (WIDTH, VOCAB)
    return Head(draw(seed, *lead, *shape), draw(seed + 1, *lead, VOCAB) if bias else None)


def dense(x, targets, mask, head, form):
    """Nats and correct tokens by optax, from all logits."""
    logits = x @ (head.kernel.T if form.tied else head.kernel)
    logits = logits if head.bias is None else logits + head.bias[None, None]
    if form.softcap is not None:
        logits = form.softcap * jnp.tanh(logits / form.softcap)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    right = logits.argmax(-1) == targets
    return (nats * mask).sum(), (right & mask).sum(dtype=jnp.float32)


def ours(x, targets, mask, head, form):
    total = total_loss(x, targets, mask, head, form)
    return total.nats, total.num_correct


def assert_close(left, right, tolerance=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), left, right
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [False, True])
def test_loss_and_gradients_are_those_of_all_logits(form, bias):
    x, targets, mask = rows()
    head = weights(1, form, bias=bias)
    found, expected = (
        jax.jit(jax.value_and_grad(fn, argnums=(0, 3), has_aux=True), static_argnums=4)(
            x, targets, mask, head, form
        )
        for fn in (ours, dense)
    )
    assert_close(found, expected)
    assert_close(jax.jit(ours, static_argnums=4)(x, targets, mask, head, form), expected[0])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_loss_and_loss_everywhere(share):
    x, targets, mask = rows(share=share)
    head, form = weights(1, FORMS[0]), FORMS[0]
    found, expected = (
        jax.value_and_grad(fn, has_aux=True)(x, targets, mask, head, form) for fn in (ours, dense)
    )
    assert_close(found, expected)
    assert share or found[0] == (0, 0)


@pytest.mark.parametrize("own_head", [False, True])
def test_stacked_clients_equal_single_ones(own_head):
    """Clients of 0 to 20 positions with a loss, sharing a head or training one each."""
    form = FORMS[1]
    x, targets, _ = rows(3, 4)
    mask = jnp.arange(20).reshape(1, 2, 10) < jnp.array([0, 3, 11, 20])[:, None, None]
    head = weights(1, form, *([4] if own_head else []))

    def gradients(x, targets, mask, head):
        return jax.value_and_grad(ours, argnums=(0, 3), has_aux=True)(x, targets, mask, head, form)

    axis = 0 if own_head else None
    found = jax.jit(jax.vmap(gradients, in_axes=(0, 0, 0, axis)))(x, targets, mask, head)
    for i in range(4):
        one = Head(head.kernel[i]) if own_head else head
        expected = jax.value_and_grad(dense, argnums=(0, 3), has_aux=True)(
            x[i], targets[i], mask[i], one, form
        )
        assert_close(jax.tree.map(operator.itemgetter(i), found), expected)


def test_maps_nest_and_may_be_differentiated_from_outside():
    """Runs with a head each over clients that share it, and the gradient of their sum."""
    form = FORMS[0]
    x, targets, mask = rows(5, 2, 3)
    heads = weights(1, form, 2, bias=True)

    def summed(fn):
        over_clients = jax.vmap(lambda *a: fn(*a, form)[0], in_axes=(0, 0, 0, None))
        over_runs = jax.vmap(over_clients)
        return jax.jit(jax.grad(lambda x, h: over_runs(x, targets, mask, h).sum(), (0, 1)))

    assert_close(summed(ours)(x, heads), summed(dense)(x, heads))


@pytest.mark.parametrize("form", [FORMS[1], FORMS[2]])
@pytest.mark.parametrize("moving", ["rows", "head", "both"])
def test_second_derivatives_in_every_mix_of_modes_are_those_of_all_logits(form, moving):
    x, targets, mask = rows()
    head = weights(1, form, bias=True)
    at = {"x": x, "head": head}
    at = {name: at[name] for name in {"rows": ["x"], "head": ["head"]}.get(moving, at)}
    move = optax.tree.random_like(jax.random.key(8), at, jax.random.normal)

    def products(fn):
        loss = lambda p: fn(p.get("x", x), targets, mask, p.get("head", head), form)[0]
        along = lambda p: jax.jvp(loss, (p,), (move,))[1]
        slope = lambda p: optax.tree.vdot(jax.grad(loss)(p), move)
        return {
            "forward": along(at),
            "forward over reverse": jax.jvp(jax.grad(loss), (at,), (move,))[1],
            "reverse over reverse": jax.grad(slope)(at),
            "reverse over forward": jax.grad(along)(at),
            "forward over forward": jax.jvp(along, (at,), (move,))[1],
        }

    assert_close(jax.jit(lambda: products(ours))(), jax.jit(lambda: products(dense))(), 1e-5)


def test_stacked_clients_have_their_own_second_derivatives():
    """Per-FedAvg's gradient: of the loss after a step of gradient descent."""
    form = FORMS[1]
    x, targets, mask = rows(3, 4)
    head = weights(1, form)

    def meta(fn):
        def after_a_step(x, targets, mask):
            loss = lambda x: fn(x, targets, mask, head, form)[0]
            return loss(x - 0.1 * jax.grad(loss)(x))

        return jax.jit(jax.vmap(jax.grad(after_a_step)))

    assert_close(meta(ours)(x, targets, mask), meta(dense)(x, targets, mask), 1e-5)


def test_a_gradient_inside_a_loss_may_be_held_fixed():
    """FedSAM as a loss of its own: the inner gradient stands under `stop_gradient`."""
    form = FORMS[0]
    x, targets, mask = rows()
    loss = lambda x: ours(x, targets, mask, weights(1, form), form)[0]
    climbed = lambda x: loss(x + 0.1 * jax.lax.stop_gradient(jax.grad(loss)(x)))
    expected = jax.grad(loss)(x + 0.1 * jax.grad(loss)(x))
    assert_close(jax.jit(jax.grad(climbed))(x), expected)


def test_third_derivatives_are_those_of_all_logits():
    x, targets, mask = rows()
    form = FORMS[2]
    head = weights(1, form)

    def slopes(fn):
        loss = lambda s: fn(x * s, targets, mask, head, form)[0]
        return jax.jit(jax.grad(jax.grad(jax.grad(loss))))(1.0)

    np.testing.assert_allclose(slopes(ours), slopes(dense), rtol=1e-4)


def test_second_derivatives_hold_no_more_than_a_strip_of_logits_either(monkeypatch):
    """By the scan's strips of 8 rows of 20, in the mode that keeps what it computes."""
    monkeypatch.setattr(token_loss, "MIN_ROWS", 8)  # more than the kernel has rows
    x, targets, mask = rows()
    form = Form(False, None)
    kernel = draw(1, WIDTH, 37)
    loss = lambda fn: lambda x: fn(x, targets, mask, Head(kernel), form)[0]
    square = lambda fn: lambda x: optax.tree.vdot(*[jax.grad(loss(fn))(x)] * 2)
    text = jax.jit(jax.grad(square(ours))).lower(x).as_text()
    assert largest_logits(text, 37) == 8
    text = jax.jit(jax.grad(square(dense))).lower(x).as_text()
    assert largest_logits(text, 37) == 20


def test_bfloat16_sums_in_float32():
    """Products of 8-bit mantissas: errors of a few 2^-9, not of their sum over positions."""
    x, targets, mask = rows()
    form = FORMS[0]
    head = weights(1, form)
    low = x.astype(jnp.bfloat16), Head(head.kernel.astype(jnp.bfloat16))
    (nats, _), grads = jax.value_and_grad(ours, argnums=(0, 3), has_aux=True)(
        low[0], targets, mask, low[1], form
    )
    exact = low[0].astype(jnp.float32), Head(low[1].kernel.astype(jnp.float32))
    (expected, _), slopes = jax.value_and_grad(dense, argnums=(0, 3), has_aux=True)(
        exact[0], targets, mask, exact[1], form
    )
    assert nats.dtype == jnp.float32
    assert grads[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(nats, expected, rtol=1e-5)
    assert_close(jax.tree.map(lambda g: g.astype(jnp.float32), grads), slopes, 2**-6)


def adapted_batch(num_clients=4, **changes):
    model, params = add_lora(tiny_model(**changes), jax.random.key(0), rank=2, alpha=4)
    tokens = jax.random.randint(jax.random.key(1), (num_clients, 4, 16), 0, 32)
    batch = {"tokens": tokens, "loss_mask": jnp.arange(16)[None, None] >= 10}
    batch["loss_mask"] = jnp.broadcast_to(batch["loss_mask"], tokens.shape)
    return model, jax.tree.map(lambda leaf: jnp.stack([leaf] * num_clients), params), batch


@pytest.mark.heavy
@pytest.mark.parametrize("changes", [{}, {"tied_head": False, "logit_softcap": 5.0}])
def test_gradients_of_adapters_and_of_whole_models(changes):
    """The head trained, frozen, and tied to an embedding that is trained with it."""
    model, params, batch = adapted_batch(**changes)
    model = dataclasses.replace(model, variables=dict(model.variables))
    one = jax.tree.map(lambda leaf: leaf[0] + 0.1, params)
    batch = jax.tree.map(lambda leaf: leaf[0], batch)

    def by_logits(params, model):
        logits = model.logits(params, batch["tokens"])[:, :-1]
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:])
        mask = batch["loss_mask"][:, 1:]
        return (nats * mask).sum() / mask.sum()

    for trained in (one, {**one, "params": model.variables["params"]}):
        found = jax.jit(jax.grad(lambda p, m: sft_loss(p, m, batch, None)[0]))(trained, model)
        assert_close(found, jax.jit(jax.grad(by_logits))(trained, model))


def largest_logits(text, vocab):
    """Elements of the largest float32 array of a program whose last axis is the vocabulary."""
    shapes = re.findall(rf"tensor<([0-9x]*){vocab}xf32>", text)
    return max(int(np.prod([int(n) for n in s.split("x") if n] or [1])) for s in shapes)


@pytest.mark.heavy
def test_no_more_than_a_strip_of_logits_exists():
    model, params, batch = adapted_batch(vocab_size=37)
    grad = jax.vmap(jax.grad(lambda p, m, b: sft_loss(p, m, b, None)[0]), in_axes=(0, None, 0))
    text = jax.jit(grad).lower(params, model, batch).as_text()
    strip = strip_length(4, 4 * 15, 37)
    assert strip == 8
    assert largest_logits(text, 37) == 4 * strip
    whole = lambda p, m, b: jax.vmap(m.logits, in_axes=(0, 0))(p, b["tokens"]).sum()
    text = jax.jit(whole).lower(params, model, batch).as_text()
    assert largest_logits(text, 37) == 4 * 4 * 16


@pytest.mark.heavy
def test_evaluation_and_frozen_heads_form_no_gradient():
    """One product with the head for the loss, two with its gradient, three if it is trained."""
    model, params, batch = adapted_batch(tied_head=False, vocab_size=37)
    one, rows = jax.tree.map(lambda leaf: leaf[0], (params, batch))
    loss = lambda p: sft_loss(p, model, rows, None)[0]
    whole = {**one, "params": {"head": model.variables["params"]["head"]}}

    def head_products(fn, params):
        text = jax.jit(fn).lower(params).as_text()
        return len(re.findall(r"dot_general.*[<x]37x", text))

    assert head_products(loss, one) == 1
    assert head_products(jax.grad(loss), one) == 2
    assert head_products(jax.grad(loss), whole) == 3


@pytest.mark.heavy
@pytest.mark.parametrize("tier", [Access.LOGITS, Access.EMBEDDINGS, Access.WEIGHTS])
def test_a_lesser_view_has_a_loss_without_a_derivative(tier):
    model, _, batch = adapted_batch()
    batch = jax.tree.map(lambda leaf: leaf[0], batch)
    loss = lambda m: sft_loss({}, m.restrict(tier), batch, None)[0]
    np.testing.assert_array_equal(loss(model), sft_loss({}, model, batch, None)[0])
    for differentiate in (jax.grad(loss), lambda m: jax.jvp(loss, (m,), (m,))):
        with pytest.raises(AccessError, match="needs GRADIENTS"):
            differentiate(model)
    with pytest.raises(AccessError, match="total_loss needs LOGITS"):
        model.restrict(Access.TEXT).total_loss({}, batch["tokens"], batch["loss_mask"])


def test_strips_are_short_where_clients_are_many(monkeypatch):
    monkeypatch.setattr(token_loss, "MIN_ROWS", 128)
    assert [strip_length(g, 1000, 32000) for g in (1, 2, 16)] == [128, 65, 8]
    assert strip_length(2, 1000, 100) == 125
    assert strip_length(1, 5, 10) == 5
