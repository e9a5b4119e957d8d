"""A run is resumed as the same run, from complete files, or refused with nothing changed."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_post as fp
from fedjax_post.algorithms import scaffold
from fedjax_post.data.clients import fingerprint_of
from fedjax_post.integrity import DamagedError, seal_file, write_sums
from fedjax_post.report.records import read_records
from fedjax_post.simulate.identity import array_hash
from fedjax_post.simulate.store import row_size_of
from fedjax_post.simulate.sweep import Grid, sweep
from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params
from fedjax_post.testing.toy import toy_arrays

ALGORITHM = scaffold(toy_loss, 0.05, participation=0.5)
DEVICE = fp.device(ALGORITHM)  # compiled once for all runs of this file


def play(rounds, *, clients=None, model=None, params=None, **plan):
    plan = {"sampler": fp.uniform(3), "executor": lambda _: DEVICE, "checkpoint_every": 2} | plan
    run = fp.run(
        ALGORITHM,
        toy_model() if model is None else model,
        clients or toy_clients(),
        params=toy_params() if params is None else params,
        rounds=rounds,
        plan=fp.Plan(**plan),
    )
    return list(run)


def bits(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def straight():
    """The bits of a run of six rounds that nothing has disturbed."""
    return bits(play(6)[-1][0])


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """The folder of a run after four rounds, with checkpoints of rounds 2 and 4."""
    folder = tmp_path_factory.mktemp("four")
    play(4, directory=folder, identity={"local_steps": "3"})
    return folder


@pytest.fixture
def run(four, tmp_path):
    return shutil.copytree(four, tmp_path / "run")


def resumed(run, **changes):
    return play(6, directory=run, resume=True, **{"identity": {"local_steps": "3"}, **changes})


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def files_of(run, rounds_done):
    return sorted(p for p in (run / "checkpoints" / f"{rounds_done}").rglob("*") if p.is_file())


def test_an_unchanged_run_ends_like_one_that_was_not_resumed(run, straight):
    assert bits(resumed(run)[-1][0]) == straight


def clients(change):
    """The toy clients with the arrays of one of them changed."""
    arrays = toy_arrays()
    arrays[2] = {name: np.array(change(leaf)) for name, leaf in arrays[2].items()}
    return dataclasses.replace(toy_clients(), arrays=arrays)


def moved(tree):
    """A tree with the first number of each leaf another one."""
    return jax.tree.map(lambda x: x.at[(0,) * x.ndim].add(1e-3), tree)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, r"`seed` \(0 there, 1 here\)"),
        ({"clients": clients(lambda x: x + 1e-3)}, r"the rows that clients hold \(\w{16} there"),
        ({"clients": clients(lambda x: x[::-1])}, "the rows that clients hold"),
        ({"clients": clients(lambda x: x[: len(x) // 2])}, "the rows that clients hold"),
        ({"clients": toy_clients(local_steps=2)}, "the rows that clients hold"),
        (
            {"model": moved(toy_model())},
            r"differs .* the weights or the architecture of the frozen model \(\w",
        ),
        ({"params": moved(toy_params())}, "the parameters at the start"),
        ({"sampler": fp.uniform(2)}, "who takes part in the first rounds"),
        ({"feed": fp.pooled}, r"`feed` \(chunks there, pooled here\)"),
        ({"identity": {"local_steps": "5"}}, r"`local_steps` \(3 there, 5 here\)"),
        ({"identity": {}}, r"`local_steps` \(3 there, its default here\)"),
    ],
)
def test_another_run_is_refused_by_name_and_changes_nothing(run, changes, said):
    before = content(run)
    with pytest.raises(ValueError, match=said):
        resumed(run, **changes)
    assert content(run) == before


class Bare:
    """Clients that offer nothing beyond the protocol."""

    def __init__(self, clients):
        self._clients = clients

    def __len__(self):
        return len(self._clients)

    def visit(self, client_id, rng):
        return self._clients.visit(client_id, rng)

    def num_steps(self, client_id):
        return self._clients.num_steps(client_id)


def test_clients_without_a_fingerprint_are_told_by_their_visits():
    mine, other = Bare(toy_clients()), Bare(clients(lambda x: x + 1e-3))
    assert fingerprint_of(mine) == fingerprint_of(Bare(toy_clients())) != fingerprint_of(other)


def test_what_is_to_change_may_change_and_nothing_else_may(run):
    sampler, model = fp.uniform(2), moved(toy_model())
    with pytest.raises(ValueError, match="in the weights or the architecture of the frozen model"):
        resumed(run, sampler=sampler, model=model, may_differ=("cohorts",))
    assert len(resumed(run, sampler=sampler, model=model, may_differ=("cohorts", "model"))) == 2


def test_a_damaged_checkpoint_gives_way_to_the_one_before(four, tmp_path, straight, caplog):
    """Every file of it, one after the other, by one bit; once cut, and once emptied."""
    names = [path.relative_to(four) for path in files_of(four, 4)]
    assert len(names) > 2
    changes = [damage] * len(names) + [lambda path: path.write_bytes(b""), lambda p: p.unlink()]
    for number, (change, name) in enumerate(zip(changes, [*names, *names[:2]], strict=True)):
        run = shutil.copytree(four, tmp_path / f"{number}")
        change(run / name)
        caplog.clear()
        begun = restore_only(run)
        assert begun.rounds_done == 2
        (line,) = caplog.messages
        assert line.startswith("going back to round 2: round 4: ")
        assert str(run / "checkpoints" / "4") in line
    assert bits(resumed(run)[-1][0]) == straight
    assert "continuing from round 2, later ones removed" in caplog.text


def restore_only(run):
    return fp.restore(run, ALGORITHM, toy_params())


def test_where_no_checkpoint_is_whole_nothing_is_made_up(run):
    for rounds_done in (2, 4):
        damage(files_of(run, rounds_done)[-1])
    before = content(run)
    told = "contains no intact checkpoint: round 4: .*; round 2: .*; restore one from a copy"
    for again in (resumed, restore_only):
        with pytest.raises(DamagedError, match=told):
            again(run)
    assert content(run) == before


def test_a_run_whose_checkpoints_are_gone_begins_again_and_says_so(run, straight, caplog):
    shutil.rmtree(run / "checkpoints")
    found = resumed(run)
    assert len(found) == 6
    assert bits(found[-1][0]) == straight
    assert caplog.messages == [f"{run} contains no checkpoint: beginning again from round 0"]


def test_a_damaged_client_state_is_refused_or_the_one_before_it_is_used(four, tmp_path, straight):
    """One bit in each row of the store: some are of both checkpoints, some of one or of none."""
    rows = (four / "clients" / "rows.bin").read_bytes()
    size = checked_rows(four)
    outcomes = set()
    for row in range(len(rows) // size):
        run = shutil.copytree(four, tmp_path / f"{row}")
        raw = bytearray(rows)
        raw[row * size + size // 2] ^= 16
        (run / "clients" / "rows.bin").write_bytes(raw)
        try:
            found = resumed(run)
        except DamagedError as error:
            outcomes.add("refused" if "the state of client" in str(error) else str(error))
        else:
            assert bits(found[-1][0]) == straight
            outcomes.add(len(found))
    assert {"refused", 4} <= outcomes <= {"refused", 2, 4}


def checked_rows(run):
    like = fp.simulate.client_state_like(ALGORITHM, toy_model(), toy_clients(), toy_params())
    return row_size_of(like)


@pytest.mark.parametrize("line", [1, 3])
def test_a_damaged_record_is_written_again_or_refused(run, straight, line):
    path = run / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[line] = lines[line].replace('"cohort": 3', '"cohort": 2')
    path.write_text("".join(lines))
    if line == 1:  # a record of all checkpoints
        with pytest.raises(DamagedError, match=r"records.jsonl, line 2, is damaged"):
            resumed(run)
        return
    assert bits(resumed(run)[-1][0]) == straight
    assert [record["cohort"] for record in read_records(run)] == [3] * 6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (seal_file({"version": [[1, 2, 3]], "identity": {}}), "does not describe a checkpoint"),
        (seal_file({"version": 3, "identity": {}}), "does not describe a checkpoint"),
        ("[" * 50_000, "is not JSON"),
        ("[1]", "is not a JSON object but list"),
    ],
)
def test_a_malformed_meta_file_is_named(run, content, said):
    for rounds_done in (2, 4):
        (run / "checkpoints" / f"{rounds_done}" / "meta.json").write_text(content)
        write_sums(run / "checkpoints" / f"{rounds_done}")
    with pytest.raises(DamagedError, match=f"meta.json {said}"):
        restore_only(run)


def test_what_a_kill_left_of_a_checkpoint_is_no_checkpoint(run, straight):
    """In the middle of its files, before its checksums, and with the old one still there."""
    shutil.copytree(run / "checkpoints" / "4", run / "checkpoints" / ".unfinished-6")
    (run / "checkpoints" / ".unfinished-6" / "SHA256SUMS").unlink()
    assert bits(resumed(run)[-1][0]) == straight
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["4", "6"]


def test_checkpoints_and_client_states_are_for_this_user_alone(run):
    for name in ("checkpoints", "clients"):
        for path in (run / name, *(run / name).rglob("*")):
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_checkpoint_every_round_keeps_the_disk_flat(tmp_path):
    sizes = []

    def watch(state, record):
        files = [*(tmp_path / "checkpoints").rglob("*"), tmp_path / "clients" / "rows.bin"]
        sizes.append(sum(path.stat().st_size for path in files if path.is_file()))

    play_watched(tmp_path, watch)
    assert max(sizes[8:]) <= 1.1 * max(sizes[3:8])


def play_watched(directory, watch):
    plan = fp.Plan(
        sampler=fp.uniform(3), executor=lambda _: DEVICE, directory=directory, checkpoint_every=1
    )
    for _ in fp.run(
        ALGORITHM, toy_model(), toy_clients(), params=toy_params(), rounds=14, plan=plan,
        callbacks=[watch],
    ):  # fmt: skip
        pass


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.int8, jnp.int4, bool, jnp.uint32, jnp.complex64]
)
def test_the_hash_of_arrays_sees_every_element_and_its_place(dtype):
    one = (jnp.arange(24) % 2).reshape(2, 3, 4).astype(dtype)
    hashes = {array_hash(one), array_hash(one.reshape(4, 6)), array_hash(one[::-1, :, ::-1])}
    for place in np.ndindex(one.shape):
        hashes.add(array_hash(one.at[place].set((1 - one[place]).astype(dtype))))
    assert len(hashes) == 24 + 3
    assert array_hash({"a": one, "b": 1}) == array_hash({"a": jnp.array(one), "b": 1})
    assert array_hash([one, 1]) != array_hash([one, 2])


def test_a_sweep_is_resumed_over_the_same_data_alone(tmp_path):
    def start(rounds, model, resume):
        make = lambda learning_rate: scaffold(toy_loss, learning_rate, participation=0.5)
        plan = fp.Plan(sampler=fp.uniform(3), directory=tmp_path, resume=resume)
        grid = Grid({"learning_rate": [0.05]})
        found = sweep(
            make, model, toy_clients(), grid=grid, params=toy_params(), rounds=rounds, plan=plan
        )
        return list(found)

    start(1, toy_model(), resume=False)
    with pytest.raises(ValueError, match="the weights or the architecture of the frozen model"):
        start(2, moved(toy_model()), resume=True)
    assert len(start(2, toy_model(), resume=True)) == 1
