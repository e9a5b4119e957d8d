"""A folder with an adapter is served as it was trained."""

import shutil

import jax
import pytest

from fedjax_post.adapters import add_lora
from fedjax_post.hub import load_model, save_adapter
from fedjax_post.study import Spec, evaluate, serve
from fedjax_post.study.files import write_spec
from fedjax_post.study.folder import write_json
from fedjax_post.study.served import prompt_ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter")
    model, params = add_lora(load_model("builtin-small"), jax.random.key(0), rank=1, alpha=1.0)
    save_adapter(path, model, params, base_name="builtin-small")
    return path


@pytest.mark.heavy
def test_a_question_is_put_into_the_template_of_the_folder(folder):
    """What peft's users do with `prompt_template.txt` by hand is done here by itself."""
    question = [{"role": "user", "content": "fig plum"}]
    asked = lambda changes: (found := serve(folder, changes)).tokenizer.decode(
        prompt_ids(found, question)
    )
    without = asked({})
    (folder / "prompt_template.txt").write_text("{prompt} in order:", encoding="utf-8")
    assert asked({}).endswith("fig plum in order:")
    assert not without.endswith("in order:")
    assert asked({"data.template": "{prompt} by kind:"}).endswith("fig plum by kind:")


@pytest.mark.heavy
def test_code_that_a_run_names_is_not_run_to_use_or_score_it(folder, tiny_rows, tmp_path):
    spec = Spec(method="no_such:code").put(
        {
            "model.name": "builtin-small",
            "model.dtype": "float32",
            "data.source": str(tiny_rows),
            "data.labels": ("cat", "dog", "hen", "pig", "cow"),
            "data.heldout_fraction": 0.25,
        }
    )
    shutil.copytree(folder, tmp_path / "adapter")
    write_spec(tmp_path / "spec.json", spec)
    write_json(tmp_path / "summary.json", {"inference": None, "access": "GRADIENTS"})
    assert serve(tmp_path).use is None
    assert "accuracy" in evaluate(tmp_path, {"scoring.examples": 4}).scores


def test_the_address_of_a_provider_that_would_not_be_asked_is_refused(folder, tiny_folder):
    for what in (folder, tiny_folder):
        with pytest.raises(ValueError, match="hosting.url=http.* would not be asked: .*leave it"):
            serve(what, {"hosting.url": "http://localhost:9/v1"})
        assert serve(what, {"hosting.url": None}).use is None
