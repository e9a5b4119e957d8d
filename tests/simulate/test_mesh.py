"""Meshes: eight devices compute what one does, each its share, and the base stays split."""

import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

import fedjax_post as fp
from fedjax_post.model.decoder import weight_shapes
from fedjax_post.model.quantize import quantize_model
from fedjax_post.simulate import mesh as meshes
from fedjax_post.testing.models import tiny_config, tiny_model
from tests.simulate import layouts


def played(what, path):
    """What `layouts` wrote from a process with eight devices."""
    eight = "--xla_force_host_platform_device_count=8"
    env = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {eight}",
        "NPROC": "32",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    command = [sys.executable, "-m", "tests.simulate.layouts", what, str(path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return pickle.loads(path.read_bytes())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What came out on one device and on eight, the usual cases."""
    return played("usual", tmp_path_factory.mktemp("layouts") / "usual")


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    """Every other kind of algorithm on every other layout."""
    return played("rest", tmp_path_factory.mktemp("layouts") / "rest")


def assert_close(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def assert_alike(one, other):
    """Equal states, records and, where they are given, answers."""
    (expected, lines, answers), (state, records, others) = one, other
    assert_close(expected, state)
    timed = {"seconds", "tokens_per_second", "padding"}
    for record, line in zip(records, lines, strict=True):
        assert record.keys() == line.keys()
        for key in record.keys() - timed:
            assert record[key] == pytest.approx(line[key], rel=1e-5)
    if answers is not None:
        np.testing.assert_array_equal(answers[0], others[0])
        np.testing.assert_allclose(answers[1], others[1], atol=1e-4)


@pytest.mark.heavy
@pytest.mark.parametrize(("layout", "name"), layouts.USUAL)
def test_devices_do_not_matter(found, layout, name):
    """Nor to generation and logits, over a split base with a folded residual."""
    assert_alike(found["one", name], found[layout, name])


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "name"), layouts.REST)
def test_no_layout_matters_to_any_kind(found, rest, layout, name):
    assert_alike(found["one", name], rest[layout, name])


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["codes", "buffered"])
def test_devices_do_not_matter_to(found, name):
    """A base of codes whose blocks are split, and clients that begin from several replicas."""
    one, split = found["variants"]
    assert_close(one[name], split[name])


@pytest.mark.heavy
def test_no_device_holds_the_whole_base(found):
    """Norms, a per cent or two of this small base, are whole everywhere."""
    held = [found["held"][layout] for layout in layouts.LAYOUTS]
    np.testing.assert_allclose(held, [1, 1 / 2, 1 / 8], atol=0.02)


def base_sizes():
    """Sizes of the axes of every base matrix, sorted, axes of size 1 left out."""
    shapes = weight_shapes(layouts.MODEL.config).values()
    return {tuple(sorted(n for n in s if n > 1)) for s in shapes if sum(n > 1 for n in s) > 1}


def of_base_size(crossed):
    return [item for item in crossed if tuple(sorted(item[1])) in base_sizes()]


@pytest.mark.heavy
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_no_base_matrix_crosses_between_devices(found, layout):
    crossed, _ = found["compiled"][layout]
    assert crossed
    assert of_base_size(crossed) == []


@pytest.mark.heavy
def test_a_base_split_along_the_clients_would_be_gathered(found):
    """The law above would notice."""
    gathered = {shape for kind, shape in of_base_size(found["misplaced"][0])}
    assert {(40, 32), (40, 48)} <= gathered


@pytest.mark.heavy
def test_only_sums_cross_between_clients(found):
    """One sum for the adapter; what is gathered are reports, a number a client."""
    crossed, _ = found["compiled"]["clients:8"]
    assert {shape for kind, shape in crossed if kind == "all-gather"} == {(8,)}
    adapters = [s for kind, s in crossed if kind == "all-reduce" and len(s) == 2]
    assert sorted(adapters) == sorted(
        tuple(n for n in x.shape if n > 1) for x in jax.tree.leaves(layouts.PARAMS)
    )


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("layout", "overhead"), list(zip(layouts.LAYOUTS, (1.05, 1.2, 1.7), strict=True))
)
def test_each_device_computes_its_share(found, layout, overhead):
    """Along the model axis norms and the inner products of adapters are computed by all."""
    assert found["compiled"][layout][1] <= overhead * found["alone"] / 8


@pytest.mark.heavy
def test_a_checkpoint_restores_on_another_layout(found):
    """From one device to 4 x 2 and back, client states included."""
    for state in found["resumed"]:
        assert_close(found["straight"], state)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ("clients:8", "mesh=clients:8 is for 8 devices and there are 1; give .* clients:1"),
        ("clients:2,model:2", "is for 4 devices .*xla_force_host_platform_device_count=4"),
        ("data:1", "names axes .'data'.; there are clients and model"),
        ("clients:1,clients:1", "each at most once"),
        ("clients", "gives clients the size ''; give a whole number"),
        ("clients:two", "gives clients the size 'two'"),
        ("model:0", "gives model the size '0'"),
    ],
)
def test_a_bad_mesh_is_refused(axes, said):
    with pytest.raises(ValueError, match=said):
        fp.make_mesh(axes)


def test_a_mesh_of_other_axes_is_refused():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    with pytest.raises(ValueError, match="a mesh has axes clients and model, got"):
        fp.on_mesh(mesh)


def test_threads_that_would_not_suffice_are_refused(monkeypatch):
    """Two devices on two threads may each hold one and wait for the other."""
    device = lambda: type("Device", (), {"platform": "cpu", "process_index": 0})()
    mesh = type("Two", (), {"devices": np.array([device(), device()])})()
    monkeypatch.setenv("NPROC", "2")
    with pytest.raises(ValueError, match="on 2 threads may wait .* set NPROC=8"):
        meshes._check_threads(mesh)
    monkeypatch.setenv("NPROC", "8")
    meshes._check_threads(mesh)


@pytest.mark.parametrize(
    ("size", "changes", "said"),
    [
        (8, {}, "cannot share num_heads=4 of this model; give model a size that divides it"),
        (4, {}, "cannot share num_kv_heads=2"),
        (4, {"num_kv_heads": 4, "intermediate_size": 26}, "cannot share intermediate_size=26"),
    ],
)
def test_heads_that_cannot_be_shared_are_refused(size, changes, said):
    mesh = AbstractMesh((1, size), ("clients", "model"))
    with pytest.raises(ValueError, match=f"model:{size} {said}"):
        meshes.check_divides(tiny_config(**changes), mesh)


def test_a_vocabulary_that_does_not_divide_is_whole():
    assert meshes.weight_spec("embedding", (31, 16), 2) == PartitionSpec()
    assert meshes.weight_spec("embedding", (32, 16), 2) == PartitionSpec("model", None)
    assert meshes.weight_spec("head", (16, 32), 2) == PartitionSpec(None, "model")


@pytest.mark.heavy
def test_codes_are_split_like_the_weights_they_stand_for():
    model = quantize_model(tiny_model(hidden_size=128, intermediate_size=256), "nf4")
    layers = model.variables["quantized"]["layers"]
    for name, axis in (("gate_proj", 2), ("down_proj", 1)):
        for leaf, value in layers["mlp"][name].items():
            spec = meshes.weight_spec(f"layers.mlp.{name}.{leaf}", value.shape, 2)
            assert spec[axis] == "model"
    with pytest.raises(ValueError, match="o_proj.scales .* blocks of rows must divide too"):
        meshes.weight_spec(
            "layers.attention.o_proj.scales", layers["attention"]["o_proj"]["scales"].shape, 2
        )


def test_a_model_of_any_other_kind_is_whole_everywhere():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("model",))
    placed = fp.put_on_mesh({"weights": np.ones((4, 3))}, mesh)["weights"]
    assert placed.sharding.spec == PartitionSpec()
