"""The side of PyTorch and peft: clients of a job one after another, one model for all of them.

    <python with torch and peft> torch_peft.py <folder of the job> [cores] [dtype]

The dtype is that of the job by default; "autocast" is float32 weights, and bfloat16 products.

It leaves out reloads, trainers and data loaders, which favours it. In a client's visit it sets the
shared adapter, takes the steps with a fresh Adam, and reads the adapter.
"""

import json
import sys
from pathlib import Path

import channel
import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main(folder, cores="", dtype=""):
    """Runs rounds until there are no more requests."""
    num_cores = channel.pin(cores)
    out = channel.open_channel()
    folder = Path(folder)
    job = json.loads((folder / "job.json").read_text())
    if job["device"] == "cpu":
        torch.set_num_threads(num_cores)
    casts = dtype == "autocast"
    stored = getattr(torch, "float32" if casts else dtype or job["dtype"])
    base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=stored)
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)
    model = model.to(job["device"]).train()
    adapter = [p for p in model.parameters() if p.requires_grad]
    shared = [p.detach().clone() for p in adapter]
    number = 0

    @torch.autocast(job["device"], torch.bfloat16, enabled=casts)
    def play(request):
        nonlocal number
        if request.get("evaluate"):
            examples = np.load(folder / "heldout.npz")
            _put(adapter, shared)
            with torch.no_grad():
                loss = model(**_collate(examples, np.arange(len(examples["length"])), model)).loss
            return {"loss": float(loss)}
        examples = dict(np.load(folder / f"round-{number}.npz"))
        number += 1
        return _round(model, adapter, shared, examples, job["learning_rate"])

    channel.serve(out, play)


def _round(model, adapter, shared, examples, learning_rate):
    """FedAvg weighted by response tokens; updates `shared` in place."""
    weights = examples["weight"]
    moved = [torch.zeros_like(p) for p in shared]
    loss_sum = torch.zeros((), device=shared[0].device)
    for client, weight in enumerate(weights.tolist()):
        _put(adapter, shared)
        optimizer = torch.optim.Adam(adapter, lr=learning_rate)
        mine = examples["client"] == client
        steps = np.unique(examples["step"][mine])
        for step in steps:
            batch = _collate(examples, np.flatnonzero(mine & (examples["step"] == step)), model)
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss_sum += weight / len(steps) * loss.detach()
        with torch.no_grad():
            for total, end, start in zip(moved, adapter, shared, strict=True):
                total += weight * (end - start)
    for start, total in zip(shared, moved, strict=True):
        start += total / weights.sum()
    # reading the loss waits for the device
    return {"tokens": int(examples["length"].sum()), "loss": float(loss_sum) / weights.sum().item()}


def _put(adapter, values):
    with torch.no_grad():
        for parameter, value in zip(adapter, values, strict=True):
            parameter.copy_(value)


def _collate(examples, chosen, model):
    """A batch padded on the right to its longest example, labels as transformers wants them."""
    ends = np.cumsum(examples["length"])
    longest = int(examples["length"][chosen].max())
    tokens = np.zeros((len(chosen), longest), np.int64)
    labels = np.full((len(chosen), longest), -100, np.int64)
    mask = np.zeros((len(chosen), longest), np.int64)
    for row, i in enumerate(chosen):
        length, end = examples["length"][i], ends[i]
        here = slice(end - length, end)
        tokens[row, :length] = examples["tokens"][here]
        labels[row, :length] = np.where(examples["loss_mask"][here], tokens[row, :length], -100)
        mask[row, :length] = 1
    batch = {"input_ids": tokens, "labels": labels}
    if not mask.all():  # without padding attention needs no mask, and is faster
        batch["attention_mask"] = mask
    return {name: torch.from_numpy(x).to(model.device) for name, x in batch.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
