"""What was trained is the same when it is read back from files."""

import dataclasses

import jax
import numpy as np
import pytest

from fedjax_post.adapters.lora import add_lora, lora_delta
from fedjax_post.adapters.prompt import add_soft_prompt, text_prompt
from fedjax_post.hub import artefact
from fedjax_post.hub.load import save_model
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
