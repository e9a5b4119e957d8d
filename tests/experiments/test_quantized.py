"""Laws of runs on a quantized base: they train, record the quantization, and export."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.hub.load import load_model
from fedjax_post.hub.peft import load_adapter
from fedjax_post.model.quantize import quantize_model

GIVEN = "--quantize=nf4", "--dtype=bfloat16", "--eval_every=0", "--exact_match=off"
TOKENS = jnp.array([[1, 2, 3, 4]])


def losses(run):
    summary = json.loads((run / "summary.json").read_text())
    return summary["base"]["loss"], summary["final"]["loss"]


@pytest.mark.heavy
def test_an_adapter_trains_on_codes_and_leaves_for_peft(call, tiny_folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert call(*GIVEN, "--num_rounds=2") == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if "weights in" in line)
    assert "weights in bfloat16, the layers' in nf4 (" in said
    assert json.loads((run / "spec.json").read_text())["model"]["quantize"] == "nf4"
    before, after = losses(run)
    assert after < before - 0.01
    base = load_model(tiny_folder)
    model, params = load_adapter(run / "adapter", base)
    assert jnp.abs(model.logits(params, TOKENS) - base.logits({}, TOKENS)).max() > 0
    _, same = load_adapter(run / "adapter", quantize_model(base, "nf4"))
    jax.tree.map(np.testing.assert_array_equal, params, same)


@pytest.mark.heavy
@pytest.mark.parametrize("algorithm", ["flora", "fed_ex_lora"])
def test_adapters_fold_into_codes_as_a_residual(call, tmp_path, algorithm):
    assert call(*GIVEN, f"--algorithm={algorithm}", "--num_rounds=2") == 0
    before, after = losses(tmp_path / "run")
    assert after < before - 0.01
    merged = load_model(tmp_path / "run" / "adapter", dtype="bfloat16")
    assert jnp.isfinite(merged.logits({}, TOKENS)).all()
