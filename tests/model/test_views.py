"""Laws of views: a tier refuses what it does not grant."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.core.access import Access, AccessError
from fedjax_post.model.views import merge_collections
from fedjax_post.testing.models import tiny_model

TOKENS = jnp.array([[1, 2, 3]])


def view(access):
    return dataclasses.replace(tiny_model(), access=access)


def test_text_grants_no_logits():
    with pytest.raises(AccessError, match="logits needs LOGITS"):
        view(Access.TEXT).logits({}, TOKENS)


def test_logits_grants_no_embeddings():
    with pytest.raises(AccessError, match="embed needs EMBEDDINGS"):
        view(Access.LOGITS).embed({}, TOKENS)


def test_weights_grants_no_gradients():
    model = view(Access.WEIGHTS)
    np.testing.assert_array_equal(model.logits({}, TOKENS), tiny_model().logits({}, TOKENS))
    with pytest.raises(AccessError, match="differentiating"):
        jax.grad(lambda p: model.logits({"params": p}, TOKENS).sum())(model.variables["params"])


def test_merging_puts_leaves_over_and_keeps_the_rest():
    frozen = {"a": {"x": 1, "y": 2}, "b": 3}
    assert merge_collections(frozen, {"a": {"x": 5}, "c": 6}) == {
        "a": {"x": 5, "y": 2},
        "b": 3,
        "c": 6,
    }
    assert frozen["a"]["x"] == 1


def test_a_model_is_a_pytree_with_a_static_config():
    model = tiny_model()
    leaves, tree = jax.tree.flatten(model)
    assert tree.unflatten(leaves).config == model.config
    assert all(hasattr(leaf, "shape") for leaf in leaves)
