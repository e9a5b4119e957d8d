"""A client's own model can be evaluated and exported, for every algorithm that has one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_composition import LANES, federation

from fedjax_post import algorithms
from fedjax_post.adapters.lora import add_lora, merge_lora
from fedjax_post.core import engine
from fedjax_post.hub.peft import load_adapter, save_adapter
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.testing import toy, toy_lora
from fedjax_post.testing.models import tiny_model

SGD = optax.sgd(0.05)


def over(factory, world, **options):
    return factory(world.toy_loss, SGD, **options), world


def ditto(factory, world, **options):
    base, _ = over(factory, world, **options)
    return algorithms.ditto(base, world.toy_loss, client_tx=SGD), world


PERSONAL = {
    "ditto": ditto(algorithms.fed_avg, toy),
    "apfl": over(algorithms.apfl, toy),
    "fed_rep": over(algorithms.fed_rep, toy, local_pattern="^bias$"),
    "ditto, flora": ditto(algorithms.flora, toy_lora),
    "ditto, fed_ex_lora": ditto(algorithms.fed_ex_lora, toy_lora),
    "apfl, lora": over(algorithms.apfl, toy_lora),
    "fed_rep, lora": over(algorithms.fed_rep, toy_lora),
    "fed_sa_lora": over(algorithms.fed_sa_lora, toy_lora),
    "fed_dpa": over(algorithms.fed_dpa, toy_lora),
    "fed_dpa_f": over(algorithms.fed_dpa_f, toy_lora, tune_after=8),
}


def merged(model, params):
    """The toy model with everything in its weights."""
    kernel = merge_lora(model, params).variables["params"]
    plain = toy_lora.toy_model()
    return dataclasses.replace(plain, variables={**plain.variables, "params": kernel})


@pytest.mark.parametrize(("algorithm", "world"), PERSONAL.values(), ids=PERSONAL)
def test_every_client_has_a_model_that_fits_it(algorithm, world):
    play = federation(algorithm, world)
    both, round = play.start(play.params), jax.jit(play.round)
    for number in range(12):
        both = round(jnp.int32(number), both)
    state, states = both
    losses = {"start": 0.0, "own": 0.0, "another's": 0.0}
    for k in range(LANES):
        arrays = jax.tree.map(jnp.asarray, world.toy_arrays()[k])
        loss = lambda model, params, a=arrays: float(world.toy_loss(params, model, a, None)[0])
        held = lambda i: jax.tree.map(lambda x: x[i % LANES], states)
        own, another = (
            engine.deployed(algorithm, world.toy_model(), state, held(i)) for i in (k, k + 1)
        )
        losses["start"] += loss(world.toy_model(), play.params)
        losses["own"] += loss(*own)
        losses["another's"] += loss(*another)
        if world is toy_lora:
            nothing = optax.tree.zeros_like(world.toy_params())
            np.testing.assert_allclose(loss(merged(*own), nothing), loss(*own), rtol=1e-4)
    assert losses["own"] < 0.8 * losses["start"]
    assert losses["own"] < losses["another's"]


def drawn(tree, seed):
    """A tree of its form, none of it zero: as after training."""
    keys = jax.random.key(seed)
    return jax.tree.map(
        lambda x: 0.3 * jax.random.normal(jax.random.fold_in(keys, x.size), x.shape), tree
    )


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["fed_dpa", "flora"])
def test_a_client_of_a_decoder_takes_its_model_home(name, tmp_path):
    """FedDPA's pair of adapters as one PEFT folder; Ditto's over FLoRA merged with its residual."""
    base, tokens = tiny_model(), jnp.arange(1, 7).reshape(1, 6)
    model, params = add_lora(base, jax.random.key(0), rank=2, alpha=4.0)
    algorithm = getattr(algorithms, name)(sft_loss, SGD)
    if name == "flora":
        algorithm = algorithms.ditto(algorithm, sft_loss, client_tx=SGD)
    state = engine.init(algorithm, drawn(params, 1))
    replica = engine.broadcast(algorithm, state)
    local = algorithm.client.init(model, replica, jax.random.key(2))
    local = local._replace(personal=drawn(params, 3)) if name == "flora" else drawn(local, 3)
    served, own = engine.deployed(algorithm, model, state, engine.ClientState(local, ()))
    expected = served.logits(own, tokens)
    for other, held in ((model, params), engine.deployed(algorithm, model, state)):
        assert np.abs(expected - other.logits(held, tokens)).max() > 1e-2
    if name == "fed_dpa":
        save_adapter(tmp_path, served, own)
        alone, held = load_adapter(tmp_path, base)
    else:
        alone, held = merge_lora(served, own), {}
    np.testing.assert_allclose(alone.logits(held, tokens), expected, atol=2e-4)
