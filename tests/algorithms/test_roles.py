"""Algorithms with several models: their limits, what clients receive, and what is sent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post.adapters.lora import add_lora
from fedjax_post.algorithms import fed_avg
from fedjax_post.algorithms.fed_bi_ot import fed_bi_ot
from fedjax_post.algorithms.fed_pt import fed_pt
from fedjax_post.algorithms.offsite_tuning import offsite_tuning
from fedjax_post.core.access import Access, AccessError
from fedjax_post.model.alignment import aligner, gap
from fedjax_post.model.emulator import emulate
from fedjax_post.testing import toy_roles
from fedjax_post.testing.models import tiny_model
from fedjax_post.testing.toy_roles import toy_loss, toy_models

SGD = optax.sgd(0.3)
TEXT = jnp.arange(2 * 3 * 4).reshape(2, 4, 3) * 5 % toy_roles.VOCAB
PUBLIC = {"tokens": TEXT, "loss_mask": TEXT >= 0}


def rounds(algorithm, model, params, num=2):
    """The last state and records."""
    steps = list(fp.run(algorithm, model, toy_roles.toy_clients(), params=params, rounds=num))
    return steps[-1][0], [record for _, record in steps]


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4), one, other)


def whole(first, last):
    """Models whose stand-in drops nothing, and fresh factors of all layers."""
    base = tiny_model(num_layers=4, vocab_size=toy_roles.VOCAB)
    target, params = add_lora(base, jax.random.key(1), rank=2, alpha=4)
    emulator = emulate(target, first=first, last=last, keep_every=1)
    return {"target": target, "emulator": emulator}, params


@pytest.mark.heavy
def test_with_nothing_dropped_it_is_fed_avg_of_the_ends():
    """Factors that are zero in A and B stay zero: nothing has to be masked on the other side."""
    models, params = whole(1, 1)
    target, ends = models["target"], models["emulator"].ends(params)
    state, _ = rounds(offsite_tuning(toy_loss, SGD), models, ends)
    plain, _ = rounds(fed_avg(toy_loss, SGD), target, models["emulator"].plug(target, ends))
    served, found = fp.deployed(offsite_tuning(toy_loss, SGD), models, state)
    assert served is target
    assert_close(found, plain.shared)
    assert not any(np.any(leaf[1:3]) for leaf in jax.tree.leaves(plain.shared))
    assert optax.tree.norm(optax.tree.sub(state.shared, ends)) > 0.1


@pytest.mark.heavy
def test_the_control_serves_what_clients_trained_on():
    models, params = whole(1, 1)
    ends = models["emulator"].ends(params)
    plugged, _ = rounds(offsite_tuning(toy_loss, SGD), models, ends, num=1)
    control = offsite_tuning(toy_loss, SGD, plug_in=False)
    alone, _ = rounds(control, models, ends, num=1)
    assert_close(alone.shared, plugged.shared)  # it is trained alike
    served, found = fp.deployed(control, models, alone)
    assert served is models["emulator"].model
    assert_close(found, models["emulator"].spread(alone.shared))


@pytest.mark.heavy
@pytest.mark.parametrize("algorithm", [offsite_tuning, fed_bi_ot])
def test_last_layers_alone_are_fed_avg_of_a_range(algorithm):
    """The decoder has a way of its own to adapt the layers from some number on."""
    models, params = whole(0, 2)
    ends = models["emulator"].ends(params)
    given = {"pull": 0.0} if algorithm is fed_bi_ot else {}
    state, _ = rounds(algorithm(toy_loss, SGD, **given), models, ends)
    base = tiny_model(num_layers=4, vocab_size=toy_roles.VOCAB)
    ranged, _ = add_lora(base, jax.random.key(1), rank=2, alpha=4, layers=(2, 4))
    plain, _ = rounds(fed_avg(toy_loss, SGD), ranged, ends)
    assert_close(getattr(state.shared, "ends", state.shared), plain.shared)


@pytest.mark.heavy
def test_without_pull_and_owner_fed_bi_ot_is_offsite_tuning():
    ends = toy_roles.toy_ends()
    one, records = rounds(fed_bi_ot(toy_loss, SGD, pull=0.0), toy_models(), ends)
    other, others = rounds(offsite_tuning(toy_loss, SGD), toy_models(), ends)
    assert_close(one.shared.ends, other.shared)
    assert [r["bytes_down"] for r in records] == [r["bytes_down"] for r in others]


@pytest.mark.heavy
def test_the_pull_keeps_clients_near():
    ends = toy_roles.toy_ends()
    far, near = (
        rounds(fed_bi_ot(toy_loss, SGD, pull=pull), toy_models(), ends, num=1)[0].shared.ends
        for pull in (0.0, 1.0)
    )
    distance = lambda moved: float(optax.tree.norm(optax.tree.sub(moved, ends)))
    assert 0 < distance(near) < 0.8 * distance(far)
    with pytest.raises(ValueError, match="pull must not be negative, got -1"):
        fed_bi_ot(toy_loss, SGD, pull=-1)


@pytest.mark.heavy
def test_an_owner_brings_the_middle_up_to_date_in_every_round():
    models, ends = toy_models(), toy_roles.toy_ends()
    _, params = add_lora(models["target"], jax.random.key(1), rank=2, alpha=4)
    rule = {"tx": optax.sgd(0.3), "num_steps": 4}
    owner = aligner(models["emulator"], models["target"], params, PUBLIC, **rule)
    algorithm = fed_bi_ot(toy_loss, SGD, aligner=owner)
    (first, _), (second, record) = fp.run(
        algorithm, models, toy_roles.toy_clients(), params=ends, rounds=2
    )
    expected = owner.update(first.shared.ends, owner.init(), 0)
    assert_close(first.shared.middle, expected)
    expected = owner.update(second.shared.ends, first.shared.middle, 1)
    assert_close(second.shared.middle, expected)
    batch = jax.tree.map(lambda x: x[0], PUBLIC)
    of = lambda middle: sum(
        gap(models["emulator"], models["target"], batch, ends=second.shared.ends, middle=middle)
    )
    assert of(second.shared.middle) < 0.9 * of(None)
    # what clients train on has the middle in it
    alone, _ = rounds(fed_bi_ot(toy_loss, SGD), models, ends)
    apart = optax.tree.norm(optax.tree.sub(alone.shared.ends, second.shared.ends))
    assert apart > 1e-4
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    one_up, one_down = size(ends) + 4, size(ends) + size(second.shared.middle)
    assert record["bytes_up"] == toy_roles.NUM_CLIENTS * one_up
    assert record["bytes_down"] == toy_roles.NUM_CLIENTS * one_down


@pytest.mark.heavy
def test_only_the_ends_are_sent():
    ends = toy_roles.toy_ends()
    assert {len(leaf) for leaf in jax.tree.leaves(ends)} == {2}
    _, records = rounds(offsite_tuning(toy_loss, SGD), toy_models(), ends, num=1)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(ends))
    assert records[0]["bytes_down"] == toy_roles.NUM_CLIENTS * size
    assert records[0]["bytes_up"] == toy_roles.NUM_CLIENTS * (size + 4)


@pytest.mark.heavy
def test_weights_of_the_ends_are_trained_too():
    models = toy_models()
    emulator, target = models["emulator"], models["target"]
    ends = emulator.ends({"params": target.variables["params"]})
    algorithm = offsite_tuning(toy_loss, SGD)
    state, _ = rounds(algorithm, models, ends)
    model, params = fp.deployed(algorithm, models, state)
    for new, old in zip(
        jax.tree.leaves(params["params"]["layers"]),
        jax.tree.leaves(target.variables["params"]["layers"]),
        strict=True,
    ):
        np.testing.assert_array_equal(new[1:3], old[1:3])
    start = toy_roles.toy_mean_loss({}, target)
    assert toy_roles.toy_mean_loss(params, model) < start - 0.05


@pytest.mark.heavy
@pytest.mark.parametrize("make", [offsite_tuning, fed_bi_ot])
def test_clients_are_shown_the_stand_in_and_not_the_target(make):
    seen = []

    def loss(params, model, batch, key):
        seen.append(model.config.num_layers)
        return toy_loss(params, model, batch, key)

    algorithm, models = make(loss, SGD), toy_models()
    update = algorithm.client.update

    def watched(shown, *rest):
        assert set(shown) == {"emulator"}
        return update(shown, *rest)

    algorithm = algorithm._replace(client=algorithm.client._replace(update=watched))
    sealed = models | {"target": models["target"].restrict(Access.TEXT)}
    rounds(algorithm, sealed, toy_roles.toy_ends(), num=1)
    assert set(seen) == {3}


def test_a_model_without_roles_is_refused_with_the_role():
    with pytest.raises(AccessError, match="needs a model in the role 'emulator'"):
        rounds(offsite_tuning(toy_loss, SGD), toy_models()["target"], toy_roles.toy_ends())


@pytest.mark.heavy
def test_a_proxy_is_trained_as_if_alone_and_steers_when_served():
    models, params = toy_models(), toy_roles.toy_proxy_params()
    algorithm = fed_pt(toy_loss, SGD)
    state, _ = rounds(algorithm, models, params)
    alone, _ = rounds(fed_avg(toy_loss, SGD), models["proxy"], params)
    assert_close(state.shared, alone.shared)
    steered, found = fp.deployed(algorithm, models, state)
    tokens = TEXT[0]
    tuned, untuned = (models["proxy"].logits(held, tokens) for held in (found, {}))
    np.testing.assert_allclose(
        steered.logits(found, tokens),
        models["target"].logits({}, tokens) + tuned - untuned,
        atol=1e-5,
    )


def test_a_proxy_of_another_vocabulary_is_refused():
    models = toy_models() | {"proxy": tiny_model(vocab_size=9)}
    algorithm = fed_pt(toy_loss, SGD)
    with pytest.raises(ValueError, match="`proxy` has 9 tokens and the target 8"):
        algorithm.deploy(models, toy_roles.toy_proxy_params())
