"""Asynchronous runs: three clients by hand, and synchronous runs where speeds are equal."""

import json
from itertools import islice

import jax
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.core import clip, error_feedback, fixed_mean, top_k
from fedjax_post.core.telemetry import change_statistics
from fedjax_post.simulate import asynchronous, speeds
from fedjax_post.simulate.asynchronous import Buffer
from fedjax_post.simulate.feed import chunk_data
from fedjax_post.simulate.programs import Chunk
from fedjax_post.simulate.step import Step
from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params

HAND = speeds.from_seconds(np.array([1.0, 2.0, 5.0]))


def by_hand(buffer, count):
    found = asynchronous.steps(buffer, HAND, population=3, seed=0)
    return list(islice(found, count))


def test_a_trace_of_three_clients_by_hand():
    """All at work, a buffer of two: clients take 1, 2 and 5 seconds.

    Client 0 comes at 1 and must wait for the step, client 1 comes at 2: the first step.
    Both begin anew: 0 comes at 3, 1 at 4: the second. Again, 0 at 5 together with 2, which
    began first and so is received first: the third, client 2 two steps late. 0 and 2 begin at
    5 in round 3, while 1, which began in round 2 at 4, comes at 6 as does 0: the fourth.
    """
    found = by_hand(Buffer(concurrency=3, size=2), 4)
    began = [[(round, ids.tolist()) for round, ids in step.began] for step in found]
    assert began == [
        [(0, [0, 1])],
        [(1, [0, 1])],
        [(0, [2]), (2, [0])],
        [(2, [1]), (3, [0])],
    ]
    numbers = [tuple(step.numbers.values()) for step in found]
    assert numbers == [(2, 0, 0), (2, 0, 0), (1, 1, 2), (1, 0.5, 1)]
    assert [set(step.awaited) for step in found] == [{0}, {0}, {2}, {3}]


def test_a_buffer_of_one_is_fully_asynchronous():
    """FedAsync: a step for each update; a client may begin again at once."""
    found = by_hand(Buffer(concurrency=3, size=1), 6)
    came = [(step.began[0][1].tolist(), step.numbers["staleness_max"]) for step in found]
    # 0 at 1, then 1 and 0 at 2 (1 began first), 0 at 3, 1 and 0 at 4
    assert came == [([0], 0), ([1], 1), ([0], 1), ([0], 0), ([1], 1), ([0], 1)]


@pytest.mark.parametrize(("concurrency", "size"), [(5, 3), (3, 5), (10, 4), (1, 1), (2, 10)])
def test_no_more_at_work_than_allowed_and_one_update_a_buffer(concurrency, size):
    drawn = speeds.lognormal(1.0, seed=3)
    found = asynchronous.steps(Buffer(concurrency, size), drawn, population=10, seed=1)
    began, contributed = set(), []
    for step in islice(found, 60):
        ids = np.concatenate([ids for _, ids in step.began])
        assert len(set(ids.tolist())) == len(ids) == size
        assert len(step.awaited) <= concurrency
        for round, members in step.began:
            fresh = {(round, i) for i in members.tolist()}
            assert not began & fresh
            began |= fresh
        contributed += ids.tolist()
    assert set(contributed) == set(range(10))


def play(algorithm, rounds, *, callbacks=(), **plan):
    run = fp.run(
        algorithm, toy_model(), toy_clients(), params=toy_params(), rounds=rounds,
        plan=fp.Plan(**plan), callbacks=callbacks,
    )  # fmt: skip
    return list(run)


def fed_avg(server_lr=1.0):
    return algorithms.fed_avg(toy_loss, optax.sgd(0.05), server_tx=optax.sgd(server_lr))


def scaffold():
    return algorithms.scaffold(toy_loss, 0.05, participation=0.5)


def over_a_wire():
    return fed_avg()._replace(uplink=error_feedback(top_k(0.3)))


SLOW = {"buffer": Buffer(concurrency=5, size=2), "speeds": speeds.lognormal(1.0, seed=0)}


