"""Laws of adapters on a range of layers: the numbers of a whole adapter, with less arithmetic."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.adapters.lora import add_lora, lora_delta, merge_lora
from fedjax_post.model.quantize import quantize_model
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.testing.models import tiny_model

TOKENS = jax.random.randint(jax.random.key(9), (2, 7), 0, 32)
BATCH = {"tokens": TOKENS, "loss_mask": jnp.ones((2, 7), bool)}
RANGES = [((0, 1), True), ((2, 3), True), ((1, 4), True), ((1, 4), False), ((3, 5), False)]


@functools.cache
def base(**changes):
    return tiny_model(num_layers=5, **changes)


def random_lora(model, layers, **kwargs):
    model, params = add_lora(model, jax.random.key(1), rank=2, alpha=4, layers=layers, **kwargs)
    return model, jax.tree.map(
        lambda leaf: 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )


def spread(params, first, num_layers=5):
    """The same adapter with factors on all layers, zero outside of the range."""

    def pad(leaf):
        return jnp.zeros((num_layers, *leaf.shape[1:])).at[first : first + len(leaf)].set(leaf)

    return jax.tree.map(pad, params)


def gradients(model, params):
    return jax.jit(jax.value_and_grad(lambda p, m: sft_loss(p, m, BATCH, None)[0]))(params, model)


@pytest.mark.heavy
@pytest.mark.parametrize(("layers", "remat"), RANGES)
def test_a_range_equals_a_whole_adapter_that_is_zero_elsewhere(layers, remat):
    changes = {} if layers != (1, 4) else {"sliding_layers": (0, 2), "sliding_window": 3}
    model, params = random_lora(base(remat=remat, **changes), layers)
    whole, _ = random_lora(base(remat=remat, **changes), None)
    wide = spread(params, layers[0])
    np.testing.assert_allclose(
        model.logits(params, TOKENS), whole.logits(wide, TOKENS), atol=1e-5, rtol=1e-5
    )
    loss, grads = gradients(model, params)
    expected, slopes = gradients(whole, wide)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[slice(*layers)], atol=2e-6), grads, slopes
    )


@pytest.mark.heavy
def test_all_layers_are_no_range():
    model, _ = random_lora(base(), (0, 5))
    assert model.lora_layers is None


@pytest.mark.heavy
def test_generation_merging_and_folds_know_the_range():
    model, params = random_lora(base(), range(1, 3))
    expected = model.logits(params, TOKENS)
    merged = merge_lora(model, params)
    np.testing.assert_allclose(merged.logits({}, TOKENS), expected, atol=1e-4)
    folded = {"residual": lora_delta(model, params)}
    np.testing.assert_allclose(model.logits(folded, TOKENS), expected, atol=1e-4)
    np.testing.assert_allclose(merge_lora(model, folded).logits({}, TOKENS), expected, atol=1e-4)
    last, _ = model.prefill(params, TOKENS, mask=TOKENS >= 0, num_slots=9)
    np.testing.assert_allclose(last, expected[:, -1], atol=1e-4)


@pytest.mark.heavy
def test_codes_are_read_by_number_too():
    coded = quantize_model(base(), "int8")
    model, params = random_lora(coded, (3, 5))
    whole, _ = random_lora(coded, None)
    found, expected = gradients(model, params), gradients(whole, spread(params, 3))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)


@pytest.mark.heavy
def test_dropout_reaches_the_range():
    model, params = random_lora(base(), (1, 3), dropout=0.5)
    plain = model.logits(params, TOKENS)
    one, same, other = (model.logits(params, TOKENS, key=jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert min(np.abs(one - plain).max(), np.abs(one - other).max()) > 1e-3


def test_factors_of_other_layers_are_refused():
    model, params = random_lora(base(), (1, 3))
    with pytest.raises(ValueError, match="is on layers 1 to 2, but 'lora' has entries for 5"):
        model.logits(spread(params, 1), TOKENS)


SHAPE = {"hidden_size": 512, "intermediate_size": 1024, "num_heads": 4, "head_dim": 128}
QKV = 512 * 512 + 2 * 512 * 256
LAYER = 3 * 512 * 1024 + 512 * 512 + QKV  # weights of the products of one layer


def compiled(
    layers, *, num_layers, num_clients=1, remat=True, differentiate=True, shape=SHAPE, length=16
):
    """The program of a step, or of its forward pass, for stacked clients of one row each."""
    key = jax.random.key(0)

    def shapes():
        model = tiny_model(num_layers=num_layers, remat=remat, **shape)
        model, params = add_lora(model, key, rank=1, alpha=1, layers=layers)
        stack = lambda leaf: jnp.stack([leaf] * num_clients)
        tokens = jnp.zeros((1, length), jnp.int32)
        batch = {"tokens": tokens, "loss_mask": jnp.ones((1, length), bool)}
        return model, *jax.tree.map(stack, (params, batch))

    model, stacked, batch = jax.eval_shape(shapes)
    loss = lambda p, m, b: sft_loss(p, m, b, None)[0]
    step = jax.vmap(jax.grad(loss) if differentiate else loss, in_axes=(0, None, 0))
    return jax.jit(step).lower(stacked, model, batch).compile()


@functools.cache
def cost(layers, *, num_layers, differentiate=True):
    """Operations of a step, in forward passes of all products of one layer."""
    program = compiled(layers, num_layers=num_layers, remat=False, differentiate=differentiate)
    return program.cost_analysis()["flops"] / (2 * 16 * LAYER)


@pytest.mark.heavy
def test_a_layer_below_the_range_costs_a_forward_pass():
    below = cost((1, 2), num_layers=2) - cost((0, 1), num_layers=1)
    np.testing.assert_allclose(below, 1, atol=0.1)


@pytest.mark.heavy
def test_a_layer_above_the_range_costs_no_gradient_of_its_weights():
    above = cost((0, 1), num_layers=2) - cost((0, 1), num_layers=1)
    np.testing.assert_allclose(above, 2, atol=0.2)


def test_an_adapted_layer_by_itself_costs_no_gradient_of_its_input():
    backward = cost((1, 2), num_layers=2) - cost((1, 2), num_layers=2, differentiate=False)
    np.testing.assert_allclose(backward, 1 - QKV / LAYER, atol=0.1)


@functools.cache
def busy_step(layers, *, remat):
    """A step that holds activations rather than weights."""
    small = {"hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "head_dim": 16}
    return compiled(layers, num_layers=5, num_clients=8, remat=remat, shape=small, length=64)


PARTS = [(0, 1), (0, 4), (1, 3), (2, 5), (4, 5)]


@pytest.mark.heavy
@pytest.mark.parametrize("remat", [True, False])
@pytest.mark.parametrize("layers", PARTS)
def test_a_range_holds_no_more_than_all_layers(layers, remat):
    held, most = (
        busy_step(part, remat=remat).memory_analysis().temp_size_in_bytes for part in (layers, None)
    )
    assert held < most


@pytest.mark.heavy
@pytest.mark.parametrize("layers", PARTS)
def test_a_range_takes_fewer_operations_than_all_layers(layers):
    taken, most = (busy_step(part, remat=False).cost_analysis()["flops"] for part in (layers, None))
    assert taken < most


@pytest.mark.heavy
@pytest.mark.parametrize("remat", [True, False])
def test_parts_copy_neither_the_stack_nor_a_layer_per_client(remat):
    """Of sixteen layers of weights, a handful is read at once, however many the clients."""
    one, eight = (
        compiled((12, 16), num_layers=16, num_clients=n, remat=remat)
        .memory_analysis()
        .temp_size_in_bytes
        / (4 * LAYER)
        for n in (1, 8)
    )
    assert one < 3
    assert eight - one < 3  # a layer for each client would be 7
