"""Access to a language model is enforced, not promised."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_post as fp
from algorithms import fed_avg
from fedjax_post import Access, AccessError
from fedjax_post.adapters.lora import add_lora
from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.views import init_model
from fedjax_post.objectives.sft import sft_loss

CONFIG = DecoderConfig(
    vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=2, num_heads=2,
    num_kv_heads=1, head_dim=4, max_positions=16,
)  # fmt: skip
TOKENS = jnp.arange(8).reshape(2, 4)


@pytest.fixture(scope="module")
def model():
    return init_model(CONFIG, jax.random.key(0))


@pytest.mark.parametrize("tier", [Access.LOGITS, Access.EMBEDDINGS])
def test_a_view_below_weights_shows_no_weight(model, tier):
    view = model.restrict(tier)
    assert jax.tree.leaves(view) == []
    np.testing.assert_array_equal(view.logits({}, TOKENS), model.logits({}, TOKENS))


def test_weights_are_arguments_of_the_compiled_program_not_constants(model):
    program = jax.jit(lambda m, t: m.restrict(Access.LOGITS).logits({}, t))
    assert program.lower(model, TOKENS).compile().memory_analysis().argument_size_in_bytes > sum(
        x.nbytes for x in jax.tree.leaves(model)
    )


@pytest.mark.parametrize("tier", [Access.LOGITS, Access.EMBEDDINGS, Access.WEIGHTS])
def test_differentiating_a_lesser_view_raises(model, tier):
    adapted, params = add_lora(model, jax.random.key(1), rank=2, alpha=4)
    view = adapted.restrict(tier)
    with pytest.raises(AccessError, match="needs GRADIENTS"):
        jax.grad(lambda p: view.logits(p, TOKENS).sum())(params)


def test_embeddings_are_not_part_of_logits_access(model):
    with pytest.raises(AccessError, match="needs EMBEDDINGS"):
        model.restrict(Access.LOGITS).embed({}, TOKENS)
    assert model.restrict(Access.EMBEDDINGS).embed({}, TOKENS).shape == (2, 4, 8)


def test_a_view_cannot_be_widened(model):
    with pytest.raises(AccessError, match="GRADIENTS was asked of a model that grants WEIGHTS"):
        model.restrict(Access.WEIGHTS).restrict(Access.GRADIENTS)


def test_an_algorithm_that_lies_about_its_needs_is_caught(model):
    adapted, params = add_lora(model, jax.random.key(1), rank=2, alpha=4)
    rows = {"tokens": np.ones((3, 4), np.int32), "loss_mask": np.ones((3, 4), bool)}
    clients = fp.ArrayClients([rows, rows], batch_size=2, local_steps=1)
    honest = fed_avg(sft_loss, optax.sgd(0.1))
    next(iter(fp.run(honest, adapted, clients, params=params, rounds=1)))
    liar = honest._replace(access={"target": Access.WEIGHTS})
    with pytest.raises(AccessError, match="needs GRADIENTS"):
        next(iter(fp.run(liar, adapted, clients, params=params, rounds=1)))
    with pytest.raises(AccessError, match="which grants LOGITS"):
        fp.run(honest, adapted.restrict(Access.LOGITS), clients, params=params, rounds=1)
