"""A chunk's program is the same for every kind of device: it lowers for a TPU and for CUDA."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post.adapters.lora import add_lora
from fedjax_post.algorithms import fed_avg
from fedjax_post.data.batches import ArrayClients
from fedjax_post.model.attention import Device
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.simulate.programs import visit_chunk
from fedjax_post.testing.models import tiny_model


class Seen(Exception):
    """Ends a run before its first chunk is compiled."""


def arguments_of_a_visit(algorithm, model, params, clients):
    """What the loop hands to the compiled unit."""

    def visit(*args):
        raise Seen(*args)

    watched = fp.device(algorithm)._replace(visit=visit)
    plan = fp.Plan(chunk_size=2, executor=lambda _: watched)
    with pytest.raises(Seen) as stopped:
        next(fp.run(algorithm, model, clients, params=params, rounds=1, plan=plan))
    return stopped.value.args


@pytest.mark.heavy
@pytest.mark.parametrize(("attention", "vocab_size"), [("cpu", 21), ("tpu", 22)])
def test_the_compiled_unit_lowers_for_tpu_and_cuda(monkeypatch, attention, vocab_size):
    """With a language model under LoRA; `attention` says whose kernel is traced."""
    for module in ("attention", "decoder"):
        monkeypatch.setattr(f"fedjax_post.model.{module}.find_device", lambda: Device(attention))
    model, params = add_lora(
        tiny_model(vocab_size=vocab_size, sliding_window=3, sliding_layers=(1,)),
        jax.random.key(0),
        rank=2,
        alpha=4,
    )
    rows = {"tokens": np.ones((4, 6), np.int32), "loss_mask": np.ones((4, 6), bool)}
    clients = ArrayClients([rows] * 2, batch_size=2, local_steps=2)
    algorithm = fed_avg(sft_loss, optax.adam(1e-3))
    args = arguments_of_a_visit(algorithm, model, params, clients)
    program = jax.jit(partial(visit_chunk, algorithm), donate_argnums=2)
    exported = jax.export.export(program, platforms=["tpu", "cuda"])(*args)
    assert exported.platforms == ("tpu", "cuda")
    assert "custom_call" not in exported.mlir_module()  # nothing that one device alone has
