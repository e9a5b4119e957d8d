"""The content of `summary.json`, written at the end of a run."""

import hashlib
import resource
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median_high
from typing import Any

import jax
import numpy as np

from fedjax_post.core.algorithm import SUMMED
from fedjax_post.evaluate.heldout import HeldOut, is_compared
from fedjax_post.evaluate.scores import Scores, left_out
from fedjax_post.model.emulator import emulator_bytes
from fedjax_post.report.records import read_records
from fedjax_post.study import (
    costs,
    factories,
    hostile,
    hosting,
    ledgers,
    patience,
    private,
    secure,
)
from fedjax_post.study.build import Parts
from fedjax_post.study.files import identity
from fedjax_post.study.plan import count
from fedjax_post.study.scoring import Result
from fedjax_post.study.versions import commit, versions_of

_TELEMETRY = (
    *("client_drift", "client_norm", "client_cosine", "aggregation_error", "effective_rank"),
    *("staleness_mean", "staleness_max"),
)
_PACKAGES = ("fedjax_post", "jax", "jaxlib", "flax", "optax", "safetensors", "numpy")


def summarize(
    parts: Parts,
    base: Result,
    final: Result,
    *,
    disclosed: ledgers.Ledger,
    command: Sequence[str],
    seconds: float,
) -> dict[str, Any]:
    """Returns the content of `summary.json`; docs/records.md documents its keys.

    Args:
      parts: of the run.
      base: scores before training.
      final: scores after training.
      disclosed: the disclosure ledger.
      command: the command line that started the run.
      seconds: wall time of the run.
    """
    records = read_records(parts.plan.directory or "")
    total = {
        name: sum(record[name] for record in records)
        for name in ("bytes_up", "bytes_down", "num_read", "num_steps", "seconds", "cohort")
    }
    counted = {name: _sum(records, name) for name in SUMMED}
    last = records[-1]
    federated, visits = parts.spec.method.baseline == "none", int(total["cohort"])
    each = lambda name: round(total[name] / visits) if federated and visits else None
    return {
        "algorithm": factories.display_name(parts.spec.method.name),
        "baseline": parts.spec.method.baseline,
        "model": parts.spec.model.name,
        "dataset": factories.display_name(parts.spec.data.source),
        "seed": parts.spec.seed,
        "rounds": len(records),
        "stopped": bool(last.get(patience.STOPPED)),
        "settings": identity(parts.spec),
        **_scored(parts, base, final),
        "bytes_up": int(total["bytes_up"]) if federated else None,
        "bytes_down": int(total["bytes_down"]) if federated else None,
        "bytes_up_per_client": each("bytes_up"),
        "bytes_down_per_client": each("bytes_down"),
        "emulator_bytes": _emulator_bytes(parts),
        "access": ledgers.tier_of(parts.algorithm.access),
        "inference": ledgers.place_of(parts.spec, parts.algorithm.access),
        **{name: None if value is None else int(value) for name, value in counted.items()},
        "disclosure": ledgers.disclosure_summary(parts.spec, disclosed, parts.algorithm.access),
        "privacy": private.privacy_summary(parts.promised, last, parts.spec.training.sampling),
        "secure_sum": secure.secure_summary(parts.agreed, records),
        "poison": hostile.poison_summary(parts.poisoned, parts.spec),
        "provider": hosting.provider_summary(Path(parts.plan.directory or "")),
        **_tokens(parts, total, disclosed),
        # The median leaves out rounds that compile, which are slow but few
        "tokens_per_second": median_high(record["tokens_per_second"] for record in records),
        "visits": visits,
        "dropped_visits": sum(len(record["dropped"]) for record in records),
        "train_seconds": total["seconds"],
        "virtual_seconds": _sum(records, "virtual_seconds"),
        "telemetry": {name: last[name] for name in _TELEMETRY if name in last},
        "seconds": seconds,
        "trained_parameters": count(parts.params),
        "population": parts.data.report,
        "memory": _memory(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": versions_of(_PACKAGES),
        "commit": commit(),
        "command": shlex.join(command),
        "warnings": _warnings(records) + secure.warnings_of(parts.agreed, records),
    }


def _tokens(parts: Parts, total: dict[str, Any], disclosed: ledgers.Ledger) -> dict[str, float]:
    """Returns the tokens of the rows that were read, and those through the model, also in use."""
    read, num_steps = total["num_read"], total["num_steps"]
    passed = costs.model_tokens(parts, read=read, num_steps=num_steps, sent=disclosed.sent)
    use = costs.question_tokens(parts)
    return {"tokens": int(read), "model_tokens": int(passed), "question_tokens": use}


def _scored(parts: Parts, base: Result, final: Result) -> dict[str, Any]:
    """Returns the scores before and after training, and the rows that they are of."""
    heldout = parts.heldout
    return {
        **base.scores,
        **final.scores,
        "heldout_clients": _apart(base, final),
        "clients": {name: table.summary() for name, table in final.tables.items()},
        "heldout_examples": len(heldout.rows),
        "heldout_digest": digest(heldout),
        "labels": None if heldout.choices is None else list(heldout.choices.texts),
        "left_out": left_out(heldout),
    }


def _memory() -> dict[str, int | None]:
    """Returns the peaks of this process and of its fullest device, bytes; None if not known."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = [
        (device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()
    ]
    return {
        "host_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "device_peak": max((peak for peak in peaks if peak is not None), default=None),
    }


def _apart(base: Result, final: Result) -> dict[str, Scores] | None:
    """Returns the scores of held-out clients before and after training; None without any."""
    if base.apart is None or final.apart is None:
        return None
    return {"base": base.apart, "final": final.apart}


def digest(heldout: HeldOut) -> str:
    """Returns a digest of the held-out rows, equal for runs that are scored on the same rows."""
    table, rows = heldout.table, heldout.rows
    responses = table.length[rows] - table.prompt_length[rows]
    content = np.stack([rows, responses, is_compared(heldout)[rows]]).astype("<i8").tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def _emulator_bytes(parts: Parts) -> int | None:
    """Returns the bytes of the emulator, which is sent once and not counted in the rounds."""
    if "emulator" not in parts.algorithm.access:
        return None
    return emulator_bytes(parts.model["emulator"])


def _sum(records: list[dict[str, Any]], name: str) -> float | None:
    """Returns the sum of an entry over all rounds; None if the records lack it."""
    return sum(record[name] for record in records) if name in records[0] else None


def _warnings(records: list[dict[str, Any]]) -> list[str]:
    """Returns warnings about a run that ended without learning anything."""
    visits = sum(int(record["cohort"]) for record in records)
    if not visits or sum(len(record["dropped"]) for record in records) < visits:
        return []
    return [
        f"none of the {visits} visits counted, and nothing was learned: clients' updates were not "
        "finite, or their model gave no answers; check whether the model's weights are finite, or "
        "lower the local step size"
    ]
