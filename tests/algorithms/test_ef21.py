"""EF21: compression loses nothing in the end, and the server has the mean of the clients."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratics import CLIENTS, DIM, JOINT, LR, quadratic, quadratic_clients, solve

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.core import sign, top_k, uniformly
from fedjax_post.simulate.personal import read_clients

ONE_STEP = algorithms.fed_avg(quadratic, optax.sgd(LR), weigh_fn=uniformly)
HARD = top_k(1 / DIM)


@pytest.mark.parametrize("link", [HARD, sign()], ids=["top_k", "sign"])
def test_ef21_reaches_the_joint_optimum_under_a_hard_compressor(link):
    algorithm = algorithms.ef21(ONE_STEP, link, population=CLIENTS)
    found = solve(algorithm, rounds=300, local_steps=1)
    np.testing.assert_allclose(found, JOINT, atol=1e-4)


def test_the_compressor_alone_misses_it():
    found = solve(ONE_STEP._replace(uplink=HARD), rounds=300, local_steps=1)
    assert np.abs(found - JOINT).max() > 0.05


@pytest.mark.parametrize("sampler", [fp.full(), fp.uniform(2)], ids=["all", "some"])
def test_the_server_holds_the_mean_of_the_clients(sampler, tmp_path):
    algorithm = algorithms.ef21(ONE_STEP, HARD, population=CLIENTS)
    clients, start = quadratic_clients(1), jnp.zeros(DIM)
    plan = fp.Plan(sampler=sampler, directory=tmp_path)
    state = list(fp.run(algorithm, None, clients, params=start, rounds=6, plan=plan))[-1][0]
    personal = read_clients(tmp_path, algorithm, None, clients, params=start)
    held = np.asarray(personal.states.uplink[0]).sum(0) / CLIENTS
    np.testing.assert_allclose(state.server.mean, held, rtol=1e-5, atol=1e-7)
