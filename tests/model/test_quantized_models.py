"""Laws of a quantized base: its size, its error, and that adapters and residuals work on it."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from fedjax_post.adapters.lora import add_lora, linear_layers, lora_delta, merge_lora
from fedjax_post.hub import tensors, weights
from fedjax_post.hub.families import FAMILIES, read_config
from fedjax_post.hub.load import load_model, num_parameters, save_model
from fedjax_post.model.codes import NF4, decode, encode
from fedjax_post.model.quantize import dequantize_model, quantize_model
from fedjax_post.model.views import init_model
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.testing.models import seeded_tensors, tiny_config, tiny_model

TOKENS = jnp.array([[1, 2, 3, 4, 5, 6]])
SHAPES = {
    "llama": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
    },
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32},
}
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.53), ("nf4", 0.29)])
def test_codes_are_small(kind, share):
    kernel = jax.random.normal(jax.random.key(0), (2, 256, 32))
    codes, scales = encode(kernel, kind)
    assert codes.nbytes + scales.nbytes <= share * 2 * kernel.size


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.5 / 127), ("nf4", 0.152)])
def test_decoded_weights_are_near(kind, bound):
    """Half the widest gap between codes, plus the bfloat16 rounding of the scale."""
    kernel = jax.random.normal(jax.random.key(0), (128, 32))
    top = np.abs(kernel).reshape(2, 64, 32).max(axis=1).repeat(64, axis=0)
    error = np.abs(decode(*encode(kernel, kind), "float32") - kernel)
    assert (error <= (bound + 2**-8) * top).all()


def test_nf4_code_points_are_exact():
    column = jnp.asarray(np.tile(NF4, 4))[:, None] * 3
    np.testing.assert_allclose(decode(*encode(column, "nf4"), "float32"), column, rtol=1e-6)


def test_zeros_stay_zero():
    for kind in ("int8", "nf4"):
        assert not np.any(decode(*encode(jnp.zeros((6, 2)), kind), "float32"))


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantized_model_is_the_model_of_its_decoded_weights(kind):
    base = tiny_model(**WIDE)
    model = quantize_model(base, kind)
    assert linear_layers(model) == linear_layers(base)
    assert num_parameters(model) == num_parameters(base)
    np.testing.assert_allclose(
        model.logits({}, TOKENS), dequantize_model(model).logits({}, TOKENS), atol=1e-5
    )


@pytest.mark.heavy
def test_adapters_train_and_fold_on_codes():
    model, params = add_lora(
        quantize_model(tiny_model(**WIDE), "nf4"), jax.random.key(0), rank=2, alpha=4
    )
    params = jax.tree.map(lambda leaf: leaf + 0.05, params)
    expected = model.logits(params, TOKENS)
    residual = {"residual": lora_delta(model, params)}
    np.testing.assert_allclose(model.logits(residual, TOKENS), expected, atol=1e-5)
    merged = merge_lora(model, params)
    np.testing.assert_allclose(merged.logits({}, TOKENS), expected, atol=1e-5)
    batch = {"tokens": TOKENS, "loss_mask": jnp.ones(TOKENS.shape, bool)}
    plain = dequantize_model(model)
    grad = jax.jit(jax.grad(lambda p, m: sft_loss(p, m, batch, None)[0]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        grad(params, model),
        grad(params, plain),
    )


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_quantizing_while_loading_is_quantizing_what_was_loaded(
    tmp_path, monkeypatch, kind, dtype, family
):
    """In strips that do not divide a layer, stored transposed or not."""
    monkeypatch.setattr(tensors, "STRIP", 1000)
    raw = {"model_type": family, "vocab_size": 32, **SHAPES[family]}
    shapes = weights.expected_tensors(FAMILIES[family], read_config(raw))
    save_file(seeded_tensors(shapes, 0), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    streamed = load_model(tmp_path, dtype=dtype, quantize=kind)
    whole = quantize_model(load_model(tmp_path, dtype=dtype), kind)
    assert streamed.config == whole.config
    jax.tree.map(np.testing.assert_array_equal, streamed.variables, whole.variables)


def test_peak_memory_of_quantized_loading_is_the_codes(tmp_path):
    """Numpy's memory: 5 MB of codes of 38 MB of float32, of which a layer is 5 MB."""
    config = tiny_config(hidden_size=256, intermediate_size=1024, num_layers=8, head_dim=64)
    like = jax.eval_shape(lambda: init_model(config, jax.random.key(0)))
    save_model(tmp_path, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like))
    load_model(tmp_path, quantize="nf4")  # traces are not counted
    tracemalloc.start()
    model = load_model(tmp_path, quantize="nf4")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.variables))
    layer = num_parameters(model) * 4 / 8
    assert size > 2**22
    assert peak < 1.2 * size + layer


def test_real_checkpoint_keeps_its_predictions(test_data):
    folder = test_data / "models" / "stories260K"
    model, golden = load_model(folder), np.load(folder / "golden.npz")
    for kind, agreement in (("int8", 0.97), ("nf4", 0.7)):
        logits = quantize_model(model, kind).logits({}, golden["ids_1"][None])[0]
        same = np.argmax(logits, -1) == np.argmax(golden["logits_1"], -1)
        assert same.mean() >= agreement, kind


def test_bad_quantization_is_refused():
    with pytest.raises(ValueError, match="must be one of .*got 'int3'"):
        quantize_model(tiny_model(), "int3")
    with pytest.raises(ValueError, match="already quantized"):
        quantize_model(quantize_model(tiny_model(), "int8"), "nf4")
    assert quantize_model(tiny_model(remat=False), "int8").config.remat
    with pytest.raises(ValueError, match="nf4 packs pairs"):
        encode(jnp.zeros((3, 2)), "nf4")
    model = tiny_model()
    with pytest.raises(ValueError, match="which are quantized"):
        quantize_model(model, "int8").logits({"params": model.variables["params"]}, TOKENS)
