"""What a run prints before it starts, and what it leaves behind when it ends."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import median_high
from typing import Any

import jax
import numpy as np
from absl import flags

import fedjax_post
from experiments import build, disclosure, dp, folder, hosting, methods, peers
from experiments.build import Job
from experiments.versions import commit, versions_of
from fedjax_post.core.algorithm import SUMMED, PyTree
from fedjax_post.core.engine import State
from fedjax_post.core.wire import num_bytes
from fedjax_post.data.table import gather
from fedjax_post.data.template import PLAIN
from fedjax_post.evaluate.scores import Scores
from fedjax_post.hub import artefact
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


def projection(job: Job, options: flags.FlagValues) -> str:
    """Returns what the run will take, in a few lines."""
    given = job.algorithm, job.model, job.data.clients, job.params
    report = job.data.report
    lines = [
        f"model      {_model(job, options)}; {_count(job.params):,} trained ({options.adapter})",
        f"clients    {report['clients']:,}, {report['partition']}, of {report['examples_min']} to "
        f"{report['examples_max']} examples (median {report['examples_median']:g}); "
        f"{report['examples']:,} examples, {report['tokens']:,} tokens",
        f"rows       of {report['max_length']} tokens; {report['truncated']} cut and "
        f"{report['dropped']} left out ("
        f"{' and '.join(f'{name}: {size:,}' for name, size in report['splits'].items())})",
        f"scored     {_scored(job, options)}",
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
        f"{format_bytes(state * report['clients'])} if all are seen"
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
        # rounds that compile, those of a resumed run among them, are slow and few
        "tokens_per_second": median_high(record["tokens_per_second"] for record in records),
        "visits": visits,
        "dropped_visits": sum(len(record["dropped"]) for record in records),
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
    folder.write_text(directory / "summary.json", json.dumps(summary, indent=2) + "\n")


def export(job: Job, options: flags.FlagValues, state: State, *, scores: dict[str, Scores]) -> None:
    """Writes `adapter/`, see `hub/artefact.py`.

    All processes of a run call it, and the first one writes.
    """
    model, params = fedjax_post.deployed(job.algorithm, job.model, state)
    name = options.model
    if "proxy" in job.algorithm.access:  # what was trained adapts the proxy
        model, name = job.model["proxy"], options.proxy_model
    if artefact.changes_base(model, params) and peers.are_several():
        host = jax.local_devices(backend="cpu")[0]  # whose memory holds the whole model
        model, params = jax.device_put(processes.gathered((model, params)), host)
    with peers.together():
        if peers.is_first():
            about = _about(job, options, scores)
            make = lambda path: artefact.write(path, model, params, base=name, about=about)
            folder.write_whole(Path(job.plan.directory) / "adapter", make)


def _scored(job: Job, options: flags.FlagValues) -> str:
    """What is scored at the end, and what is not and why."""
    table, rows = job.heldout.table, len(job.heldout.rows)
    told = f"{rows:,} held-out rows"
    if table.fit.num_dropped:
        told += f" ({table.fit.num_dropped:,} more have no response within the length)"
    if job.heldout.exact_match:
        return f"{told}, answers compared"
    reason = "as asked for" if options.exact_match == "off" else build.why_no_match(table)
    return f"{told}; answers are not compared: {reason}; --exact_match=on compares them"


def _about(job: Job, options: flags.FlagValues, scores: dict[str, Scores]) -> artefact.About:
    """What the folder says of itself, which is the same in equal runs."""
    report, row = job.data.report, job.heldout.rows[0]
    tokens = gather(job.heldout.table, np.asarray([row]))[0][0]
    example = job.tokenizer.decode(tokens[: job.heldout.table.prompt_length[row]])
    chat = options.template == "chat" or (
        options.template == "auto" and job.tokenizer.chat_template
    )
    own = options.template if "{" in options.template else "" if chat else PLAIN
    facts = [
        ("method", f"{methods.describe(options)}; {options.num_rounds} rounds"),
        ("trained", f"{_count(job.params):,} numbers ({options.adapter})"),
        ("data", f"`{Path(options.dataset).name}`, {report['examples']:,} examples"),
        ("clients", f"{report['clients']:,}, {options.partition}"),
        ("prompts", options.template),
        ("seed", str(options.seed)),
    ]
    if job.promised is not None:
        facts.append(("privacy", dp.describe(job.promised, options.num_rounds)))
    for when, found in scores.items():
        numbers = [(k, v) for k, v in found.items() if isinstance(v, float)]
        told = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in numbers)
        facts.append((f"held out, {'before' if when == 'base' else when}", told))
    return artefact.About(job.tokenizer, example, own, tuple(facts))


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


def _sum(records: list[dict[str, Any]], name: str) -> float | None:
    """The sum over the rounds, where they have the entry."""
    return sum(record[name] for record in records) if name in records[0] else None


def _count(tree: PyTree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
