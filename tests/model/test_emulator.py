"""Laws of stand-ins: what is handed out, what is returned, and what alignment may change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_post.adapters.lora import add_lora
from fedjax_post.model.alignment import align, aligner, gap
from fedjax_post.model.emulator import choose_evenly, emulate, emulator_bytes
from fedjax_post.model.quantize import quantize_model
from fedjax_post.testing.models import tiny_model

TOKENS = jnp.arange(24).reshape(2, 12) * 7 % 32
BATCH = {"tokens": TOKENS, "loss_mask": TOKENS % 5 > 0}
BATCHES = jax.tree.map(lambda x: jnp.stack([x, x[::-1], x]), BATCH)
KINDS = {
    "plain": {},
    "windows": {"sliding_layers": (1, 3), "sliding_window": 3, "no_rope_layers": (2,)},
    "places": {"learned_positions": True, "rope": None, "norm": "layer", "tied_head": False},
}


def adapted(num_layers=6, rank=2, **fields):
    """A target with factors that change something."""
    model = tiny_model(num_layers=num_layers, **fields)
    model, params = add_lora(model, jax.random.key(1), rank=rank, alpha=4)
    return model, jax.tree.map(lambda x: x + 0.05, params)


def without_layers(model, dropped):
    """The same model in which some layers write nothing to the residual stream."""
    weights = jax.tree.map(lambda x: x, model.variables["params"])
    layers = weights["layers"]
    for part, name in (("attention", "o_proj"), ("mlp", "down_proj")):
        linear = layers[part][name]
        layers[part][name] = {k: x.at[jnp.array(dropped)].set(0) for k, x in linear.items()}
    return dataclasses.replace(model, variables={**model.variables, "params": weights})


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_dropping_a_layer_is_silencing_it(kind):
    model = tiny_model(num_layers=6, **KINDS[kind])
    emulator = emulate(model, first=1, last=1, keep_every=2)
    assert emulator.layers == (0, 1, 4, 5)
    expected = without_layers(model, [2, 3]).logits({}, TOKENS)
    np.testing.assert_allclose(emulator.model.logits({}, TOKENS), expected, atol=2e-5)
    assert np.abs(expected - model.logits({}, TOKENS)).max() > 0.1


def test_layers_are_chosen_as_in_the_papers_code():
    """GPT2-XL's and OPT-1.3B's stand-ins of the paper's scripts: 16 of 44, 8 of 20 layers."""
    gpt2_xl = (0, 3, 6, 9, 11, 14, 17, 20, 23, 26, 29, 32, 34, 37, 40, 43)
    assert choose_evenly(44, 16) == gpt2_xl
    assert choose_evenly(20, 8) == (0, 3, 5, 8, 11, 14, 16, 19)


@pytest.mark.parametrize("num_kept", [1, 2, 3, 5, 9])
def test_the_choice_is_even_and_has_both_ends(num_kept):
    chosen = choose_evenly(9, num_kept)
    assert len(set(chosen)) == num_kept
    assert num_kept == 1 or (chosen[0], chosen[-1]) == (0, 8)
    assert np.ptp(np.diff(chosen)) <= 1 if num_kept > 1 else chosen == (4,)


@pytest.mark.heavy
def test_a_stand_in_that_drops_nothing_is_the_target():
    model, params = adapted()
    emulator = emulate(model, first=2, last=1, keep_every=1)
    assert emulator.layers == tuple(range(6))
    np.testing.assert_array_equal(
        emulator.model.logits(params, TOKENS), model.logits(params, TOKENS)
    )
    assert emulator_bytes(emulator) == sum(
        x.nbytes for x in jax.tree.leaves(model.variables["params"])
    )


@pytest.mark.heavy
def test_a_stand_in_is_handed_out_without_what_it_dropped():
    model, _ = adapted()
    layer = sum(x.nbytes for x in jax.tree.leaves(model.variables["params"]["layers"])) // 6
    whole = emulator_bytes(emulate(model, first=1, last=1, keep_every=1))
    assert whole - emulator_bytes(emulate(model, first=1, last=1, keep_every=4)) == 3 * layer