@pytest.mark.parametrize("make", [fed_avg, scaffold, over_a_wire])
@pytest.mark.parametrize("chunk_size", [3, 2])
def test_equal_speeds_are_synchronous_to_the_bit(make, chunk_size):
    buffer = Buffer(concurrency=3, size=3, staleness_exponent=0.0)
    one = play(make(), 4, sampler=fp.uniform(3), chunk_size=chunk_size, speeds=speeds.equal())
    other = play(make(), 4, buffer=buffer, chunk_size=chunk_size)
    jax.tree.map(np.testing.assert_array_equal, one[-1][0], other[-1][0])
    own = {"staleness_mean": 0.0, "staleness_max": 0}
    for (_, sync), (_, record) in zip(one, other, strict=True):
        clock = ("seconds", "tokens_per_second")
        assert {**record} == {**sync, **own, **{name: record[name] for name in clock}}


def play_from(clients, params, round, client_id):
    """The shared variables after a round of one client, the rounds before it being empty."""
    plan = fp.Plan(feed=lambda clients, steps, **given: only(clients, round, client_id))
    run = fp.run(fed_avg(), toy_model(), clients, params=params, rounds=1, plan=plan)
    return next(run)[0].shared


def only(clients, round, client_id):
    ids = np.array([client_id], np.int32)
    yield Step(round), 1, Chunk(np.int32(round), ids, chunk_data(clients, ids, 0, round))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 2.0])
