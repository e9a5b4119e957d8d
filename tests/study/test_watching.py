"""Records elsewhere: what is shown is what the records say, and the readers of others agree."""

import importlib.util
import struct

import pytest

from fedjax_post import study
from fedjax_post.study import Spec, watching
from fedjax_post.study.files import check_trusted, from_json, to_json

RECORDS = [
    {"round": n, "loss": 2.0 - n, "dropped": [], "eval_loss": float("nan") if n else 0.5}
    for n in range(4)
]
SPEC = Spec().put({"execution.watch": ["tensorboard", "wandb"], "training.rounds": 4})


def show(name, directory, records, *, rounds_done=0):
    directory.mkdir(exist_ok=True)
    spec = SPEC.put({"execution.watch": [name]})
    with watching.watched(spec, directory, rounds_done=rounds_done) as (callback,):
        for record in records:
            before = dict(record)
            assert callback(None, record) is None
            assert record.keys() == before.keys()


def needs(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")


def test_only_finite_numbers_are_shown():
    assert watching.numbers_of(RECORDS[0]) == {"loss": 2.0, "eval_loss": 0.5}
    assert watching.numbers_of(RECORDS[1]) == {"loss": 1.0}


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("tensorboard", "wandb", "mlflow"):
        remedy = rf"pip install 'fedjax_post\[{name}\]'"
        with pytest.raises(ImportError, match=f"watch={name} needs {name}.*; {remedy}"):
            watching.check(SPEC.put({"execution.watch": [name]}))


def test_an_unknown_observer_is_refused():
    with pytest.raises(ValueError, match="watch=wandbb is no choice; did you mean wandb"):
        SPEC.put({"execution.watch": ["wandbb"]})


def test_a_file_cannot_send_records_in_the_users_name():
    spec = from_json(to_json(SPEC))
    assert spec == SPEC
    with pytest.raises(ValueError, match=r"watch=tensorboard,wandb, and records would be sent"):
        check_trusted(spec, {}, source="spec.json")
    check_trusted(spec, {"execution.watch": ("wandb",)}, source="spec.json")
    check_trusted(SPEC.put({"execution.watch": ["tensorboard"]}), {}, source="spec.json")


@pytest.mark.oracle
def test_tensorboard_reads_the_records(tmp_path):
    needs("tensorboardX")
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    show("tensorboard", tmp_path / "run", RECORDS[:3])
    resumed = [record | {"loss": 7.0} for record in RECORDS[2:]]  # round 2 again, then round 3
    show("tensorboard", tmp_path / "run", resumed, rounds_done=2)
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    points = lambda name: [(event.step, event.value) for event in found.Scalars(name)]
    assert points("loss") == [(1, 2.0), (2, 1.0), (3, 7.0), (4, 7.0)]
    assert points("eval_loss") == [(1, 0.5)]


def wandb_records(data):
    """The messages in a file of W&B, which is a log of LevelDB after a header of 7 bytes."""
    place, message, block = 7, b"", 32768
    while place + 7 <= len(data):
        if block - place % block < 7:  # no room for a header: the block's end is filled
            place += block - place % block
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        message += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield message
            message = b""


@pytest.mark.oracle
def test_weights_and_biases_has_the_records_offline(tmp_path, monkeypatch):
    needs("wandb")
    import wandb
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    show("wandb", tmp_path / "run", RECORDS)
    wandb.teardown()  # its service writes the file by then
    (path,) = (tmp_path / "run").rglob("run-*.wandb")
    found = []
    for data in wandb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.HasField("history"):
            items = {"/".join([i.key, *i.nested_key]).strip("/"): i for i in record.history.item}
            found.append((record.history.step.num, float(items["loss"].value_json)))
    assert found == [(n + 1, 2.0 - n) for n in range(4)]


@pytest.mark.oracle
def test_mlflow_has_the_records(tmp_path, monkeypatch):
    needs("mlflow")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    show("mlflow", tmp_path / "run", RECORDS[:2])
    show("mlflow", tmp_path / "run", RECORDS[2:], rounds_done=2)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("fedjax_post")
    (run,) = client.search_runs([experiment.experiment_id])
    found = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")]
    assert sorted(found) == [(n + 1, 2.0 - n) for n in range(4)]
    assert run.info.status == "FINISHED"
    assert run.data.params["training.rounds"] == "4"


@pytest.mark.heavy
def test_a_run_writes_event_files_on_request(tiny_folder, tiny_rows, tmp_path):
    needs("tensorboardX")
    spec = Spec(model=str(tiny_folder), data=str(tiny_rows)).put(
        {
            **{"method.name": "fed_avg", "adapter.rank": 2, "data.heldout_fraction": 0.5},
            **{"training.rounds": 1, "training.local_steps": 1, "training.batch_size": 2},
            **{"scoring.every": 0, "scoring.exact_match": "off"},
            "execution.watch": ["tensorboard"],
        }
    )
    job = study.prepare(spec, directory=tmp_path / "run")
    assert [record["round"] for _, record in job.run()] == [0]
    (file,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"tokens_per_second" in file.read_bytes()
