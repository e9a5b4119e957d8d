"""--mesh on the command line; `tests/simulate/test_mesh.py` has eight devices."""

import shutil

import pytest
from jax.sharding import AbstractMesh

import fedjax_post
from fedjax_post.experiments import train
from fedjax_post.experiments.flags import changes_in
from fedjax_post.report.records import read_records
from fedjax_post.study import Spec, devices
from fedjax_post.testing.models import tiny_config

AXES = ("clients", "model")


def untimed(run):
    timed = ("seconds", "tokens_per_second")
    return [{k: v for k, v in r.items() if k not in timed} for r in read_records(run)]


@pytest.mark.heavy
def test_a_mesh_of_one_device_is_one_device(call, finished, tmp_path):
    """And a run goes on over another mesh than it began with."""
    assert call("--mesh=clients:1,model:1", into="run") == 0
    assert untimed(tmp_path / "run") == untimed(finished)
    run = shutil.copytree(finished, tmp_path / "copy")
    assert train.main(["train", f"--output_dir={run}", "--resume", "--mesh=model:1"]) == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--mesh=clients:2 --baseline=central", "baseline=central trains one client; give"),
        ("--mesh=model:2 --adapter=full", "adapter=full freezes nothing; give clients:2"),
        ("--mesh=model:3", "mesh.* with model:3 cannot share num_heads=4 of this model"),
    ],
)
def test_what_cannot_be_spread_is_refused(monkeypatch, given, said):
    """On as many devices as the mesh asks for, which this process lacks."""

    def make(axes):
        name, size = axes.split(":")
        return AbstractMesh((int(size), 1) if name == "clients" else (1, int(size)), AXES)

    monkeypatch.setattr(fedjax_post, "make_mesh", make)
    with pytest.raises(ValueError, match=said):
        devices.find_mesh(Spec().put(changes_in(given.split())), tiny_config())
