"""Counts of what clients send to a hosted model: summed, dropped clients included."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.core import SUMMED
from fedjax_post.core.forward import two_point
from fedjax_post.simulate.sweep import Grid, sweep
from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params

ASKED = {"queries": 4.0, "tokens_sent": 21.0, "labels_sent": 1.0}  # of a batch


def counting_loss(params, model, batch, key):
    loss, metrics = toy_loss(params, model, batch, key)
    return loss, metrics | {name: jnp.float32(value) for name, value in ASKED.items()}


def plan(**changes):
    return fp.Plan(**({"sampler": fp.full(), "chunk_size": 4} | changes))


def records(algorithm, *, clients=None, **changes):
    clients = clients or toy_clients()
    run = fp.run(
        algorithm, toy_model(), clients, params=toy_params(), rounds=2, plan=plan(**changes)
    )
    return [record for _, record in run]


def fed_avg(loss_fn=counting_loss):
    return algorithms.fed_avg(loss_fn, optax.sgd(0.05))


def dropping(algorithm, lost):
    """The algorithm, whose client `lost` diverges after it has asked."""

    def update(model, replica, state, data, ctx):
        upload, state, metrics = algorithm.client.update(model, replica, state, data, ctx)
        weight = jnp.where(ctx.client_id == lost, jnp.nan, upload.weight)
        return upload._replace(weight=weight), state, metrics

    return algorithm._replace(client=algorithm.client._replace(update=update))


@pytest.mark.heavy
@pytest.mark.parametrize("executor", [fp.device, fp.host])
def test_six_clients_of_three_steps_ask_eighteen_times(executor):
    """Chunks of 4 lanes: the second has two lanes of padding, which ask nothing."""
    for record in records(fed_avg(), executor=executor):
        counted = {name: record[name] for name in SUMMED if name in record}
        assert counted == {n: 18 * x for n, x in ASKED.items()}


def test_a_dropped_client_has_asked():
    algorithm = dropping(fed_avg(), lost=2)
    for record in records(algorithm):
        assert record["dropped"] == [2]
        assert record["queries"] == 18 * 4


def test_a_round_without_anybody_kept_has_asked():
    nobody = fed_avg()
    for client_id in range(6):
        nobody = dropping(nobody, client_id)
    (record, _) = records(nobody)
    assert record["weight"] == 0
    assert record["queries"] == 18 * 4
    assert "loss" not in record


def test_what_is_no_count_stays_a_weighted_mean():
    (plain, _), (counted, _) = (records(fed_avg(loss)) for loss in (toy_loss, counting_loss))
    assert counted["loss"] == plain["loss"]
    assert "queries" not in plain


@pytest.mark.heavy
def test_two_points_ask_twice_for_each_direction():
    for num_directions in (1, 3):
        loss_fn = two_point(counting_loss, num_directions=num_directions)
        (record, _) = records(fed_avg(loss_fn))
        assert record["tokens_sent"] == 18 * 21 * 2 * num_directions


def test_unequal_visits_ask_for_the_steps_they_take():
    arrays = [{"x": np.ones((n, 4), np.float32), "y": np.ones((n, 3), np.float32)} for n in (4, 12)]
    clients = fp.ArrayClients(arrays, batch_size=4, local_epochs=1)
    (record, _) = records(fed_avg(), clients=clients)
    assert record["queries"] == (1 + 3) * 4


def test_sweeps_and_buffers_sum_too():
    buffer = fp.Buffer(concurrency=4, size=2)
    for record in records(fed_avg(), sampler=fp.full(), buffer=buffer):
        assert record["queries"] == 2 * 3 * 4
    make = lambda server_lr: algorithms.fed_avg(
        counting_loss, optax.sgd(0.05), server_tx=optax.sgd(server_lr)
    )
    runs = sweep(
        make, toy_model(), toy_clients(), grid=Grid({"server_lr": [1.0, 0.5]}, seeds=(0, 1)),
        params=toy_params(), rounds=1, plan=plan(sampler=fp.uniform(3)),
    )  # fmt: skip
    ((_, record),) = runs
    assert [run["queries"] for seed in record["runs"] for run in seed] == [3 * 3 * 4] * 4
