"""Sweeps: each run equals the one that `run` gives, whatever the other runs are."""

import jax
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post.algorithms import fed_prox, scaffold
from fedjax_post.simulate.sweep import Grid, run_of, sweep
from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params

MAKERS = {
    "fed_prox": (
        lambda client_lr, mu: fed_prox(toy_loss, optax.sgd(client_lr), mu=mu),
        {"client_lr": [0.02, 0.05, 0.1], "mu": [0.0, 0.5, 2.0]},
    ),
    "scaffold": (
        lambda learning_rate, server_lr: scaffold(
            toy_loss, learning_rate, participation=0.5, server_tx=optax.sgd(server_lr)
        ),
        {"learning_rate": [0.02, 0.05], "server_lr": [1.0, 0.7]},
    ),
}
GIVEN = {"params": toy_params(), "rounds": 3}
EXACT = ("round", "cohort", "num_steps", "num_tokens", "bytes_up", "bytes_down", "dropped")


@pytest.mark.heavy
@pytest.mark.parametrize("sampler", [fp.uniform(3), fp.poisson(3)], ids=["uniform", "poisson"])
@pytest.mark.parametrize("name", MAKERS)
def test_every_run_equals_itself_alone(name, sampler):
    make, settings = MAKERS[name]
    seeds = (3, 8)
    plan = fp.Plan(sampler=sampler, chunk_size=2)
    together = list(
        sweep(make, toy_model(), toy_clients(), grid=Grid(settings, seeds), plan=plan, **GIVEN)
    )
    for s, seed in enumerate(seeds):
        for h, values in enumerate(zip(*settings.values(), strict=True)):
            setting = dict(zip(settings, values, strict=True))
            alone = fp.run(
                make(**setting), toy_model(), toy_clients(), plan=plan._replace(seed=seed), **GIVEN
            )
            for (state, record), (states, line) in zip(alone, together, strict=True):
                compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
                jax.tree.map(compare, state, run_of(states, s, h))
                own = line["runs"][s][h]
                assert {k: record[k] for k in EXACT} == {k: own[k] for k in EXACT}
                assert own["seed"] == seed
                assert {k: own[k] for k in setting} == pytest.approx(setting)
                assert own["loss"] == pytest.approx(record["loss"], rel=1e-4)


@pytest.mark.heavy
def test_a_sweep_that_was_left_goes_on_to_the_same_bits(tmp_path):
    make, settings = MAKERS["scaffold"]

    def play(**plan):
        plan = fp.Plan(sampler=fp.uniform(3), **plan)
        return sweep(make, toy_model(), toy_clients(), grid=Grid(settings), plan=plan, **GIVEN)

    straight = list(play())[-1][0]
    next(left := play(directory=tmp_path))
    left.close()
    resumed = list(play(directory=tmp_path, resume=True))
    jax.tree.map(np.testing.assert_array_equal, straight, resumed[-1][0])
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("settings", "seeds", "rounds", "message"),
    [
        ({}, (0,), 3, "the same number of values, got {}"),
        ({"client_lr": [1.0], "mu": [0.0, 1.0]}, (0,), 3, "'client_lr': 1, 'mu': 2"),
        ({"client_lr": [1.0], "mu": [0.0]}, (1, 1), 3, r"distinct, and at least one; got \[1, 1\]"),
        ({"client_lr": [1.0], "mu": [0.0]}, (0,), 0, "`rounds` must be at least 1"),
    ],
)
def test_what_is_no_sweep_is_refused(settings, seeds, rounds, message):
    make, _ = MAKERS["fed_prox"]
    given = {"grid": Grid(settings, seeds), "params": toy_params(), "rounds": rounds}
    with pytest.raises(ValueError, match=message):
        sweep(make, toy_model(), toy_clients(), **given)