@pytest.mark.heavy
def test_plugging_untrained_ends_changes_nothing():
    model, params = add_lora(tiny_model(num_layers=4), jax.random.key(1), rank=2, alpha=4)
    emulator = emulate(model, first=1, last=1, keep_every=2)
    plugged = emulator.plug(model, emulator.ends(params))
    np.testing.assert_array_equal(model.logits(plugged, TOKENS), model.logits({}, TOKENS))
    weights = emulator.ends({"params": model.variables["params"]})
    np.testing.assert_array_equal(
        model.logits(emulator.plug(model, weights), TOKENS), model.logits({}, TOKENS)
    )


@pytest.mark.parametrize("what", ["lora", "params"])
def test_ends_come_back_where_they_were_and_nothing_else_does(what):
    model, params = adapted()
    whole = params if what == "lora" else {"params": model.variables["params"]}
    emulator = emulate(model, first=2, last=1, keep_every=2)
    ends = jax.tree.map(lambda x: x + 1, emulator.ends(whole))
    plugged = emulator.plug(model, ends)
    frozen = model.variables["params"]["layers"] if what == "params" else {}
    for (path, leaf), old in zip(
        jax.tree_util.tree_leaves_with_path(plugged[what]["layers"]),
        jax.tree.leaves(whole[what]["layers"]),
        strict=True,
    ):
        outside = np.array([0, 1, 5])
        np.testing.assert_array_equal(leaf[outside], old[outside] + 1, err_msg=str(path))
        np.testing.assert_array_equal(leaf[2:5], old[2:5] if frozen else 0 * old[2:5])
    jax.tree.map(np.testing.assert_array_equal, emulator.ends(plugged), ends)


@pytest.mark.heavy
def test_last_layers_alone_are_an_adapter_of_a_range():
    """The stand-in's stack of zeros against the decoder's own way to adapt the top."""
    base = tiny_model(num_layers=4)
    model, params = adapted(num_layers=4)
    emulator = emulate(model, first=0, last=2, keep_every=1)
    ranged, _ = add_lora(base, jax.random.key(1), rank=2, alpha=4, layers=(2, 4))
    ends = emulator.ends(params)
    np.testing.assert_allclose(
        emulator.model.logits(emulator.spread(ends), TOKENS),
        ranged.logits(ends, TOKENS),
        atol=2e-5,
    )


def test_a_stand_in_of_codes_is_that_of_the_weights_they_stand_for():
    model = tiny_model(num_layers=4)
    coded = emulate(quantize_model(model, "int8"), first=1, last=1, keep_every=2).model
    np.testing.assert_array_equal(
        coded.logits({}, TOKENS),
        quantize_model(emulate(model, first=1, last=1, keep_every=2).model, "int8").logits(
            {}, TOKENS
        ),
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"first": 3, "last": 3}, "must leave a middle of the model's 6"),
        ({"last": 0}, "at least 1"),
        ({"first": -1}, "at least 0"),
        ({"keep_every": 0}, "keep_every must be at least 1, got 0"),
    ],
)
def test_layers_that_are_not_there_are_refused(given, told):
    fields = {"first": 1, "last": 1, "keep_every": 2, **given}
    with pytest.raises(ValueError, match=told):
        emulate(tiny_model(num_layers=6), **fields)


