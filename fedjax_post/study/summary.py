"""What a run prints before it starts, and what it leaves behind when it ends."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import median_high
from typing import Any

import jax
import numpy as np


import fedjax_post
from fedjax_post.study import artefact, build, disclosure, dp, folder, hosting, methods, peers
from fedjax_post.study.build import Parts
from fedjax_post.study.versions import commit, versions_of
from fedjax_post.core.algorithm import SUMMED, PyTree
from fedjax_post.core.engine import State
from fedjax_post.core.wire import num_bytes
from fedjax_post.evaluate.scores import Scores
from fedjax_post.hub.files import BUILTIN, find_folder
from fedjax_post.model.emulator import emulator_bytes
from fedjax_post.model.quantise import dequantise_model
from fedjax_post.openness.ledger import Entry
from fedjax_post.report.records import read_records
from fedjax_post.report.table import format_bytes
from fedjax_post.simulate import client_state_like, processes, wire_bytes_of

_TELEMETRY = (
    *("client_drift", "client_norm", "client_cosine", "aggregation_error", "effective_rank"),
    *("staleness_mean", "staleness_max"),
)
_PACKAGES = ("fedjax_post", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def projection(parts: Parts) -> str:
    """Returns what the run will take, in a few lines."""
    given = parts.algorithm, parts.model, parts.data.clients, parts.params
    report = parts.data.report
    lines = [
        f"model      {_model(parts)}; {_count(parts.params):,} trained ({parts.spec.adapter.kind})",
        f"clients    {report['clients']:,}, {parts.spec.data.partition}, of {report['examples_min']} to "
        f"{report['examples_max']} examples (median {report['examples_median']:g}); "
        f"{report['examples']:,} examples, {report['tokens']:,} tokens",
        f"rows       of {report['max_length']} tokens; {report['truncated']} cut and "
        f"{report['dropped']} left out",
        f"scored     {_scored(parts)}",
    ]
    lines.append(f"method     {methods.describe(spec)}; {parts.spec.training.rounds} rounds")
    wire = wire_bytes_of(*given)
    if parts.spec.method.baseline == "none":
        lines.append(
            f"wire       {format_bytes(wire.down)} down and {format_bytes(wire.up)} up "
            "per client and round, by shape; records hold what was billed"
        )
    if parts.promised is not None:
        lines.append(f"privacy    {dp.describe(parts.promised, parts.spec.training.rounds)}")
    state = num_bytes(client_state_like(*given))
    lines.append(
        f"on disk    {format_bytes(state)} of state per client, "
        f"{format_bytes(state * report['clients'])} if all are seen"
    )
    return "\n".join(lines)


def summarize(
    parts: Parts,
    spec: Spec,
    *,
    scores: dict[str, Scores],
    entries: list[Entry],
    argv: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    """Returns the content of summary.json; the README says what each key means."""
    records = read_records(parts.plan.directory)
    total = {
        name: sum(record[name] for record in records)
        for name in ("bytes_up", "bytes_down", "num_read", "seconds", "cohort")
    }
    counted = {name: _sum(records, name) for name in SUMMED}
    last = records[-1]
    federated, visits = parts.spec.method.baseline == "none", int(total["cohort"])
    each = lambda name: round(total[name] / visits) if federated and visits else None
    return {
        "algorithm": parts.spec.method.name,
        "baseline": parts.spec.method.baseline,
        "model": parts.spec.model.name,
        "dataset": parts.spec.data.source,
        "seed": parts.spec.seed,
        "rounds": len(records),
        **scores,
        "bytes_up": int(total["bytes_up"]) if federated else None,
        "bytes_down": int(total["bytes_down"]) if federated else None,
        "bytes_up_per_client": each("bytes_up"),
        "bytes_down_per_client": each("bytes_down"),
        "emulator_bytes": _emulator_bytes(parts),
        "access": disclosure.tier_of(parts.algorithm.access),
        "inference": disclosure.place_of(spec, parts.algorithm.access),
        **{name: None if value is None else int(value) for name, value in counted.items()},
        "disclosure": disclosure.told(spec, entries, parts.algorithm.access),
        "privacy": dp.told(parts.promised, last, parts.spec.training.sampling),
        "provider": hosting.told(Path(parts.plan.directory or "")),
        "tokens": int(total["num_read"]),
        # rounds that compile, those of a resumed run among them, are slow and few
        "tokens_per_second": median_high(record["tokens_per_second"] for record in records),
        "visits": visits,
        "dropped_visits": sum(len(record["dropped"]) for record in records),
        "train_seconds": total["seconds"],
        "virtual_seconds": _sum(records, "virtual_seconds"),
        "telemetry": {name: last[name] for name in _TELEMETRY if name in last},
        "seconds": seconds,
        "trained_parameters": _count(parts.params),
        "heldout_examples": len(parts.heldout.rows),
        "population": parts.data.report,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": versions_of(_PACKAGES),
        "commit": commit(),
        "command": shlex.join(argv),
    }


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json, whole or not at all."""
    folder.write_text(directory / "summary.json", json.dumps(summary, indent=2) + "\n")


