"""Laws of the built-in bases: each is a complete folder, and all have the same tokenizer."""

import tomllib
from pathlib import Path

import pytest

import fedjax_post
from fedjax_post.hub.files import BUILTIN, find_folder
from fedjax_post.hub.tokenizer import load_tokenizer

ROOT = Path(fedjax_post.__file__).parents[1]


@pytest.mark.parametrize("name", BUILTIN)
def test_a_builtin_base_is_a_whole_folder_with_a_card_that_says_how_it_was_made(name):
    folder = find_folder(name)
    assert (folder / "model.safetensors").stat().st_size < 2_000_000
    card = (folder / "README.md").read_text()
    command = f"python -m experiments.pretrain --output_dir=fedjax_post/hub/{folder.name}"
    assert command in card
    assert ("--corpus=instruct" in card) == (name != "builtin")
    assert ("--init=builtin" in card) == (name == "builtin-instruct")


@pytest.mark.parametrize("name", [name for name in BUILTIN if name != "builtin"])
def test_every_builtin_base_has_the_same_tokenizer(name):
    ours, base = load_tokenizer(name), load_tokenizer("builtin")
    assert ours.get_vocab() == base.get_vocab()
    assert ours.chat_template == base.chat_template
    text = "name the kind of the last word: cat hat pie\n"
    assert ours(text)["input_ids"] == base(text)["input_ids"]


def test_every_builtin_base_is_in_the_wheel():
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packed = tables["tool"]["setuptools"]["package-data"]["fedjax_post.hub"]
    assert {f"{folder}/*" for folder in BUILTIN.values()} <= set(packed)