def test_a_stale_update_is_from_its_replica_and_counts_by_its_age(exponent):
    """The third step of the trace by hand, from two clients run alone from their replicas."""
    clients = fp.ArrayClients(toy_clients().arrays[:3], batch_size=4, local_steps=3)
    run = fp.run(
        fed_avg(), toy_model(), clients, params=toy_params(), rounds=3,
        plan=fp.Plan(buffer=fp.Buffer(3, 2, exponent), speeds=HAND),
    )  # fmt: skip
    states = [state.shared for state, _ in run]
    visit = lambda i, round, start: play_from(clients, start, round, i)
    stale = jax.tree.map(np.subtract, visit(2, 0, toy_params()), toy_params())
    fresh = jax.tree.map(np.subtract, visit(0, 2, states[1]), states[1])
    weight = 12 / 3**exponent, 12.0  # 3 batches of 4 examples each; 2 steps late
    expected = jax.tree.map(
        lambda x, s, f: x + (weight[0] * s + weight[1] * f) / sum(weight), states[1], stale, fresh
    )
    for a, b in zip(jax.tree.leaves(states[2]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("make", [fed_avg, scaffold, over_a_wire])
def test_an_interrupted_run_ends_with_the_same_bits(make, tmp_path):
    straight = play(make(), 9, **SLOW)

    def fail(state, record):
        if record["round"] == 5:
            raise RuntimeError("out of luck")

    kept = {"directory": tmp_path, "checkpoint_every": 4}
    with pytest.raises(RuntimeError, match="out of luck"):
        play(make(), 9, callbacks=[fail], **kept, **SLOW)
    resumed = play(make(), 9, resume=True, **kept, **SLOW)
    jax.tree.map(np.testing.assert_array_equal, straight[-1][0], resumed[-1][0])
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    names = ("round", "loss", "virtual_seconds", "staleness_mean", "staleness_max", "cohort")
    assert [[line[n] for n in names] for line in lines] == [
        [record[n] for n in names] for _, record in straight
    ]
    assert max(line["staleness_max"] for line in lines) > 1
    assert fp.restore(tmp_path, make(), toy_params()).rounds_done == 9


def test_a_resumed_run_must_be_of_the_same_kind(tmp_path):
    play(fed_avg(), 1, directory=tmp_path, **SLOW)
    with pytest.raises(ValueError, match=r"differs from this one in `buffer` \(\[5, 2, 0.5\]"):
        play(fed_avg(), 2, directory=tmp_path, resume=True)


@pytest.mark.heavy
def test_chunks_and_executors_change_nothing():
    reference = play(fed_avg(), 5, **SLOW)[-1][0]
    for plan in ({"chunk_size": 1}, {"executor": fp.host}):
        state = play(fed_avg(), 5, **plan, **SLOW)[-1][0]
        for a, b in zip(jax.tree.leaves(reference), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_steps_share_their_programs():
    """Groups differ in size from step to step; after a few steps nothing is compiled."""
    algorithm = fed_avg()
    programs = fp.device(algorithm, change_statistics())
    wide = {"buffer": Buffer(concurrency=6, size=4), "speeds": SLOW["speeds"]}
    records = play(algorithm, 12, executor=lambda *_: programs, chunk_size=4, **wide)
    assert programs.visit._cache_size() <= 2  # 4 lanes and 1
    assert programs.start._cache_size() <= 2
    assert {"client_drift", "client_cosine"} < set(records[-1][1])


def test_it_learns_and_needs_less_virtual_time():
    """Speeds of four decades: who waits for the slowest takes longer to the same loss."""
    slow = speeds.lognormal(2.0, seed=1)
    sync = play(fed_avg(), 12, sampler=fp.uniform(3), speeds=slow)
    plan = {"buffer": Buffer(concurrency=3, size=2), "speeds": slow}
    buffered = play(fed_avg(), 40, **plan)
    goal = sync[-1][1]["loss"]

    def time_to(goal, run):
        clock = np.cumsum([record["virtual_seconds"] for _, record in run])
        return clock[next(i for i, (_, record) in enumerate(run) if record["loss"] <= goal)]

    assert time_to(goal, buffered) < time_to(goal, sync)


@pytest.mark.parametrize(
    ("buffer", "algorithm", "message"),
    [
        (Buffer(7, 2), fed_avg(), "concurrency=7 must be from 1 to the 6 clients"),
        (Buffer(2, 0), fed_avg(), "buffer_size=0 must be from 1"),
        (Buffer(2, 2, -1.0), fed_avg(), "staleness_exponent=-1.0 must not be negative"),
        (
            Buffer(2, 2),
            fed_avg()._replace(uplink=clip(1.0), aggregate=fixed_mean(3.0)),
            "gives every client the same weight, however stale; use staleness_exponent=0",
        ),
        (
            Buffer(2, 2),
            algorithms.mime(toy_loss, optax.sgd(0.05)),
            "cannot be asynchronous: .*take turns",
        ),
    ],
)
def test_what_cannot_be_is_refused(buffer, algorithm, message):
    with pytest.raises(ValueError, match=message):
        play(algorithm, 1, buffer=buffer)


def test_speeds_are_drawn_by_client_or_read_from_a_file(tmp_path):
    drawn = speeds.lognormal(0.5, seed=0)
    seconds = np.array([drawn(i, 0) for i in range(2000)])
    assert drawn(5, 0) == drawn(5, 9) != drawn(6, 0)
    assert np.log(seconds).std() == pytest.approx(0.5, rel=0.1)
    assert np.median(seconds) == pytest.approx(1, rel=0.1)
    (tmp_path / "trace.jsonl").write_text("[1, 2]\n[3, 4]\n\n")
    np.save(tmp_path / "trace.npy", [5.0, 6.0])
    trace, constant = (
        speeds.read_speeds(tmp_path / f"trace.{kind}", 2) for kind in ("jsonl", "npy")
    )
    assert [trace(1, round) for round in range(3)] == [3, 4, 3]
    assert constant(0, 7) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n", r"\(2,\) seconds for 3 clients"),
        ("1\n-2\n3\n", "speeds of client 1 are not all positive"),
        ("1\n[2, 3]\n4\n", "equally long lists"),
        ("1\nfast\n4\n", "one line per client"),
    ],
)
def test_a_bad_trace_is_refused(tmp_path, text, message):
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        speeds.read_speeds(path, 3)
