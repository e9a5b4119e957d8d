"""Records: one line of JSON for each round, with its metrics, counts and bytes."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from fedjax_post import integrity
from fedjax_post.core.algorithm import SUMMED, Bill
from fedjax_post.core.engine import Report, State, WireBytes
from fedjax_post.core.wire import total_bytes
from fedjax_post.integrity import DamagedError
from fedjax_post.simulate.programs import Chunk

Record = dict[str, Any]
# (state after the round, its record) -> more entries for the record, or None
Callback = Callable[[State, Record], Record | None]


def summarize(
    chunks: Sequence[Chunk], reports: Sequence[Report], *, wire: WireBytes, seconds: float
) -> Record:
    """Returns the record of one round.

    Metrics are weighted means over the clients that were not dropped; counts are sums over them.
    Bytes and the metrics of `SUMMED` include dropped clients, because these were sent.

    Args:
      chunks: the round's chunks, of numpy arrays.
      reports: one for each chunk, leaves `[lanes]`.
      wire: bytes of one client by shape, used unless the algorithm bills its messages itself.
      seconds: wall time of the round.
    """
    ids = np.concatenate([chunk.client_ids for chunk in chunks])
    report = jax.tree.map(lambda *x: np.concatenate(x), *reports)
    kept, weight = report.kept, report.weight.astype(np.float64)
    counts = {
        name: float(np.concatenate([getattr(c.data, name) for c in chunks])[kept].sum())
        for name in ("num_examples", "num_tokens", "num_read")
    }
    cohort = int((ids >= 0).sum())
    record = {
        "round": int(chunks[0].round),
        "cohort": cohort,
        "dropped": ids[(ids >= 0) & ~kept].tolist(),
        "weight": float(weight.sum()),
        "num_steps": float(report.num_steps[kept].sum()),
        **counts,
        **_bytes(ids, report, wire=wire),
        **_sent(ids, report),
        "seconds": seconds,
        "tokens_per_second": counts["num_read"] / seconds,
        **_padding(chunks),
    }
    if weight.sum() > 0:
        present = weight > 0
        record |= {
            name: float((weight[present] * m[present]).sum() / weight.sum())
            for name, m in report.metrics.items()
            if name not in SUMMED
        }
    return record


def _padding(chunks: Sequence[Chunk]) -> Record:
    """Returns the share of computed positions without a token (or example), if it is known."""
    room = read = 0.0
    for chunk in chunks:
        taken = np.flatnonzero(np.any(chunk.data.step_mask, axis=0))
        steps = taken[-1] + 1 if taken.size else 0
        room += float(steps * chunk.client_ids.size * np.max(chunk.data.step_size))
        read += float(np.sum(chunk.data.num_read))
    return {"padding": 1 - read / room} if room else {}


def _bytes(ids: np.ndarray, report: Report, *, wire: WireBytes) -> Record:
    """Returns the bytes of all real clients: as billed by the algorithm, else by shape."""
    count = int((ids >= 0).sum())
    by_shape = {"bytes_down": count * wire.down, "bytes_up": count * wire.up}
    if not report.bill:
        return by_shape
    bill = jax.tree.map(lambda x: x[ids >= 0], report.bill)
    billed = {"bytes_down": total_bytes(bill.down), "bytes_up": total_bytes(bill.up)}
    if isinstance(bill, Bill):
        return billed
    return {name: by_shape[name] + added for name, added in billed.items()}


def _sent(ids: np.ndarray, report: Report) -> Record:
    """Returns what all real clients sent to a queried model, as far as it was counted."""
    real = ids >= 0
    counted = [name for name in SUMMED if name in report.metrics]
    return {name: float(report.metrics[name][real].sum(dtype=np.float64)) for name in counted}


def finite_numbers(seen: Mapping[str, Any]) -> Record:
    """Returns the telemetry's numbers that are finite, and so defined for this round."""
    return {name: float(value) for name, value in seen.items() if np.isfinite(value)}


def append(file: TextIO, record: Record) -> None:
    """Appends a line with its checksum to an open record file, and flushes it."""
    file.write(integrity.seal_line(record))
    file.flush()


def read_lines(path: Path, count: int) -> list[str]:
    """Returns the first lines of a record file, after checking each.

    Raises:
      DamagedError: if it has fewer than `count`, or one has changed since it was written.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    if len(lines) < count:
        raise DamagedError(f"{path} has {len(lines)} records where its checkpoint counts {count}")
    texts = [line.decode(errors="replace") for line in lines[:count]]
    for number, text in enumerate(texts, 1):
        integrity.open_line(text, f"{path}, line {number},")
    return texts


def keep_lines(path: Path, count: int) -> None:
    """Truncates a record file after `count` lines, atomically.

    Raises:
      DamagedError: as `read_lines`.
    """
    fresh = path.with_suffix(".tmp")
    fresh.write_text("".join(f"{line}\n" for line in read_lines(path, count)), encoding="utf-8")
    os.replace(fresh, path)
