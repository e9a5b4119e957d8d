"""Recorded messages: what is written is what was sent, and nothing else changes."""

import jax
import numpy as np
import optax
import pytest

import fedjax_post
from fedjax_post.algorithms import fed_avg
from fedjax_post.core import cast, clip, unpack, with_uplink
from fedjax_post.integrity import DamagedError
from fedjax_post.privacy import secure_sum
from fedjax_post.simulate import recording
from fedjax_post.simulate.recording import Recording
from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params


def run(algorithm, directory=None, *, chunk_size=3, executor=fedjax_post.device, **wire):
    plan = fedjax_post.Plan(
        sampler=fedjax_post.uniform(4),
        chunk_size=chunk_size,
        executor=executor,
        directory=directory,
        recording=Recording(**wire) if wire else None,
    )
    given = {"params": toy_params(), "rounds": 3, "plan": plan}
    return list(fedjax_post.run(algorithm, toy_model(), toy_clients(), **given))


def test_recording_changes_no_result(tmp_path):
    algorithm = fed_avg(toy_loss, optax.sgd(0.1))
    plain, recorded = run(algorithm), run(algorithm, tmp_path, rounds=range(3))
    for (one, _), (other, _) in zip(plain, recorded, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.shared, other.shared)


@pytest.mark.heavy
@pytest.mark.parametrize("executor", [fedjax_post.device, fedjax_post.host])
def test_recorded_uploads_average_to_the_servers_step(tmp_path, executor):
    algorithm = fed_avg(toy_loss, optax.sgd(0.1))
    states = run(algorithm, tmp_path, executor=executor, rounds=range(1, 2))
    ((round, messages),) = recording.read(tmp_path)
    assert round == 1
    down, *ups = messages
    before, after = states[0][0].shared, states[1][0].shared
    jax.tree.map(np.testing.assert_array_equal, unpack(down.data, before), before)
    weights = np.array([up.weight for up in ups])
    changes = [unpack(up.data, before) for up in ups]
    mean = jax.tree.map(lambda *x: np.average(x, axis=0, weights=weights), *changes)
    step = jax.tree.map(np.subtract, after, before)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), mean, step)


def test_a_file_has_the_bytes_that_are_counted(tmp_path):
    """Those of the packed message; the records also count 4 bytes for each weight."""
    algorithm = with_uplink(fed_avg(toy_loss, optax.sgd(0.1)), cast("bfloat16"))
    (_, record), *_ = run(algorithm, tmp_path, rounds=range(1))
    ((_, messages),) = recording.read(tmp_path)
    sizes = [len(message.data) + 4 for message in messages if message.kind == recording.UP]
    assert sum(sizes) == record["bytes_up"]
    assert len(sizes) == 4


def test_chosen_clients_alone_are_recorded(tmp_path):
    algorithm = fed_avg(toy_loss, optax.sgd(0.1))
    run(algorithm, tmp_path / "all", rounds=range(1))
    ((_, messages),) = recording.read(tmp_path / "all")
    chosen = messages[2].clients
    run(algorithm, tmp_path / "one", rounds=range(1), clients=chosen)
    ((_, (down, only)),) = recording.read(tmp_path / "one")
    assert only == messages[2]
    assert down == messages[0]


@pytest.mark.heavy
@pytest.mark.parametrize("only_sums", [False, True])
def test_recording_compiles_nothing_after_its_first_round(tmp_path, only_sums):
    """Functions of an algorithm are called only while a program is traced."""

    def traced(rounds):
        algorithm, calls = with_uplink(fed_avg(toy_loss, optax.sgd(0.1)), clip(1.0)), []
        if only_sums:
            algorithm = secure_sum(algorithm, threshold=2, max_clients=4, max_weight=64.0, seed=0)
        count = lambda fn: lambda *args: [calls.append(fn), fn(*args)][1]
        algorithm = algorithm._replace(
            downlink=algorithm.downlink._replace(encode=count(algorithm.downlink.encode)),
            aggregate=algorithm.aggregate._replace(finish=count(algorithm.aggregate.finish)),
        )
        run(algorithm, tmp_path / str(len(rounds)), rounds=rounds, only_sums=only_sums)
        return len(calls)

    assert traced(range(3)) == traced(range(1)) > 0


def test_under_secure_sums_no_upload_is_recorded(tmp_path):
    base = with_uplink(fed_avg(toy_loss, optax.sgd(0.1)), clip(1.0))
    algorithm = secure_sum(base, threshold=2, max_clients=4, max_weight=64.0, seed=0)
    run(algorithm, tmp_path, rounds=range(1), only_sums=True)
    ((_, messages),) = recording.read(tmp_path)
    assert [message.kind for message in messages] == [recording.DOWN, recording.SUM]
    assert len(messages[1].clients) == 4


def test_a_changed_message_is_refused(tmp_path):
    run(fed_avg(toy_loss, optax.sgd(0.1)), tmp_path, rounds=range(1))
    path = next((tmp_path / recording.FOLDER).rglob("*-up.bin"))
    path.write_bytes(b"\x01" + path.read_bytes()[1:])
    with pytest.raises(DamagedError, match="up.bin"):
        list(recording.read(tmp_path))


def test_recording_needs_a_directory_and_reading_a_recording(tmp_path):
    with pytest.raises(ValueError, match="directory"):
        run(fed_avg(toy_loss, optax.sgd(0.1)), rounds=range(1))
    with pytest.raises(FileNotFoundError, match="record_wire"):
        list(recording.read(tmp_path))
