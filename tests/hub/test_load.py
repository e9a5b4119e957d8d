"""Laws of loading and saving: a round trip changes nothing, damage is named."""

import json
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fedjax_post.adapters.lora import add_lora, lora_delta
from fedjax_post.hub.files import find_folder
from fedjax_post.hub.load import load_config, load_model, num_parameters, save_model
from fedjax_post.hub.tokenizer import check_tokenizer, load_tokenizer
from fedjax_post.model.views import init_model
from fedjax_post.testing.models import tiny_config, tiny_model

TOKENS = jnp.array([[1, 2, 3, 4]])


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "model", tiny_model())
    return tmp_path / "model"


def edit_config(folder, **changes):
    raw = json.loads((folder / "config.json").read_text())
    raw.update(changes)
    (folder / "config.json").write_text(json.dumps(raw))


def edit_tensors(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("tied", [True, False])
def test_saved_model_loads_the_same(tmp_path, tied):
    model = tiny_model(tied_head=tied)
    save_model(tmp_path, model)
    again = load_model(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.variables, model.variables)
    np.testing.assert_array_equal(again.logits({}, TOKENS), model.logits({}, TOKENS))
    assert num_parameters(again) == num_parameters(model)


@pytest.mark.parametrize("read", ["bfloat16", "mixed", "float16"])
def test_a_folder_wider_than_the_model_has_the_whole_sum(tmp_path, read):
    """An adapter's small additions are not rounded to the model's own steps."""
    save_model(tmp_path / "base", tiny_model())
    model, params = add_lora(
        load_model(tmp_path / "base", dtype=read), jax.random.key(0), rank=2, alpha=4
    )
    params = jax.tree.map(lambda leaf: 0.01 * (leaf + 0.1), params)
    save_model(tmp_path / "sum", model, params=params, dtype="float32")
    kernels = lambda model: model.variables["params"]["layers"]["mlp"]["up_proj"]["kernel"]
    added = lora_delta(model, params)["layers"]["mlp"]["up_proj"]["kernel"]
    wanted = kernels(model).astype(jnp.float32) + added
    np.testing.assert_allclose(kernels(load_model(tmp_path / "sum")), wanted, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtypes_are_kept(tmp_path, dtype):
    model = tiny_model()
    save_model(tmp_path, model, dtype=dtype)
    again = load_model(tmp_path, dtype=dtype)
    cast = jax.tree.map(lambda leaf: leaf.astype(dtype), model.variables)
    jax.tree.map(np.testing.assert_array_equal, again.variables, cast)
    assert again.config.dtype == dtype
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype


def test_weights_go_straight_to_their_sharding(folder):
    mesh = jax.make_mesh((1,), ("model",))

    def columns(path, shape):
        split = (None,) * (len(shape) - 1) + ("model",) if path.endswith("kernel") else ()
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*split))

    weights = load_model(folder, sharding_fn=columns).variables["params"]
    kernel = weights["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, None, "model")
    jax.tree.map(np.testing.assert_array_equal, weights, tiny_model().variables["params"])


def test_saved_adapter_is_merged(tmp_path):
    model, params = add_lora(tiny_model(), jax.random.key(0), rank=2, alpha=4)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    save_model(tmp_path, model, params=params, run="seed 3 of commit abc")
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata()["run"] == "seed 3 of commit abc"
    np.testing.assert_allclose(
        load_model(tmp_path).logits({}, TOKENS), model.logits(params, TOKENS), atol=2e-5
    )


def test_shards_equal_one_file(folder):
    whole = load_model(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        shard = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard)
        weight_map.update(dict.fromkeys(part, shard))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    jax.tree.map(np.testing.assert_array_equal, load_model(folder).variables, whole.variables)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="shard model-00002-of-00002.safetensors"):
        load_model(folder)


def test_missing_files_are_named(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no config.json"):
        load_model(folder)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_model(tmp_path / "absent")


def test_truncated_weights_are_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for keep in (len(whole) - 1, 100, 4, 0):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match="truncated"):
            load_model(folder)
    path.write_bytes(whole[:8] + b"x" * (len(whole) - 8))
    with pytest.raises(ValueError, match="invalid JSON in header"):
        load_model(folder)