@pytest.mark.heavy
def test_what_does_not_fit_is_refused():
    model, params = adapted()
    emulator = emulate(model, first=1, last=1, keep_every=2)
    with pytest.raises(ValueError, match=r"use Emulator.ends"):
        emulator.spread(params)
    with pytest.raises(ValueError, match="the model that it was made from"):
        emulator.plug(tiny_model(num_layers=5), emulator.ends(params))
    ranged, _ = add_lora(
        tiny_model(num_layers=6), jax.random.key(1), rank=2, alpha=4, layers=(4, 6)
    )
    with pytest.raises(ValueError, match="leave `layers` out"):
        emulate(ranged, first=1, last=1, keep_every=2)
    with pytest.raises(ValueError, match="align before"):
        align(emulator, quantize_model(model, "int8"), BATCHES, tx=optax.sgd(1.0), num_steps=1)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_the_gap_is_that_of_the_whole_models(kind):
    """Run in two halves against the logits of whole models, with ends that were trained."""
    model, params = adapted(**KINDS[kind])
    emulator = emulate(model, first=1, last=2, keep_every=2)
    ends = emulator.ends(params)
    found = gap(emulator, model, BATCH, ends=ends)
    p, q = (
        np.asarray(jax.nn.log_softmax(m.logits(held, TOKENS)), np.float64)
        for m, held in (
            (model, emulator.plug(model, ends)),
            (emulator.model, emulator.spread(ends)),
        )
    )
    divergence = (np.exp(p) * (p - q)).sum(-1)[np.asarray(BATCH["loss_mask"])].mean()
    np.testing.assert_allclose(found.outputs, divergence, rtol=1e-3)
    assert found.activations > 0.01
    same = gap(emulate(model, first=1, last=2, keep_every=1), model, BATCH, ends=ends)
    np.testing.assert_allclose(same, 0, atol=1e-6)


@pytest.mark.heavy
def test_alignment_narrows_the_gap_and_touches_the_middle_alone():
    model = tiny_model(num_layers=6)
    emulator = emulate(model, first=1, last=1, keep_every=2)
    moved, losses = align(emulator, model, BATCHES, tx=optax.adam(3e-3), num_steps=30)
    assert losses[-1] < 0.5 * losses[0]
    before, after = (gap(e, model, BATCH, ends={}) for e in (emulator, moved))
    assert after.activations < before.activations
    assert after.outputs < before.outputs
    changed = jax.tree.map(
        lambda a, b: np.any(a != b, axis=tuple(range(1, a.ndim))).tolist(),
        *(e.model.variables["params"]["layers"] for e in (emulator, moved)),
    )
    kept = [False, True, True, False]
    assert all(
        leaf == kept for leaf in jax.tree.leaves(changed, is_leaf=lambda x: isinstance(x, list))
    )
    for name in ("embedding", "norm"):
        jax.tree.map(
            np.testing.assert_array_equal,
            emulator.model.variables["params"][name],
            moved.model.variables["params"][name],
        )


@pytest.mark.heavy
def test_a_stand_in_that_drops_nothing_is_aligned_already():
    model = tiny_model(num_layers=3)
    emulator = emulate(model, first=1, last=1, keep_every=1)
    moved, losses = align(emulator, model, BATCHES, tx=optax.sgd(0.1), num_steps=2)
    np.testing.assert_allclose(losses, 0, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        moved.model.variables["params"],
        emulator.model.variables["params"],
    )


@pytest.mark.heavy
def test_an_aligner_goes_on_from_round_to_round():
    model, params = add_lora(tiny_model(num_layers=4), jax.random.key(1), rank=2, alpha=4)
    emulator = emulate(model, first=0, last=1, keep_every=3)
    rule = {"tx": optax.sgd(0.1), "num_steps": 2}
    owner = aligner(emulator, model, params, BATCHES, **rule)
    ends = jax.tree.map(lambda x: x + 0.05, emulator.ends(params))
    start = owner.init()
    assert {len(leaf) for leaf in jax.tree.leaves(start)} == {1}
    far = gap(emulator, model, BATCH, ends=ends, middle=start)
    np.testing.assert_array_equal(far, gap(emulator, model, BATCH, ends=ends))
    middle = owner.update(ends, start, jnp.int32(0))
    near = gap(emulator, model, BATCH, ends=ends, middle=middle)
    assert near.activations + near.outputs < far.activations + far.outputs
    # the second round begins with the third batch: plain gradient descent does not tell
    once = aligner(emulator, model, params, BATCHES, tx=optax.sgd(0.1), num_steps=4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        owner.update(ends, middle, jnp.int32(1)),
        once.update(ends, start, jnp.int32(0)),
    )
