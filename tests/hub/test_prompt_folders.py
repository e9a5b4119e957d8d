"""A prompt read from its folder equals the one that was written."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.adapters.lora import merge_lora
from fedjax_post.adapters.prompt import add_soft_prompt, text_prompt
from fedjax_post.hub.load import save_model
from fedjax_post.hub.prompt import load_prompt, save_prompt
from fedjax_post.testing.models import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(bos_id=1)


def test_prompts_come_back(model, tmp_path):
    soft = add_soft_prompt(model, jax.random.key(0), length=3)
    for name, params in (("soft", soft), ("text", text_prompt([4, 9, 2]))):
        save_prompt(tmp_path / name, model, params, text="a b c", base_name="base", run="here")
        found = load_prompt(tmp_path / name, model)
        assert jax.tree.structure(found) == jax.tree.structure(params)
        np.testing.assert_array_equal(*map(jax.tree.leaves, (found, params)))
    said = json.loads((tmp_path / "text" / "prompt.json").read_text())
    assert said == {"tokens": [4, 9, 2], "text": "a b c", "base": "base", "run": "here"}


def test_what_is_no_prompt_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"got the collections \['lora', 'prompt'\]"):
        save_prompt(tmp_path, model, {**text_prompt([1]), "lora": {}})
    with pytest.raises(ValueError, match="holds only a prompt"):
        save_prompt(tmp_path, model, text_prompt([]))
    with pytest.raises(FileNotFoundError, match=r"neither prompt\.json nor adapter_config"):
        load_prompt(tmp_path, model)


@pytest.mark.heavy
def test_a_prompt_of_another_model_is_refused(model, tmp_path):
    save_prompt(tmp_path / "text", model, text_prompt([31]))
    with pytest.raises(ValueError, match="token 31 is not among the model's 30"):
        load_prompt(tmp_path / "text", tiny_model(vocab_size=30))
    soft = {"prompt": {"embeddings": jnp.ones((2, 16))}}
    save_prompt(tmp_path / "soft", model, soft)
    with pytest.raises(ValueError, match="do not fit the model's width of 32"):
        load_prompt(tmp_path / "soft", tiny_model(hidden_size=32))
    path = tmp_path / "soft" / "adapter_config.json"
    path.write_text(path.read_text().replace("PROMPT_TUNING", "LORA"))
    with pytest.raises(ValueError, match="'LORA' is not prompt tuning"):
        load_prompt(tmp_path / "soft", model)


def test_merging_keeps_a_prompt_and_a_model_folder_refuses_it(model, tmp_path):
    """A folder of weights has no place for a prompt, and would lose it without a word."""
    tokens = jnp.array([[1, 5, 9]])
    params = text_prompt([4, 9, 2])
    merged = merge_lora(model, params)
    np.testing.assert_array_equal(merged.logits({}, tokens), model.logits(params, tokens))
    with pytest.raises(ValueError, match="write it with save_prompt"):
        save_model(tmp_path, model, params=params)
