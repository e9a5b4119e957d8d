"""What was trained is the same when it is read back from files."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_post.adapters.lora import add_lora, lora_delta
from fedjax_post.adapters.prompt import add_soft_prompt, text_prompt
from fedjax_post.hub import artefact
from fedjax_post.hub.files import fingerprint
from fedjax_post.hub.load import load_model, save_model
from fedjax_post.hub.tokenizer import load_tokenizer
from fedjax_post.testing.models import tiny_model

TOKENS = jax.random.randint(jax.random.key(9), (2, 7), 3, 32)
WORDS = text_prompt([5, 6])


def lora(model):
    model, params = add_lora(model, jax.random.key(1), rank=2, alpha=4)
    return model, jax.tree.map(lambda leaf: leaf + 0.1, params)


def folded(model):
    """A model whose base a server changed, and nothing to merge over it."""
    adapted, params = lora(model)
    variables = {**model.variables, "residual": lora_delta(adapted, params)}
    return dataclasses.replace(model, variables=variables), {}


def trained(model):
    return model, {"params": jax.tree.map(lambda leaf: leaf + 0.1, model.variables["params"])}


def with_words(make):
    def made(model):
        model, params = make(model)
        return model, params | WORDS

    return made


MADE = {
    "factors": lora,
    "weights": trained,
    "folds": folded,
    "words": lambda model: (model, WORDS),
    "soft": lambda model: (model, add_soft_prompt(model, jax.random.key(2), length=2)),
    "factors and words": with_words(lora),
    "weights and words": with_words(trained),
    "nothing": lambda model: (model, {}),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_read_back_answers_as_what_was_written(name, tmp_path):
    base, directory = tmp_path / "base", tmp_path / "made"
    save_model(base, tiny_model())
    model, params = MADE[name](tiny_model())
    derived = artefact.write(directory, model, params, base=str(base))
    assert derived == (name not in ("words", "soft", "nothing"))
    again = artefact.read(directory, base=str(base))
    np.testing.assert_allclose(
        again[0].logits(again[1], TOKENS), model.logits(params, TOKENS), atol=1e-5
    )


@pytest.mark.parametrize("name", MADE)
def test_a_base_is_read_in_codes_and_written_weights_as_they_are(name, tmp_path):
    base, directory = tmp_path / "base", tmp_path / "made"
    save_model(base, tiny_model())
    model, params = MADE[name](tiny_model())
    artefact.write(directory, model, params, base=str(base))
    if not artefact.has_weights(directory):
        model, params = MADE[name](load_model(base, quantize="nf4"))
    again = artefact.read(directory, base=str(base), quantize="nf4")
    np.testing.assert_allclose(
        again[0].logits(again[1], TOKENS), model.logits(params, TOKENS), atol=1e-5
    )


@pytest.fixture
def about():
    return artefact.About(
        tokenizer=load_tokenizer("builtin"),
        example="say it\n",
        template="{prompt}\n",
        facts=(("method", "fed_avg"), ("seed", "0")),
    )


@pytest.mark.parametrize("made", [lora, trained])
def test_a_folder_can_be_used_by_itself(made, tmp_path, about):
    """Its tokenizer, an example, the format of prompts and a card; and where text ends."""
    save_model(tmp_path / "base", tiny_model())
    artefact.write(tmp_path / "made", *made(tiny_model()), base=str(tmp_path / "base"), about=about)
    again = load_tokenizer(tmp_path / "made")
    assert again.chat_template == about.tokenizer.chat_template
    assert again("cat hat")["input_ids"] == about.tokenizer("cat hat")["input_ids"]
    assert (tmp_path / "made" / "example_prompt.txt").read_text() == "say it\n"
    assert (tmp_path / "made" / "prompt_template.txt").read_text() == "{prompt}\n"
    card = (tmp_path / "made" / "README.md").read_text()
    for told in ("research artefact", "| method | fed_avg |", fingerprint(tmp_path / "base")):
        assert told in card
    if made is trained:
        ends = json.loads((tmp_path / "made" / "generation_config.json").read_text())
        assert ends["eos_token_id"] == about.tokenizer.eos_token_id
        load_model(tmp_path / "made")


@pytest.mark.parametrize("made", [lora, trained])
def test_the_card_says_how_the_base_was_loaded(made, tmp_path, about):
    """What it says to run gives the model that was scored."""
    save_model(tmp_path / "base", tiny_model())
    model = load_model(tmp_path / "base", quantize="nf4") if made is lora else tiny_model()
    about = about._replace(dtype="mixed", quantize="nf4")
    artefact.write(tmp_path / "made", *made(model), base=str(tmp_path / "base"), about=about)
    card = (tmp_path / "made" / "README.md").read_text()
    assert "| layers of the base | rounded to nf4 in training and scores |" in card
    (call,) = re.findall(r"artefact\.read\(.*\)", card)
    call = call.replace("this folder", str(tmp_path / "made"))
    read, _ = eval(call, {"artefact": artefact, "Path": Path})
    assert read.config.dtype == "mixed"
    assert ("quantized" in read.variables) == (made is lora)


@pytest.mark.parametrize("made", [lora, trained])
def test_equal_runs_write_equal_bytes(made, tmp_path, about):
    """Wherever the folder lies, and whatever the tokenizer was last used for."""
    for name in ("one", "other"):
        artefact.write(tmp_path / name, *made(tiny_model()), base="org/base", about=about)
        about.tokenizer(["cat", "cat hat pie"], padding=True)
    left, right = (sorted((tmp_path / name).iterdir()) for name in ("one", "other"))
    assert [path.name for path in left] == [path.name for path in right]
    for path, same in zip(left, right, strict=True):
        assert path.read_bytes() == same.read_bytes(), path.name
        assert str(tmp_path).encode() not in path.read_bytes()
    assert len({path.stat().st_mode for path in left}) == 1


def test_the_card_names_what_is_known_of_a_published_base(tmp_path, about):
    for base, told in (
        ("openai-community/gpt2", "base_model: openai-community/gpt2\n"),
        ("openai-community/gpt2", "| licence of the base | Modified MIT License (source: "),
        ("somebody/else", "| licence of the base | not known |"),
        ("builtin", "| licence of the base | Apache-2.0 (source: "),
    ):
        artefact.write(tmp_path / "made", tiny_model(), WORDS, base=base, about=about)
        assert told in (tmp_path / "made" / "README.md").read_text()


@pytest.mark.oracle
def test_the_folders_load_in_the_libraries_that_own_their_formats(tmp_path, about):
    """By peft alone too: the adapter's configuration names where its base is."""
    import torch
    import transformers
    from peft import AutoPeftModelForCausalLM, PeftModel

    theirs = lambda model: model.eval()(torch.tensor(np.asarray(TOKENS))).logits.detach().numpy()
    base = str(tmp_path / "base")
    whole = tiny_model(vocab_size=len(about.tokenizer))  # peft makes a base fit a tokenizer
    save_model(base, whole)
    for made in (lora, trained):
        folder = tmp_path / made.__name__
        model, params = made(whole)
        artefact.write(folder, model, params, base=base, about=about)
        expected = model.logits(params, TOKENS)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        chat = [{"role": "user", "content": "cat"}]
        render = lambda t, chat=chat: t.apply_chat_template(chat, tokenize=False)
        assert render(tokenizer) == render(about.tokenizer)
        if made is lora:
            plain = transformers.AutoModelForCausalLM.from_pretrained(base)
            loaded = PeftModel.from_pretrained(plain, folder)
            alone = AutoPeftModelForCausalLM.from_pretrained(folder)
            np.testing.assert_allclose(theirs(alone), expected, atol=1e-4)
        else:
            loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
            assert loaded.generation_config.eos_token_id == about.tokenizer.eos_token_id
        np.testing.assert_allclose(theirs(loaded), expected, atol=1e-4)
