"""A base is quantized where a run's model is used again, as it was in training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post import study
from fedjax_post.adapters import add_lora
from fedjax_post.hub import save_adapter
from fedjax_post.hub.load import load_model, save_model
from fedjax_post.hub.tokenizer import load_tokenizer
from fedjax_post.study import Adapter, Data, Model, Scoring, Spec, Training, tasks
from fedjax_post.study.evaluate import evaluate
from fedjax_post.study.faults import Settings
from fedjax_post.study.files import write_spec
from fedjax_post.study.served import serve

TOKENS = jnp.array([[1, 2, 3, 4]])
NF4 = {"model.quantize": "nf4"}


def spec_of(model, rows, **changes):
    base = Spec(
        model=Model(str(model), dtype="float32"),
        data=Data(str(rows), heldout_fraction=0.25),
        adapter=Adapter(rank=2),
        training=Training(rounds=2, cohort_size=2, batch_size=2),
        scoring=Scoring(every=0, exact_match="off"),
    )
    return base.put(changes)


def begin(directory, spec):
    """A run's folder with its specification and an empty folder of its adapter."""
    (directory / "adapter").mkdir(parents=True)
    write_spec(directory / study.folder.SPEC, spec)
    return directory / "adapter"


def logits_of(served):
    return np.asarray(served.model.logits(served.params, TOKENS))


def test_a_base_is_served_in_the_codes_that_are_asked_for(tiny_folder):
    plain = load_model(tiny_folder).logits({}, TOKENS)
    for kind in ("int8", "nf4"):
        changes = {"model.quantize": kind, "model.dtype": "float32"}
        found = logits_of(serve(tiny_folder, changes))
        expected = load_model(tiny_folder, quantize=kind).logits({}, TOKENS)
        np.testing.assert_array_equal(found, expected)
        assert np.abs(found - plain).max() > 0


def test_an_adapter_is_served_on_codes(tiny_folder, tmp_path):
    base = load_model(tiny_folder)
    model, params = add_lora(base, jax.random.key(0), rank=2, alpha=2.0)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    save_adapter(tmp_path, model, params, base_name=str(tiny_folder))
    coded, _ = add_lora(
        load_model(tiny_folder, quantize="nf4"), jax.random.key(0), rank=2, alpha=2.0
    )
    found = logits_of(serve(tmp_path, {**NF4, "model.dtype": "float32"}))
    np.testing.assert_allclose(found, coded.logits(params, TOKENS), atol=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("algorithm", ["fed_avg", "fed_ex_lora"])
def test_a_run_on_codes_is_scored_as_its_summary_says(algorithm, tiny_folder, tiny_rows, tmp_path):
    """Also where whole weights were written, which hold the codes' values and are not coded."""
    spec = spec_of(tiny_folder, tiny_rows, **NF4, **{"method.name": algorithm})
    study.carry_out(study.prepare(spec, directory=tmp_path), command=["test"])
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert ('quantize="nf4"' in card) == (algorithm == "fed_avg")
    found, final = evaluate(tmp_path).scores, study.read(tmp_path).summary["final"]
    assert found["loss"] == pytest.approx(final["loss"], abs=1e-5)
    other = evaluate(tmp_path, {"model.quantize": "none"}).scores["loss"]
    assert (abs(other - final["loss"]) > 1e-4) == (algorithm == "fed_avg")


@pytest.mark.heavy
def test_a_drill_reads_back_what_was_trained_on_codes(tiny_folder, tiny_rows, tmp_path):
    spec, settings = spec_of(tiny_folder, tiny_rows, **NF4), Settings(measure="loss")
    given = {"chosen": ["artefact"], "settings": settings, "directory": tmp_path, "show": str}
    (row,) = study.drills([spec], **given).rows
    assert row["after"][0] == pytest.approx(row["before"][0], abs=1e-5)


def test_whole_weights_are_not_coded_again(tiny_folder, tiny_rows, tmp_path):
    spec = spec_of(tiny_folder, tiny_rows)
    save_model(begin(tmp_path / "plain", spec), load_model(tiny_folder))
    save_model(begin(tmp_path / "coded", spec.put(NF4)), load_model(tiny_folder))
    for served in (serve(tmp_path / "plain"), serve(tmp_path / "coded", NF4)):
        assert "quantized" not in served.model.variables
    load_tokenizer(tiny_folder).save_pretrained(tmp_path / "plain" / "adapter")
    with pytest.raises(ValueError, match="quantize=nf4 is for a base, and .* holds whole weights"):
        serve(tmp_path / "plain", NF4)
    assert "quantized" in serve(tmp_path / "plain" / "adapter", NF4).model.variables  # the remedy


def test_a_proxy_is_served_uncoded_as_it_was_trained(tiny_folder, tiny_rows, tmp_path):
    spec = spec_of(tiny_folder, tiny_rows, **{"model.proxy": str(tiny_folder)})
    model, params = add_lora(load_model(tiny_folder), jax.random.key(0), rank=2, alpha=2.0)
    for name, own in (("plain", spec), ("coded", spec.put(NF4))):
        save_adapter(begin(tmp_path / name, own), model, params, base_name=str(tiny_folder))
    assert "quantized" not in serve(tmp_path / "coded").model.variables
    with pytest.raises(ValueError, match="quantize=nf4 is for the target"):
        serve(tmp_path / "plain", NF4)


def test_scores_on_tasks_name_the_codes(tiny_folder, monkeypatch):
    monkeypatch.setattr(tasks, "load_tasks", lambda *_, **__: ())
    monkeypatch.setattr(tasks, "run_tasks", lambda *_, **__: {"results": {}})
    for changes, kind in (({}, "none"), (NF4, "nf4")):
        assert tasks.evaluate_tasks(tiny_folder, [], changes).record["quantize"] == kind
