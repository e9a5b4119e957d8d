"""Schedules of step sizes, and batches computed in parts: closed forms, refusals, and resuming."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_post import study
from fedjax_post.study import methods
from fedjax_post.study.optimizers import schedule
from fedjax_post.study.resolve import resolve

SERVERS = (
    *("fed_avg", "fed_prox", "fed_avg_m", "di_loco", "fed_adam", "fed_yogi", "fed_adagrad"),
    *("fed_adam_optax", "fed_yogi_optax", "fed_adagrad_optax"),
)


def test_a_cosine_with_a_floor_is_that_of_published_code():
    """lr_min + (lr_max - lr_min) (1 + cos(pi t / T)) / 2, as OpenFedLLM and FlowerTune have it."""
    first, last, total = 5e-5, 1e-6, 200
    factor = schedule("cosine", total, floor=last / first)
    for t in (0, 1, 77, 199, 200):
        expected = last + (first - last) * (1 + math.cos(math.pi * t / total)) / 2
        np.testing.assert_allclose(first * factor(t), expected, rtol=1e-5)


def test_a_linear_schedule_ends_at_its_floor():
    factor = schedule("linear", 10, floor=0.2)
    np.testing.assert_allclose([factor(t) for t in (0, 5, 10)], [1, 0.6, 0.2], rtol=1e-6)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_a_warm_up_grows_from_nothing_and_then_the_schedule_begins(name):
    factor = schedule(name, 20, warmup=5)
    np.testing.assert_allclose([factor(t) for t in range(6)], np.arange(6) / 5, rtol=1e-6)
    after = schedule(name, 15) or (lambda t: 1.0)
    later = range(5, 20)
    np.testing.assert_allclose([factor(t) for t in later], [after(t - 5) for t in later], rtol=1e-6)


def test_a_warm_up_before_a_cosine_is_that_of_optax():
    expected = optax.warmup_cosine_decay_schedule(0.0, 1.0, 50, 1000)
    factor = schedule("cosine", 1000, warmup=50)
    for t in (0, 1, 49, 50, 51, 500, 999):
        np.testing.assert_allclose(factor(t), expected(t), rtol=1e-6)


def moves_of(name, **fields):
    """How far a server moves in each of six rounds in which all clients send the same change."""
    spec = study.Spec(method=study.Method(name, **fields), training=study.Training(rounds=6))
    server = methods.make_algorithm(resolve(spec), participation=1.0).server
    shared = {"x": jnp.array([1.0, -2.0])}
    state, moves = server.init(shared), []
    for _ in range(6):
        before = shared
        shared, state = jax.jit(server.update)({"x": jnp.array([0.1, 0.3])}, state, shared)
        moves.append(shared["x"] - before["x"])
    return np.array(moves)


@pytest.mark.parametrize("name", SERVERS)
def test_every_server_with_a_step_size_follows_its_schedule(name):
    """The schedule scales the steps and leaves momenta alone."""
    scheduled = moves_of(name, server_schedule="cosine", server_warmup=2)
    factors = [0, 0.5, *((1 + math.cos(math.pi * t / 4)) / 2 for t in range(4))]
    expected = moves_of(name) * np.array(factors)[:, None]
    np.testing.assert_allclose(scheduled, expected, rtol=1e-4, atol=1e-6)


def test_servers_of_their_own_optimizers_follow_it_too():
    fields = {"server_optimizer": "adam", "server_lr": 0.1}
    scheduled = moves_of("fed_avg", server_schedule="linear", **fields)
    expected = moves_of("fed_avg", **fields) * (1 - np.arange(6) / 6)[:, None]
    np.testing.assert_allclose(scheduled, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "training", "message"),
    [
        ({"name": "flora", "server_schedule": "cosine"}, {}, "method=flora does not take it"),
        ({"name": "flora", "server_warmup": 2}, {}, "method=flora does not take it"),
        ({"server_warmup": 4}, {"rounds": 4}, "server_warmup=4 takes all rounds=4; give fewer"),
        ({"client_lr_floor": 0.1}, {}, "client_lr_floor=0.1 is the end of a schedule; give"),
        ({"client_lr_floor": 1.5}, {}, "client_lr_floor=1.5 must be at most 1"),
        (
            {},
            {"batch_size": 8, "microbatch": 3},
            "microbatch=3 does not divide batch_size=8; give one of 1, 2, 4, 8",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(method, training, message):
    with pytest.raises(ValueError, match="=") as raised:
        resolve(study.Spec(method=study.Method(**method), training=study.Training(**training)))
    assert message in str(raised.value)


def test_a_method_without_weights_is_not_computed_in_parts(tiny_folder, tiny_rows):
    spec = study.Spec(
        model=str(tiny_folder),
        data=study.Data(str(tiny_rows), labels=("cat", "dog", "hen", "pig", "cow")),
        adapter=study.Adapter("soft_prompt"),
        method="fed_bpt",
        training=study.Training(batch_size=2, microbatch=1),
    )
    with pytest.raises(ValueError, match="microbatch=1: method=fed_bpt does not read the model's"):
        study.prepare(spec)


def small(tiny_folder, tiny_rows, **changes):
    spec = study.Spec(
        model=str(tiny_folder),
        data=study.Data(str(tiny_rows), heldout_fraction=0.25),
        adapter=study.Adapter(rank=2),
        method=study.Method("fed_adam", server_schedule="cosine", server_warmup=2),
        training=study.Training(rounds=4, cohort_size=2, local_steps=2, batch_size=4),
        scoring=study.Scoring(every=0, exact_match="off"),
    )
    return spec.put(changes)


def trained(job):
    *_, (state, _) = job.run()
    return jax.tree.leaves(state.shared)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "given",
    [{}, {"objective": "dpo", "data.rejected_column": "task"}, {"objective.name": "grpo"}],
    ids=["sft", "dpo", "grpo"],
)
def test_a_run_in_parts_is_the_run_of_whole_batches(tiny_folder, tiny_rows, tmp_path, given):
    if given.get("objective.name") == "grpo":
        given |= {"objective.group_size": 2, "objective.reward": "head"}
    one, other = (
        trained(study.prepare(small(tiny_folder, tiny_rows, **given, **more), directory=where))
        for more, where in (
            ({}, tmp_path / "whole"),
            ({"training.microbatch": 2}, tmp_path / "parts"),
        )
    )
    for found, expected in zip(one, other, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-5)


@pytest.mark.heavy
def test_a_scheduled_run_resumes_to_the_same_bits_and_as_itself_alone(
    tiny_folder, tiny_rows, tmp_path
):
    changes = {
        **{"method.client_schedule": "cosine", "method.client_lr_floor": 0.1},
        **{"training.microbatch": 2, "execution.checkpoint_every": 1},
    }
    spec = small(tiny_folder, tiny_rows, **changes)
    expected = trained(study.prepare(spec, directory=tmp_path / "at_once"))
    run = tmp_path / "run"
    for _, record in study.prepare(spec, directory=run).run():
        if record["round"] == 1:
            break
    for path, value in (
        ("method.client_lr_floor", 0.2),
        ("method.server_warmup", 1),
        ("method.server_schedule", "linear"),
        ("training.microbatch", 1),
    ):
        with pytest.raises(ValueError, match=f"{path}={value} differs from the run"):
            study.prepare(spec.put({path: value}), directory=run, resume=True)
    job = study.prepare(spec, directory=run, resume=True)
    assert 0 < job.rounds_done < 4
    for found, wanted in zip(trained(job), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
