"""What a run prints before it starts, and what it leaves behind when it ends."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

import fedjax_post
from experiments import artefact, disclosure, dp, folder, hosting, methods, peers
from experiments.build import Job
from experiments.versions import commit, versions_of
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
_PACKAGES = ("fedjax_post", "jax", "jaxlib", "flax", "optax", "safetensors", "numpy")


def projection(job: Job, options: flags.FlagValues) -> str:
    """Returns what the run will take, in a few lines."""
    given = job.algorithm, job.model, job.data.clients, job.params
    report = job.data.report
    lines = [
        f"model      {_model(job, options)}; {_count(job.params):,} trained ({options.adapter})",
        f"clients    {report['clients']:,}, {options.partition}, of {report['examples_min']} to "
        f"{report['examples_max']} examples (median {report['examples_median']:g}); "
        f"{report['examples']:,} examples, {report['tokens']:,} tokens",
        f"rows       of {report['max_length']} tokens; {report['truncated']} cut and "
        f"{report['dropped']} left out; {len(job.heldout.rows)} held out",
    ]
    lines.append(f"method     {methods.describe(options)}; {options.num_rounds} rounds")
    wire = wire_bytes_of(*given)
    if options.baseline == "none":
        lines.append(
            f"wire       {format_bytes(wire.down)} down and {format_bytes(wire.up)} up "
            "per client and round, by shape; records hold what was billed"
        )
    if job.promised is not None:
        lines.append(f"privacy    {dp.describe(job.promised, options.num_rounds)}")
    state = num_bytes(client_state_like(*given))
    lines.append(
        f"on disk    {format_bytes(state)} of state per client, "
        f"{format_bytes(state * report['clients'])} if all are seen, in at most three versions"
    )
    return "\n".join(lines)


def summarize(
    job: Job,
    options: flags.FlagValues,
    *,
    scores: dict[str, Scores],
    entries: list[Entry],
    argv: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    """Returns the content of summary.json; the README says what each key means."""
    records = read_records(job.plan.directory)
    total = {
        name: sum(record[name] for record in records)
        for name in ("bytes_up", "bytes_down", "num_read", "seconds", "cohort")
    }
    counted = {name: _sum(records, name) for name in SUMMED}
    warm = records[1:] or records  # the first round compiles
    last = records[-1]
    federated, visits = options.baseline == "none", int(total["cohort"])
    each = lambda name: round(total[name] / visits) if federated and visits else None
    return {
        "algorithm": options.algorithm,
        "baseline": options.baseline,
        "model": options.model,
        "dataset": options.dataset,
        "seed": options.seed,
        "rounds": len(records),
        **scores,
        "bytes_up": int(total["bytes_up"]) if federated else None,
        "bytes_down": int(total["bytes_down"]) if federated else None,
        "bytes_up_per_client": each("bytes_up"),
        "bytes_down_per_client": each("bytes_down"),
        "emulator_bytes": _emulator_bytes(job),
        "access": disclosure.tier_of(job.algorithm.access),
        "inference": disclosure.place_of(options, job.algorithm.access),
        **{name: None if value is None else int(value) for name, value in counted.items()},
        "disclosure": disclosure.told(options, entries, job.algorithm.access),
        "privacy": dp.told(job.promised, last, options.sampling),
        "provider": hosting.told(Path(job.plan.directory or "")),
        "tokens": int(total["num_read"]),
        "tokens_per_second": sum(r["num_read"] for r in warm) / sum(r["seconds"] for r in warm),
        "visits": visits,
        "dropped_visits": sum(len(record["dropped"]) for record in records),
        "warnings": _warnings(records),
        "train_seconds": total["seconds"],
        "virtual_seconds": _sum(records, "virtual_seconds"),
        "telemetry": {name: last[name] for name in _TELEMETRY if name in last},
        "seconds": seconds,
        "trained_parameters": _count(job.params),
        "heldout_examples": len(job.heldout.rows),
        "population": job.data.report,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": versions_of(_PACKAGES),
        "commit": commit(),
        "command": shlex.join(argv),
    }


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json, whole or not at all."""
    folder.write_json(directory / "summary.json", summary)


def export(job: Job, options: flags.FlagValues, state: State) -> None:
    """Writes `adapter/`, see `artefact.write`.

    All processes of a run call it, and the first one writes.
    """
    model, params = fedjax_post.deployed(job.algorithm, job.model, state)
    name = options.model
    if "proxy" in job.algorithm.access:  # what was trained adapts the proxy
        model, name = job.model["proxy"], options.proxy_model
    base = str(find_folder(name)) if name in BUILTIN else name
    if artefact.changes_base(model, params) and peers.are_several():
        host = jax.local_devices(backend="cpu")[0]  # whose memory holds the whole model
        model, params = jax.device_put(processes.gathered((model, params)), host)
    told = {"base": base, "run": str(job.plan.directory), "decode_fn": job.heldout.decode_fn}
    make = lambda path: artefact.write(path, model, params, **told)
    with peers.together():
        if peers.is_first():
            folder.write_whole(Path(job.plan.directory) / "adapter", make)


def _model(job: Job, options: flags.FlagValues) -> str:
    if hosting.is_hosted(options):
        return f"{options.provider_model or options.model} at {options.provider_url}"
    frozen = jax.eval_shape(dequantise_model, job.target)
    weights = _count(frozen.variables.get("params", {})) or _count(job.params)
    return f"{options.model}, {weights:,} weights in {options.dtype}{_codes(job, options)}"


def _codes(job: Job, options: flags.FlagValues) -> str:
    if options.quantise == "none":
        return ""
    size = format_bytes(num_bytes(job.target.variables["quantised"]))
    return f", the layers' in {options.quantise} ({size})"


def _emulator_bytes(job: Job) -> int | None:
    """What handing out a stand-in costs, once and beside the wire."""
    if "emulator" not in job.algorithm.access:
        return None
    return emulator_bytes(job.model["emulator"])


def _warnings(records: list[dict[str, Any]]) -> list[str]:
    """What makes the result worthless, though the run ended."""
    visits = sum(int(record["cohort"]) for record in records)
    if not visits or sum(len(record["dropped"]) for record in records) < visits:
        return []
    return [
        f"none of the {visits} visits counted, and nothing was learned: clients' updates were not "
        "finite, or their model gave no answers; see whether the model's weights are finite, or "
        "lower the local step size"
    ]


def _sum(records: list[dict[str, Any]], name: str) -> float | None:
    """The sum over the rounds, where they have the entry."""
    return sum(record[name] for record in records) if name in records[0] else None


def _count(tree: PyTree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