def test_tensors_that_do_not_fit_are_named(folder):
    whole = (folder / "model.safetensors").read_bytes()
    norm = "model.norm.weight"

    def pop(tensors):
        del tensors[norm]

    def add(tensors):
        tensors["model.layers.7.extra"] = np.zeros((2, 3), np.float32)

    def reshape(tensors):
        tensors[norm] = np.zeros(5, np.float32)

    for edit, words in [
        (pop, r"1 tensors are missing: model.norm.weight \(16,\)"),
        (add, r"no place in a llama: model.layers.7.extra \(2, 3\)"),
        (reshape, r"wrong shapes: model.norm.weight is \(5,\), expected \(16,\)"),
    ]:
        edit_tensors(folder, edit)
        with pytest.raises(ValueError, match=words):
            load_model(folder)
        (folder / "model.safetensors").write_bytes(whole)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba' is not supported; supported are .*llama"),
        ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, "rope scaling 'spiral'"),
        ({"rope_scaling": {"rope_type": "linear", "swirl": 2.0}}, r"unknown fields \['swirl'\]"),
        ({"hidden_act": "maxout"}, "hidden_act 'maxout'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_unknown_switches_are_refused(folder, changes, words):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=words):
        load_model(folder)


def test_damaged_configs_are_refused(folder):
    (folder / "config.json").write_text('{"model_type": "llama"')
    with pytest.raises(ValueError, match="not JSON"):
        load_config(folder)
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 3}')
    with pytest.raises(ValueError, match="lacks the field 'num_attention_heads'"):
        load_config(folder)


def test_a_hub_name_without_network_says_how_to_get_it(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="neither a local folder nor in the local cache"):
        load_model("nobody/nothing")


@pytest.mark.parametrize("answers", [True, False])
def test_the_hub_is_asked_once_before_anything_is_tried_again(monkeypatch, tmp_path, answers):
    """A download tries every request six times, so without an answer only the cache is read."""
    import huggingface_hub

    asked = []

    def ask(self, name, *, revision, timeout):
        asked.append((name, revision, timeout <= 5))
        if not answers:
            raise TimeoutError("no answer")

    def download(name, *, local_files_only, **_):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", ask)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    if answers:
        assert find_folder("org/tiny", revision="v2") == tmp_path
    else:
        with pytest.raises(FileNotFoundError, match=r"loaded from the hub \(TimeoutError\)"):
            find_folder("org/tiny", revision="v2")
    assert asked == [("org/tiny", "v2", True)]


def test_a_cached_hub_name_is_found_by_revision_without_network(monkeypatch, tmp_path, folder):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    for revision in (None, "main", commit):
        model = load_model("org/tiny", revision=revision)
        jax.tree.map(np.testing.assert_array_equal, model.variables, tiny_model().variables)
    with pytest.raises(FileNotFoundError, match="in the local cache at revision v2"):
        load_model("org/tiny", revision="v2")


def test_dtype_is_checked(folder):
    with pytest.raises(ValueError, match="dtype=int8 is not supported; use one of"):
        load_model(folder, dtype="int8")


def test_architectures_without_a_config_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="only Llama's architecture"):
        save_model(tmp_path, tiny_model(qk_norm="head"))


def test_tokenizer_must_fit_the_embedding(test_data):
    tokenizer = load_tokenizer(test_data / "models" / "stories260K")
    check_tokenizer(tokenizer, tiny_config(vocab_size=512))
    with pytest.raises(ValueError, match="512 tokens but the model's embedding has 32"):
        check_tokenizer(tokenizer, tiny_config())


def test_a_folder_without_tokenizer_says_so(folder):
    with pytest.raises(FileNotFoundError, match="no tokenizer files"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], r"tokenizer.json is not JSON: .*line \d+ column"),
        (lambda text: "{}", "tokenizer.json does not hold a tokenizer"),
    ],
)
def test_a_damaged_tokenizer_is_named(tmp_path, damage, words):
    folder = tmp_path / "model"
    shutil.copytree(find_folder("builtin"), folder)
    path = folder / "tokenizer.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=f"{words}.*; copy or download it again"):
        load_tokenizer(folder)


def test_real_checkpoint_survives_a_round_trip(test_data, tmp_path):
    source = test_data / "models" / "stories260K"
    model = load_model(source)
    save_model(tmp_path, model)
    again = load_model(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.variables, model.variables)


def test_peak_memory_of_loading_is_the_model(tmp_path):
    """Numpy's memory: a 17 MB model in bfloat16 of a 34 MB file, read into its final place."""
    config = tiny_config(vocab_size=2**16, hidden_size=128, num_layers=1, num_heads=4, head_dim=32)
    weights = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(lambda: bare(config))
    )
    save_model(tmp_path, weights)
    load_model(tmp_path, dtype="bfloat16")  # traces are not counted
    tracemalloc.start()
    model = load_model(tmp_path, dtype="bfloat16")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.variables))
    assert size > 2**24
    assert peak < 1.2 * size


def bare(config):
    return init_model(config, jax.random.key(0))
