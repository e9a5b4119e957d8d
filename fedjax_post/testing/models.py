"""Language models of a few thousand weights, for tests that need a real decoder."""

import zlib
from typing import Any

import jax
import numpy as np

from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.views import LanguageModel, init_model


def tiny_config(**changes: Any) -> DecoderConfig:
    """Returns a Llama config of two layers, width 16, and 32 tokens; `changes` replace fields."""
    fields = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 4,
        "max_positions": 64,
    }
    return DecoderConfig(**{**fields, **changes})


def tiny_model(seed: int = 0, **changes: Any) -> LanguageModel:
    """Returns a model of `tiny_config` whose logits differ clearly between tokens."""
    model = init_model(tiny_config(**changes), jax.random.key(seed))
    weights = dict(model.variables["params"])
    weights["embedding"] = weights["embedding"] * 25  # standard deviation 0.5
    return LanguageModel({"params": weights}, model.config)


def seeded_tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Returns float32 tensors that depend only on their names, shapes and the seed.

    Expected values from another library can thus be compared without stored weights. Matrices are
    normal with standard deviation 0.25; scales are normal around 1 and biases around 0, both with
    standard deviation 0.1.
    """
    tensors = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        is_scale = len(shape) == 1 and not name.endswith("bias")
        width = 0.25 if len(shape) > 1 else 0.1
        tensors[name] = (width * rng.standard_normal(shape) + is_scale).astype(np.float32)
    return tensors
