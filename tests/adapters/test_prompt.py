"""Laws of prompts as trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.adapters.prompt import add_soft_prompt, text_prompt
from fedjax_post.testing.models import tiny_model


def test_a_soft_prompt_starts_as_tokens_of_the_vocabulary():
    model = tiny_model(embedding_scale=3.0)
    prompt = add_soft_prompt(model, jax.random.key(0), length=5)["prompt"]["embeddings"]
    assert prompt.shape == (5, 16)
    assert prompt.dtype == jnp.float32
    vocabulary = model.embed({}, jnp.arange(32)[None])[0]
    distance = jnp.abs(prompt[:, None] - vocabulary[None]).max(axis=-1)
    assert (distance.min(axis=1) == 0).all()
    other = add_soft_prompt(model, jax.random.key(1), length=5)["prompt"]["embeddings"]
    assert not np.array_equal(prompt, other)


@pytest.mark.parametrize("length", [0, 64])
def test_a_length_without_room_is_refused(length):
    with pytest.raises(ValueError, match="`prompt_length`"):
        add_soft_prompt(tiny_model(), jax.random.key(0), length=length)


def test_a_text_prompt_holds_its_tokens():
    tokens = text_prompt([3, 1, 2])["prompt"]["tokens"]
    np.testing.assert_array_equal(tokens, [3, 1, 2])
    assert tokens.dtype == jnp.int32
    for wrong in ([[1]], [-1]):
        with pytest.raises(ValueError, match="token ids"):
            text_prompt(wrong)
