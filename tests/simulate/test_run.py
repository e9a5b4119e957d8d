"""Runs: resumable from any point, with exact records and clear errors."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.algorithms.references import central, local_only
from fedjax_post.core.engine import init, wire_bytes
from fedjax_post.simulate.cohort import data_rng, draw
from fedjax_post.simulate.keeping import is_due
from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params


def make(name="scaffold"):
    if name == "scaffold":
        return algorithms.scaffold(toy_loss, 0.05, participation=0.5)
    return algorithms.fed_avg(toy_loss, optax.sgd(0.05))


def play(algorithm, rounds, clients=None, **plan):
    run = fp.run(
        algorithm,
        toy_model(),
        clients or toy_clients(),
        params=toy_params(),
        rounds=rounds,
        plan=fp.Plan(**({"sampler": fp.uniform(3)} | plan)),
    )
    return list(run)


def assert_same_bits(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_leaving_the_loop_leaves_a_resumable_run(tmp_path):
    straight = play(make(), 5)[-1][0]
    for _, record in fp.run(
        make(), toy_model(), toy_clients(), params=toy_params(), rounds=5,
        plan=fp.Plan(sampler=fp.uniform(3), directory=tmp_path),
    ):  # fmt: skip
        if record["round"] == 2:
            break
    resumed = play(make(), 5, directory=tmp_path, resume=True)
    assert [record["round"] for _, record in resumed] == [3, 4]
    assert_same_bits(straight, resumed[-1][0])
    assert rounds_in(tmp_path) == [0, 1, 2, 3, 4]


def test_an_error_in_a_round_leaves_a_resumable_run(tmp_path):
    straight = play(make(), 5)[-1][0]

    def fail_at_three(state, record):
        if record["round"] == 3:
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        list(
            fp.run(
                make(), toy_model(), toy_clients(), params=toy_params(), rounds=5,
                plan=fp.Plan(sampler=fp.uniform(3), directory=tmp_path), callbacks=[fail_at_three],
            )
        )  # fmt: skip
    assert_same_bits(straight, play(make(), 5, directory=tmp_path, resume=True)[-1][0])


SLOW_RUN = """
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells mute it in the background
    import fedjax_post as fp
    from tests.simulate.test_run import make, toy_clients, toy_model, toy_params

    def pause(state, record):
        print(record["round"], flush=True)
        time.sleep(0.05)

    plan = fp.Plan(sampler=fp.uniform(3), directory=sys.argv[1], resume=True, checkpoint_every=3)
    for _ in fp.run(make(), toy_model(), toy_clients(), params=toy_params(), rounds=1000,
                    plan=plan, callbacks=[pause]):
        pass
"""


@pytest.mark.heavy
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_is_resumed_to_the_same_bits(tmp_path, how):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW_RUN), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    while process.stdout.readline().strip() != "8":
        assert process.poll() is None
    time.sleep(0.02)
    process.send_signal(how)
    process.communicate(timeout=60)
    done = fp.restore(tmp_path, make(), toy_params()).rounds_done
    assert done >= (8 if how == signal.SIGINT else 6)  # asked to stop, it saves first
    resumed = play(make(), done + 3, directory=tmp_path, resume=True)
    assert_same_bits(play(make(), done + 3)[-1][0], resumed[-1][0])
    assert rounds_in(tmp_path) == list(range(done + 3))


LEFT_OPEN = """
    import sys
    import fedjax_post as fp
    from tests.simulate.test_run import make, toy_clients, toy_model, toy_params

    def start(directory):
        plan = fp.Plan(sampler=fp.uniform(3), directory=directory, checkpoint_every=100)
        return fp.run(make(), toy_model(), toy_clients(), params=toy_params(), rounds=9, plan=plan)

    held = start(sys.argv[1])
    next(held), next(held)
    for _, record in start(sys.argv[2]):
        if record["round"] == 2:
            raise RuntimeError("out of luck")
