"""Costs of a model before its first step: loading its files, and compiling its layers.

Also how much memory quantized weights save, and how far they change the results.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from fedjax_post.adapters.lora import add_lora
from fedjax_post.core.wire import num_bytes
from fedjax_post.experiments.benchmark.lines import Aim, Figure, ratio
from fedjax_post.experiments.benchmark.processes import ROOT
from fedjax_post.experiments.benchmark.settings import Settings, select
from fedjax_post.hub.families import FAMILIES, read_config
from fedjax_post.hub.load import load_model
from fedjax_post.hub.tensors import INDEX
from fedjax_post.hub.weights import expected_tensors
from fedjax_post.model.codes import KINDS
from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.generate import Sampling, sample
from fedjax_post.model.views import init_model
from fedjax_post.objectives.sft import sft_loss

# 513 million weights, 26 million of them in a layer
LARGE = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 18,
    "num_attention_heads": 20,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
TINY = {**LARGE, "vocab_size": 64, "hidden_size": 128, "intermediate_size": 256}
SHALLOW, DEEP = 4, 24
# Prints seconds, the bytes by which the process grew at most, and those of the model
_LOAD = """
import json, resource, sys, time
import jax
from fedjax_post.hub.load import load_model, num_parameters
jax.block_until_ready(jax.numpy.zeros(1) + 1)
folder, quantize = sys.argv[1:]
page = resource.getpagesize()
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * page
before, began = resident(), time.perf_counter()
model = jax.block_until_ready(load_model(folder, dtype="bfloat16", quantize=quantize))
print(json.dumps({
    "seconds": time.perf_counter() - began,
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
    "model_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(model.variables)),
    "parameters": num_parameters(model),
}))
"""


def measure(settings: Settings) -> Iterator[Figure]:
    """Yields the cost of loading, the errors of quantized weights, and compile time by depth."""
    parts = {"loading": _loading, "codes": _codes, "depth": _depth}
    for _, part in select(parts, settings):
        yield from part(settings)


def _loading(settings: Settings) -> Iterator[Figure]:
    raw = TINY if settings.tiny else LARGE
    with tempfile.TemporaryDirectory() as folder:
        layer = write_random(Path(folder), raw)
        for kind in ("none", "int8", "nf4"):
            found = load_elsewhere(Path(folder), kind)
            name = "loading in bfloat16" if kind == "none" else f"loading as {kind}"
            details = {**found, "layer_bytes": layer}
            yield Figure(f"{name}: time", found["seconds"], "s", details=details)
            # for quantized weights the stored layer is not counted, from which they are computed
            peak = found["peak_bytes"] - (0 if kind == "none" else layer)
            aim = None if settings.tiny else Aim(1.2, at_least=False)
            title = f"{name}: peak host memory{'' if kind == 'none' else ' but a layer'} over model"
            yield Figure(title, peak / found["model_bytes"], "ratio", aim=aim, details=details)


def write_random(folder: Path, raw: dict[str, Any], *, seed: int = 0) -> int:
    """Writes a model folder of random bfloat16 weights, a shard a layer; returns a layer's bytes.

    Args:
      folder: where it is written; it must exist.
      raw: the content of config.json.
      seed: of the weights.
    """
    shapes = expected_tensors(FAMILIES[raw["model_type"]], read_config(raw))
    shards: dict[str, list[str]] = {}
    for name in shapes:
        parts = name.split(".")
        shards.setdefault(parts[2] if parts[1] == "layers" else "ends", []).append(name)
    rng, weight_map = np.random.default_rng(seed), {}
    for shard, names in shards.items():
        tensors = {
            name: rng.standard_normal(shapes[name], np.float32).astype(ml_dtypes.bfloat16)
            for name in names
        }
        file = f"model-{shard}.safetensors"
        save_file(tensors, folder / file)
        weight_map.update(dict.fromkeys(names, file))
        if shard == "0":
            layer = sum(value.nbytes for value in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(raw))
    return layer


def load_elsewhere(folder: Path, quantize: str) -> dict[str, Any]:
    """Loads a folder in a separate process, and returns seconds and bytes."""
    command = [sys.executable, "-c", _LOAD, str(folder), quantize]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


def _codes(settings: Settings) -> Iterator[Figure]:
    """Compares logits on text that the model itself samples at temperature 1, so without data."""
    exact = load_model(settings.model, dtype="bfloat16")
    start = jnp.full((8, 1), 1, jnp.int32)
    rule = Sampling(64, eos_id=-1, pad_id=0, temperature=1.0)
    tokens = sample(exact, {}, start, start > 0, rule=rule, key=jax.random.key(0))
    logits = exact.logits({}, tokens)
    for kind in KINDS:
        model = load_model(settings.model, dtype="bfloat16", quantize=kind)
        share = num_bytes(model.variables) / num_bytes(exact.variables)
        found = model.logits({}, tokens)
        same = float((found.argmax(-1) == logits.argmax(-1)).mean())
        details = {"model": settings.model, "same_most_likely_token": same}
        yield Figure(f"{kind}: whole model over bfloat16", share, "ratio", details=details)
        error = float(jnp.sqrt(jnp.square(found - logits).mean() / logits.var()))
        title = f"{kind}: error of logits over their deviation, root mean square"
        yield Figure(title, error, "ratio", details=details)


def _depth(settings: Settings) -> Iterator[Figure]:
    width = 32 if settings.tiny else 256
    times: dict[int, list[float]] = {SHALLOW: [], DEEP: []}
    for turn in range(settings.warm_up + settings.turns):
        for depth in times:
            # each turn has another length, because jax does not trace the same shapes twice
            seconds = seconds_to_compile(depth, width=width, length=64 + turn)
            times[depth] += [seconds] if turn >= settings.warm_up else []
    yield ratio(
        f"first step of {DEEP} layers over {SHALLOW}: trace and compile",
        times[DEEP],
        times[SHALLOW],
        aim=Aim(2.0, at_least=False),
        seconds=times[DEEP],
        seconds_shallow=times[SHALLOW],
    )


def seconds_to_compile(depth: int, *, width: int, length: int) -> float:
    """Returns the seconds to compile a step of four stacked clients under LoRA, without a cache.

    Args:
      depth: number of layers.
      width: of the residual stream.
      length: tokens of a row.
    """
    config = DecoderConfig(
        vocab_size=1024,
        hidden_size=width,
        intermediate_size=4 * width,
        num_layers=depth,
        num_heads=4,
        num_kv_heads=2,
        head_dim=width // 4,
        max_positions=256,
    )
    model, params = add_lora(
        init_model(config, jax.random.key(0)), jax.random.key(0), rank=4, alpha=8
    )
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), params)
    tokens = jnp.zeros((4, 2, length), jnp.int32)
    batch = {"tokens": tokens, "loss_mask": jnp.ones(tokens.shape, bool)}

    def step(params, model, batch):
        return jax.grad(lambda p: sft_loss(p, model, batch, None)[0])(params)

    mapped = jax.jit(jax.vmap(step, in_axes=(0, None, 0)))
    name = "jax_enable_compilation_cache"
    cached = getattr(jax.config, name)
    jax.config.update(name, False)
    try:
        began = time.perf_counter()
        mapped.lower(params, model, batch).compile()
        return time.perf_counter() - began
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
