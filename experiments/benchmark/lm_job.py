"""A fine-tuning job for two sides: the same weights, adapter, tokens and optimizer.

It is written as a folder: a Hugging Face model, a PEFT adapter, the examples of every client,
step and round, and held-out examples. Our own side builds its clients from the job and runs them
through `fedjax_post.run`; the examples in the folder come from the same clients.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import fedjax_post
from fedjax_post import data
from fedjax_post.adapters.lora import add_lora
from fedjax_post.core.algorithm import ClientData
from fedjax_post.hub.files import find_folder
from fedjax_post.hub.load import load_model, save_model
from fedjax_post.hub.peft import save_adapter
from fedjax_post.hub.tokenizer import load_tokenizer
from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.views import LanguageModel, init_model
from fedjax_post.simulate.cohort import data_rng, draw

_HELDOUT = 16  # examples


class Job(NamedTuple):
    """The settings of both sides; `model` and `dataset` as for `experiments.train`."""

    model: str
    dataset: str | None = None  # None: random tokens, every row `length` of them
    length: int = 64  # tokens of a row
    num_clients: int = 16
    cohort_size: int = 8
    local_steps: int = 4
    batch_size: int = 4
    chunk_size: int | None = None
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] | str = "all-linear"
    learning_rate: float = 1e-3
    dtype: str = "float32"
    pack_length: int = 0  # tokens of one of our rows, shared by examples; 0: a row each
    device: str = "cpu"  # of the other side
    rounds: int = 8  # for which examples are written


def random_model(folder: Path, shape: dict[str, Any], *, dtype: str = "float32") -> str:
    """Writes a Llama with random weights, and returns its folder.

    Args:
      folder: where it is written.
      shape: fields of `DecoderConfig`.
      dtype: of the weights.
    """
    model = init_model(DecoderConfig(**shape), jax.random.key(0), dtype=dtype)
    save_model(folder, model)
    return str(folder)


def write_job(folder: Path, job: Job) -> None:
    """Writes everything that the other side needs."""
    folder.mkdir(parents=True, exist_ok=True)
    model, params = model_of(job)
    save_adapter(folder / "adapter", model, params)
    clients, heldout = data_of(job, vocab_size=model.config.vocab_size)
    for number in range(job.rounds):
        ids = draw(sampler_of(job), len(clients), seed=0, round=number)
        visits = [clients.visit(i, data_rng(0, number, i)) for i in ids.tolist()]
        _save(folder / f"round-{number}.npz", examples_of(visits))
    _save(folder / "heldout.npz", examples_of([heldout]))
    known = {**job._asdict(), "model": str(find_folder(job.model))}
    (folder / "job.json").write_text(json.dumps(known))


def read_job(folder: Path) -> Job:
    """Returns the job that `write_job` wrote."""
    return Job(**json.loads((folder / "job.json").read_text()))


def model_of(job: Job) -> tuple[LanguageModel, Any]:
    """Returns the frozen model and the untrained adapter; activations are kept, as in torch."""
    model = load_model(job.model, dtype=job.dtype)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, remat=False))
    targets = job.targets if isinstance(job.targets, str) else list(job.targets)
    return add_lora(model, jax.random.key(0), rank=job.rank, alpha=job.alpha, targets=targets)


def sampler_of(job: Job):
    """Returns the sampler of cohorts."""
    return fedjax_post.uniform(job.cohort_size)


def data_of(job: Job, *, vocab_size: int) -> tuple[data.TokenClients, ClientData]:
    """Returns the clients, and held-out rows as one batch."""
    if job.dataset is None:
        table = random_table(job, vocab_size=vocab_size)
        num_rows = len(table.length) - _HELDOUT
        partition = data.iid(num_rows, job.num_clients)
    else:
        loaded = data.load_clients(
            job.dataset,
            load_tokenizer(job.model),
            batch_size=job.batch_size,
            local_steps=job.local_steps,
            text=data.Text(max_length=job.length, pack_length=job.pack_length),
        )
        heldout = loaded.heldout
        assert heldout is not None
        return loaded.clients, _batch(heldout, np.arange(min(_HELDOUT, len(heldout.length))))
    clients = data.TokenClients(
        table, partition, batch_size=job.batch_size, local_steps=job.local_steps
    )
    return clients, _batch(table, np.arange(num_rows, num_rows + _HELDOUT))


def examples_of(visits: list[ClientData]) -> dict[str, np.ndarray]:
    """Returns the examples of some visits, one after the other, padding left out.

    Returns:
      "tokens" `[T]` int32 and "loss_mask" `[T]` bool; "length", "client" and "step" `[n]`, int32,
      of each example; "weight" `[clients]`, float32, the response tokens of each client.
    """
    rows = []
    for client, visit in enumerate(visits):
        batches = {name: np.asarray(x) for name, x in visit.batches.items()}
        for step, tokens in enumerate(batches["tokens"]):
            masks = batches["loss_mask"][step]
            segments = batches["segments"][step] if "segments" in batches else np.ones_like(tokens)
            for row, mask, segment in zip(tokens, masks, segments, strict=True):
                rows += [(client, step, *one) for one in _split(row, mask, segment)]
    return {
        "tokens": np.concatenate([row[2] for row in rows]).astype(np.int32),
        "loss_mask": np.concatenate([row[3] for row in rows]),
        "length": np.array([len(row[2]) for row in rows], np.int32),
        "client": np.array([row[0] for row in rows], np.int32),
        "step": np.array([row[1] for row in rows], np.int32),
        "weight": np.array([visit.num_tokens for visit in visits], np.float32),
    }


def _split(row: np.ndarray, mask: np.ndarray, segment: np.ndarray):
    """The sequences of a row, each up to its last response token."""
    for number in np.unique(segment):
        here = np.flatnonzero(segment == number)
        responses = np.flatnonzero(mask[here])
        if len(responses):
            here = here[: responses[-1] + 1]
            yield row[here], mask[here]


def _batch(table: data.TokenTable, rows: np.ndarray) -> ClientData:
    tokens, loss_mask = data.gather(table, rows)
    batches = {"tokens": tokens[None], "loss_mask": loss_mask[None]}
    count = np.float32(loss_mask.sum())
    return ClientData(batches, np.ones(1, bool), np.float32(len(rows)), count, np.int32(0), count)


def random_table(job: Job, *, vocab_size: int) -> data.TokenTable:
    """Returns rows of one length; their tokens follow Zipf's law, and all are to be predicted."""
    num_rows = job.num_clients * job.batch_size * job.local_steps + _HELDOUT
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, vocab_size + 1)
    tokens = rng.choice(vocab_size, num_rows * job.length, p=share / share.sum())
    return data.TokenTable(
        values=(~tokens.astype(np.int32),),
        chunk=np.zeros(num_rows, np.int32),
        start=np.arange(num_rows, dtype=np.int64) * job.length,
        length=np.full(num_rows, job.length, np.int32),
        prompt_length=np.ones(num_rows, np.int32),
        max_length=job.length,
        pad_id=0,
    )


def _save(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)