"""


@pytest.mark.heavy
def test_a_program_that_ends_in_the_middle_of_a_run_saves_it(tmp_path):
    held, raised = tmp_path / "held", tmp_path / "raised"
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LEFT_OPEN), str(held), str(raised)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ended.stderr.strip().endswith("RuntimeError: out of luck")
    assert "ignored" not in ended.stderr
    assert fp.restore(held, make(), toy_params()).rounds_done == 2
    assert fp.restore(raised, make(), toy_params()).rounds_done == 3


@pytest.mark.parametrize(
    ("every", "done", "elapsed", "cost", "due"),
    [
        (3, 6, 0.0, 9.0, True),
        (3, 7, 99.0, 0.0, False),
        (None, 1, 0.0, 0.0, True),  # nothing is saved yet
        (None, 7, 4.8, 0.1, False),
        (None, 7, 5.0, 0.1, True),
    ],
)
def test_checkpoints_come_by_rounds_or_take_a_fiftieth_of_the_time(every, done, elapsed, cost, due):
    assert is_due(every, done, elapsed, cost) == due


def rounds_in(directory):
    lines = (directory / "records.jsonl").read_text().splitlines()
    return [json.loads(line)["round"] for line in lines]


def test_a_directory_with_another_run_is_refused(tmp_path):
    play(make(), 1, directory=tmp_path)
    with pytest.raises(FileExistsError, match="holds another run .* or `resume` to continue it"):
        play(make(), 1, directory=tmp_path)
    with pytest.raises(ValueError, match=r"differs from this one in .*`seed` \(0 there, 1 here\)"):
        play(make(), 2, directory=tmp_path, resume=True, seed=1)
    with pytest.raises(ValueError, match="holds arrays"):
        play(make("fed_avg"), 2, directory=tmp_path, resume=True)


def test_resuming_nothing_starts_from_the_beginning(tmp_path):
    assert len(play(make(), 2, directory=tmp_path, resume=True)) == 2


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    last = play(make(), 2, directory=tmp_path)[-1][0]
    assert play(make(), 2, directory=tmp_path, resume=True) == []
    assert_same_bits(fp.restore(tmp_path, make(), toy_params()).state, last)


def test_records_count_what_was_done():
    clients = toy_clients()
    ((_, record),) = play(make(), 1, clients)
    cohort = draw(fp.uniform(3), 6, seed=0, round=0)
    visits = [clients.visit(i, data_rng(0, 0, i)) for i in cohort]
    wire = wire_bytes(make(), toy_model(), init(make(), toy_params()), visits[0])
    assert record["cohort"] == 3
    assert record["num_steps"] == 9
    assert record["num_examples"] == sum(v.num_examples for v in visits)
    assert record["num_tokens"] == record["num_read"] == sum(v.num_tokens for v in visits)
    assert record["bytes_down"] == 3 * wire.down == 3 * 2 * 15 * 4
    assert record["bytes_up"] == 3 * wire.up == 3 * (2 * 15 * 4 + 4)
    assert record["tokens_per_second"] == record["num_read"] / record["seconds"]


def test_callbacks_add_to_the_record(tmp_path):
    run = fp.run(
        make(), toy_model(), toy_clients(), params=toy_params(), rounds=1,
        plan=fp.Plan(directory=tmp_path), callbacks=[lambda state, record: {"mine": 7}],
    )  # fmt: skip
    assert next(run)[1]["mine"] == 7
    assert json.loads((tmp_path / "records.jsonl").read_text())["mine"] == 7


def test_poisson_rounds_share_one_program():
    """Sizes differ, an empty cohort included; shapes do not."""
    algorithm = make("fed_avg")
    programs = fp.device(algorithm)
    rounds = play(algorithm, 12, sampler=fp.poisson(1), chunk_size=2, executor=lambda _: programs)
    sizes = [record["cohort"] for _, record in rounds]
    assert 0 in sizes
    assert max(sizes) > 2
    assert programs.visit._cache_size() == 1


def test_central_sees_the_tokens_of_the_federation():
    federated = play(make("fed_avg"), 3)
    alone = play(central(toy_loss, optax.sgd(0.05)), 3, feed=fp.pooled)
    for (_, one), (_, other) in zip(federated, alone, strict=True):
        assert one["num_read"] == other["num_read"]
        assert other["num_steps"] == 3


def test_one_central_step_is_a_federated_one():
    clients = toy_clients(local_steps=1)
    one = play(make("fed_avg"), 1, clients)[-1][0]
    other = play(central(toy_loss, optax.sgd(0.05)), 1, clients, feed=fp.pooled)[-1][0]
    for a, b in zip(jax.tree.leaves(one.shared), jax.tree.leaves(other.shared), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_local_only_sends_nothing_but_a_weight():
    state, record = play(local_only(toy_loss, optax.adam(0.05)), 2)[-1]
    assert record["bytes_down"] == 0
    assert record["bytes_up"] == 3 * 4
    assert_same_bits(state.shared, toy_params())


def test_the_next_chunk_waits_for_the_one_before_the_last():
    """At most two chunks are under way: the device holds no more, whatever the cohort."""
    algorithm = make("fed_avg")
    programs, alive = fp.device(algorithm), []

    def visit(*args):
        total, states, reports = programs.visit(*args)
        alive.append(reports.weight)
        assert sum(not x.is_ready() for x in alive) <= 2
        return total, states, reports

    watched = programs._replace(visit=visit)
    play(algorithm, 2, sampler=fp.full(), chunk_size=1, executor=lambda _: watched)
    assert len(alive) == 12


def test_device_memory_is_flat_in_the_cohort():
    algorithm = make("fed_avg")
    sizes = []
    for num_clients in (4, 64):
        programs, seen = fp.device(algorithm), []

        def visit(*args, programs=programs, seen=seen):
            if not seen:
                seen.append(programs.visit.lower(*args).compile().memory_analysis())
            return programs.visit(*args)

        watched = programs._replace(visit=visit)
        play(
            algorithm, 1, toy_clients(num_clients), sampler=fp.full(), chunk_size=4,
            executor=lambda _, watched=watched: watched,
        )  # fmt: skip
        memory = seen[0]
        sizes.append(memory.temp_size_in_bytes + memory.argument_size_in_bytes)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("plan", "rounds", "message"),
    [
        ({"sampler": fp.uniform(7)}, 1, "cohort size 7 exceeds the population of 6"),
        ({"chunk_size": 0}, 1, "chunk_size must be at least 1, got 0"),
        ({"checkpoint_every": 0}, 1, "checkpoint_every must be at least 1"),
        ({}, 0, "`rounds` must be at least 1, got 0"),
    ],
)
def test_a_bad_plan_is_refused_before_anything_runs(plan, rounds, message):
    with pytest.raises(ValueError, match=message):
        fp.run(
            make(), toy_model(), toy_clients(), params=toy_params(), rounds=rounds,
            plan=fp.Plan(**plan),
        )  # fmt: skip


def test_host_errors_name_client_round_and_stage():
    def loss_fn(params, model, batch, key):
        raise ZeroDivisionError("in the loss")

    algorithm = make("fed_avg")
    fine = algorithm.client.update

    def update(model, replica, state, data, ctx):
        if isinstance(ctx.round, jax.core.Tracer) or int(ctx.client_id) != 4:
            return fine(model, replica, state, data, ctx)
        raise ZeroDivisionError("in the update")

    broken = algorithm._replace(client=algorithm.client._replace(update=update))
    with pytest.raises(ZeroDivisionError) as caught:
        play(broken, 1, sampler=fp.full(), executor=fp.host)
    assert caught.value.__notes__ == ["in stage client.update", "client 4, round 0"]


def test_a_bare_prompt_suffices():
    """Two lines of model, no tree, no file: the same code as for a language model."""
    loss_fn = lambda x, model, batch, key: (jnp.mean((x - batch) ** 2), {})
    clients = fp.ArrayClients([np.zeros(3), np.ones(3)], batch_size=3, local_steps=5)
    algorithm = algorithms.fed_avg(loss_fn, optax.sgd(0.1))
    state, _ = list(fp.run(algorithm, None, clients, params=jnp.zeros(()), rounds=20))[-1]
    assert float(state.shared) == pytest.approx(0.5, abs=1e-3)
