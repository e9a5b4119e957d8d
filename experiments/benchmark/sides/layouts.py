"""One federation of a small model, on any mesh of the available devices.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m experiments.benchmark.sides.layouts
"""

from collections import deque
from typing import Any

import jax
import numpy as np
import optax

import fedjax_post
from fedjax_post.adapters.lora import add_lora
from fedjax_post.algorithms import fed_avg
from fedjax_post.experiments import process
from fedjax_post.experiments.benchmark.lm_job import Job, data_of
from fedjax_post.experiments.benchmark.shapes import MEDIUM
from fedjax_post.experiments.benchmark.sides import channel
from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.views import init_model
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.simulate.mesh import make_mesh, on_mesh

_LORA: dict[str, Any] = {"rank": 8, "alpha": 16}


def main() -> None:
    """Runs the federation anew for each request, and compares the result with the first one."""
    out = channel.open_channel()
    process.prepare()
    config = DecoderConfig(**{**MEDIUM, "vocab_size": 512, "num_layers": 2})
    model, params = add_lora(init_model(config, jax.random.key(0)), jax.random.key(0), **_LORA)
    job = Job("random", length=32, num_clients=8, batch_size=2, local_steps=2)
    clients, _ = data_of(job, vocab_size=model.config.vocab_size)
    first = None

    def play(request):
        nonlocal first
        axes = request["axes"]
        executor = on_mesh(make_mesh(axes)) if axes else fedjax_post.device
        plan = fedjax_post.Plan(executor=executor)
        algorithm = fed_avg(sft_loss, optax.sgd(0.1))
        rounds = fedjax_post.run(
            algorithm, model, clients, params=params, rounds=request["rounds"], plan=plan
        )
        state, record = deque(rounds, maxlen=1).pop()
        learned = _flat(state.shared)
        first = learned if first is None else first
        change = np.linalg.norm(first - _flat(params))
        return {
            "loss": record["loss"],
            "difference": float(np.linalg.norm(learned - first) / change),
        }

    channel.serve(out, play)


def _flat(tree) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


if __name__ == "__main__":
    main()
