"""Laws of the decoder: parity with golden numbers, causality, packing, shared base."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.adapters.lora import add_lora
from fedjax_post.hub.load import load_model
from fedjax_post.model import decoder
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.testing.models import tiny_config, tiny_model

CHECKPOINTS = ["stories260K", "llama2xs-280K", "babyllama-tok105"]


def random_tokens(seed, *shape):
    return jax.random.randint(jax.random.key(seed), shape, 0, 32)


def random_lora(model, seed=1, rank=3):
    """An adapter whose B is not zero."""
    model, params = add_lora(model, jax.random.key(seed), rank=rank, alpha=2 * rank)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    leaves = [
        0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)
    ]
    return model, tree.unflatten(leaves)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_equal_golden(test_data, name):
    folder = test_data / "models" / name
    model, golden = load_model(folder), np.load(folder / "golden.npz")
    for i in range(3):
        logits = model.logits({}, golden[f"ids_{i}"][None])[0]
        np.testing.assert_allclose(logits, golden[f"logits_{i}"], atol=1e-4)


def test_no_token_sees_a_later_one():
    model = tiny_model()
    embeddings = model.embed({}, random_tokens(0, 1, 6))
    position = 2

    def logit(x):
        return model.embed_logits({}, x)[0, position].sum()

    reach = np.abs(jax.jit(jax.grad(logit))(embeddings)[0]).sum(-1)
    assert (reach[: position + 1] > 0).all()
    assert (reach[position + 1 :] == 0).all()


def test_packed_equals_unpacked():
    model = tiny_model()
    first, second = random_tokens(1, 1, 5), random_tokens(2, 1, 7)
    packed = jnp.concatenate([first, second], axis=1)
    segments = jnp.array([[1] * 5 + [2] * 7])
    logits = model.logits({}, packed, segments=segments)
    np.testing.assert_allclose(logits[:, :5], model.logits({}, first), atol=1e-5)
    np.testing.assert_allclose(logits[:, 5:], model.logits({}, second), atol=1e-5)


def test_padding_changes_nothing():
    model = tiny_model()
    tokens = random_tokens(3, 1, 5)
    alone = model.logits({}, tokens)
    padded = jnp.concatenate([jnp.zeros((1, 3), jnp.int32), tokens, tokens[:, :2]], axis=1)
    segments = jnp.array([[0] * 3 + [1] * 5 + [0] * 2])
    logits = model.logits({}, padded, segments=segments)
    np.testing.assert_allclose(logits[:, 3:8], alone, atol=1e-5)


def test_vmapped_clients_equal_a_loop():
    model, _ = random_lora(tiny_model())
    adapters = [random_lora(tiny_model(), seed=s)[1] for s in range(3)]
    tokens = random_tokens(4, 3, 2, 6)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)
    together = jax.jit(jax.vmap(model.logits))(stacked, tokens)
    for i, adapter in enumerate(adapters):
        np.testing.assert_allclose(together[i], model.logits(adapter, tokens[i]), atol=1e-5)


def test_embeddings_give_the_logits_of_their_tokens():
    model = tiny_model(embedding_scale=4.0)
    tokens = random_tokens(5, 2, 6)
    embedded = model.embed_logits({}, model.embed({}, tokens))
    np.testing.assert_allclose(embedded, model.logits({}, tokens), atol=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize(("strip", "length"), [(2, 8), (4, 9), (100, 10)])
def test_scores_in_strips_equal_whole_logits(monkeypatch, strip, length):
    """The strip is read while tracing, so that each case has a shape that no other test has."""
    monkeypatch.setattr("fedjax_post.model.decoder.STRIP", strip * 31)
    tokens = random_tokens(11, 2, length) % 31

    def score(params, model):
        return model.scores(params, tokens).log_probs.sum()

    model, params = random_lora(tiny_model(vocab_size=31))
    logits = model.logits(params, tokens)[:, :-1]
    whole = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1)[..., 0]
    scores = model.scores(params, tokens)
    np.testing.assert_allclose(scores.log_probs, whole, atol=1e-5)
    np.testing.assert_array_equal(scores.is_most_likely, jnp.argmax(logits, -1) == tokens[:, 1:])
    grads = jax.jit(jax.grad(score))(params, model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    if strip < 100:
        text = jax.jit(score).lower(params, model).as_text()
        assert f"2x{length - 1}x31xf32" not in text


def test_weights_in_params_override_the_frozen_ones():
    model, other = tiny_model(), tiny_model(seed=9)
    tokens = random_tokens(6, 1, 4)
    swapped = model.logits({"params": other.variables["params"]}, tokens)
    np.testing.assert_array_equal(swapped, other.logits({}, tokens))
    part = {"params": {"norm": {"scale": jnp.zeros(16)}}}
    assert not np.any(model.logits(part, tokens))


def test_dropout_needs_a_key():
    base, tokens = tiny_model(), random_tokens(7, 1, 6)
    model, params = random_lora(base)
    dropped = add_lora(base, jax.random.key(1), rank=3, alpha=6, dropout=0.5)[0]
    plain = model.logits(params, tokens)
    np.testing.assert_array_equal(dropped.logits(params, tokens), plain)
    one, same, other = (dropped.logits(params, tokens, key=jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - plain).max() > 1e-3
    assert np.abs(one - other).max() > 1e-3


def test_residual_is_added_to_the_base():
    model, tokens = tiny_model(), random_tokens(8, 1, 6)
    kernel = model.variables["params"]["layers"]["mlp"]["up_proj"]["kernel"]
    extra = 0.1 * jax.random.normal(jax.random.key(0), kernel.shape)
    residual = {"residual": {"layers": {"mlp": {"up_proj": {"kernel": extra}}}}}
    summed = {"params": {"layers": {"mlp": {"up_proj": {"kernel": kernel + extra}}}}}
    np.testing.assert_allclose(
        model.logits(residual, tokens), model.logits(summed, tokens), atol=1e-5
    )


def test_bfloat16_is_close_to_float32():
    model, tokens = tiny_model(), random_tokens(9, 1, 6)
    weights = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.variables)
    low = type(model)(weights, tiny_config(dtype="bfloat16"))
    logits = low.logits({}, tokens)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, model.logits({}, tokens), atol=0.15)


@pytest.mark.heavy
def test_recomputing_layers_changes_no_gradient():
    tokens = random_tokens(10, 2, 6)
    batch = {"tokens": tokens, "loss_mask": jnp.ones((2, 6), bool)}
    grads = []
    for remat in (True, False):
        model, params = random_lora(tiny_model(remat=remat))
        grad = jax.jit(jax.grad(lambda p, m: sft_loss(p, m, batch, None)[0]))
        grads.append(grad(params, model))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *grads)


@pytest.mark.heavy
def test_layers_one_by_one_equal_layers_in_a_loop(monkeypatch):
    tokens = random_tokens(11, 2, 6)
    batch = {"tokens": tokens, "loss_mask": jnp.ones((2, 6), bool)}
    model, params = random_lora(tiny_model())
    grad = lambda p, m: jax.grad(lambda p: sft_loss(p, m, batch, None)[0])(p)
    loops, grads = [], []
    for most in (decoder.UNROLLED, 0):
        monkeypatch.setattr(decoder, "UNROLLED", most)
        jax.clear_caches()
        lowered = jax.jit(grad).lower(params, model)
        loops.append(lowered.as_text().count("stablehlo.while"))
        grads.append(lowered.compile()(params, model))
    assert loops[1] == loops[0] + 2  # one forward, one backward
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *grads)


def test_learned_positions_do_not_reach_further():
    model = tiny_model(learned_positions=True, rope=None, max_positions=8)
    assert np.isfinite(model.logits({}, random_tokens(0, 1, 8))).all()
    with pytest.raises(ValueError, match="9 tokens exceed the 8 learned positions"):
        model.logits({}, random_tokens(0, 1, 9))


@pytest.mark.heavy
def test_program_does_not_grow_with_depth():
    """Layers are scanned, so that 24 of them compile as fast as 12."""
    sizes = []
    for depth in (12, 24):
        model, params = add_lora(tiny_model(num_layers=depth), jax.random.key(0), rank=1, alpha=1)
        batch = {"tokens": random_tokens(0, 1, 4), "loss_mask": jnp.ones((1, 4), bool)}
        grad = jax.jit(jax.grad(lambda p, m, b: sft_loss(p, m, b, None)[0]))
        sizes.append(len(grad.lower(params, model, batch).as_text().splitlines()))
    assert sizes[1] < 1.05 * sizes[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_kv_heads": 3}, "multiple of num_kv_heads=3"),
        ({"norm": "batch"}, "norm must be one of"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"sliding_layers": (0,)}, "sliding_window"),
    ],
)
def test_contradicting_configs_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        tiny_config(**changes)