def export(parts: Parts, state: State) -> None:
    """Writes `adapter/`, see `artefact.write`.

    All processes of a run call it, and the first one writes.
    """
    model, params = fedjax_post.deployed(parts.algorithm, parts.model, state)
    name = parts.spec.model.name
    if "proxy" in parts.algorithm.access:  # what was trained adapts the proxy
        model, name = parts.model["proxy"], parts.spec.model.proxy
    base = str(find_folder(name)) if name in BUILTIN else name
    if artefact.changes_base(model, params) and peers.are_several():
        host = jax.local_devices(backend="cpu")[0]  # whose memory holds the whole model
        model, params = jax.device_put(processes.gathered((model, params)), host)
    told = {"base": base, "run": str(parts.plan.directory), "decode_fn": parts.heldout.decode_fn}
    make = lambda path: artefact.write(path, model, params, **told)
    with peers.together():
        if peers.is_first():
            folder.write_whole(Path(parts.plan.directory) / "adapter", make)


def _scored(parts: Parts) -> str:
    """What is scored at the end, and what is not and why."""
    table, rows = parts.heldout.table, len(parts.heldout.rows)
    told = f"{rows:,} held-out rows"
    if table.fit.num_dropped:
        told += f" ({table.fit.num_dropped:,} more have no response within the length)"
    if parts.heldout.exact_match:
        return f"{told}, answers compared"
    reason = "as asked for" if parts.spec.scoring.exact_match == "off" else build.why_no_match(table)
    return f"{told}; answers are not compared: {reason}; exact_match=on compares them"


def _model(parts: Parts) -> str:
    if hosting.is_hosted(spec):
        return f"{parts.spec.hosting.model or parts.spec.model.name} at {parts.spec.hosting.url}"
    frozen = jax.eval_shape(dequantise_model, parts.target)
    weights = _count(frozen.variables.get("params", {})) or _count(parts.params)
    return f"{parts.spec.model.name}, {weights:,} weights in {parts.spec.model.dtype}{_codes(parts)}"


def _codes(parts: Parts) -> str:
    if parts.spec.model.quantize == "none":
        return ""
    size = format_bytes(num_bytes(parts.target.variables["quantised"]))
    return f", the layers' in {parts.spec.model.quantize} ({size})"


def _emulator_bytes(parts: Parts) -> int | None:
    """What handing out a stand-in costs, once and beside the wire."""
    if "emulator" not in parts.algorithm.access:
        return None
    return emulator_bytes(parts.model["emulator"])


def _sum(records: list[dict[str, Any]], name: str) -> float | None:
    """The sum over the rounds, where they have the entry."""
    return sum(record[name] for record in records) if name in records[0] else None


def _count(tree: PyTree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
