"""A short description of a run before it starts: its size, its method and its costs."""

from typing import Any

import jax
import numpy as np

from fedjax_post.core.algorithm import PyTree
from fedjax_post.core.wire import num_bytes
from fedjax_post.evaluate.heldout import is_ranked
from fedjax_post.evaluate.scores import left_out
from fedjax_post.model.quantize import dequantize_model
from fedjax_post.report.table import format_bytes
from fedjax_post.simulate import client_state_like, wire_bytes_of
from fedjax_post.study import (
    canary_clients,
    hostile,
    hosting,
    methods,
    patience,
    private,
    recordings,
    secure,
)
from fedjax_post.study.build import Parts
from fedjax_post.study.personal_scores import most_scored
from fedjax_post.study.rows import why_no_match, why_no_ranks

_SHOWN = 6  # labels that are listed


def projection(parts: Parts) -> str:
    """Returns a text of a few lines: model, clients, rows, method, and bytes sent and stored."""
    spec = parts.spec
    given = parts.algorithm, parts.model, parts.data.clients, parts.params
    report = parts.data.report
    start = f", from {spec.adapter.init}" if spec.adapter.init else ""
    lines = [
        f"model      {_model(parts)}; {count(parts.params):,} trained ({spec.adapter.kind}{start})",
        f"clients    {report['clients']:,}, {report['partition']}, of {report['examples_min']} to "
        f"{report['examples_max']} examples (median {report['examples_median']:g}); "
        f"{report['examples']:,} examples, {report['tokens']:,} tokens",
        f"rows       of {report['max_length']} tokens; {report['truncated']} cut and "
        f"{report['dropped']} left out ("
        f"{' and '.join(f'{name}: {size:,}' for name, size in report['splits'].items())})"
        f"{_unchosen(report)}",
        f"scored     {_scoring(parts)}",
    ]
    if report["heldout_clients"]:
        lines.append(
            f"held out   {report['heldout_clients']:,} more clients, which never train, of "
            f"{report['heldout_clients_examples']:,} examples; {_apart(parts)}"
        )
    lines.append(f"method     {methods.describe(spec)}; {patience.describe_rounds(spec)}")
    wire = wire_bytes_of(*given)
    if spec.method.baseline == "none":
        lines.append(
            f"wire       {format_bytes(wire.down)} down and {format_bytes(wire.up)} up "
            "per client and round, by shape; records hold the billed bytes"
        )
    if parts.promised is not None:
        told = private.describe(parts.promised, spec)
        lines += [f"privacy    {told[0]}", *(f"           {line}" for line in told[1:])]
    if parts.agreed is not None:
        lines.append(f"secure     {secure.describe(parts.agreed)}")
    if recorded := recordings.size_of(spec, wire, population=report["clients"]):
        lines.append(f"recorded   {format_bytes(recorded)} of messages, for attacks")
    if parts.canaries is not None:
        lines.append(f"audit      {canary_clients.describe(parts.canaries)}")
    if parts.poisoned is not None:
        lines.append(f"hostile    {hostile.describe(parts.poisoned, spec)}")
    state = num_bytes(client_state_like(*given))
    lines.append(
        f"on disk    {format_bytes(state)} of state per client, "
        f"{format_bytes(state * report['clients'])} if all take part, in at most three versions"
    )
    return "\n".join(lines)


def _apart(parts: Parts) -> str:
    """Returns what is scored of held-out clients."""
    if not parts.has_shared_model:
        return "not scored, since there is no model that they could use"
    rows = min(len(parts.heldout.rows), parts.data.report["heldout_clients_examples"])
    return f"{rows:,} of these are scored with the shared model"


def _unchosen(report: dict[str, Any]) -> str:
    """Returns how many rows `max_examples` leaves out, as the end of a sentence."""
    number = report["not_chosen"]
    return f"; {number:,} more are not used, by max_examples" if number else ""


def _whose(report: dict[str, Any]) -> str:
    """Returns which clients have held-out rows."""
    if report["heldout_by"] is None:
        return "of no client, since they name none and have no label"
    return f"of {report['clients_with_heldout']:,} clients, by {report['heldout_by']}"


def _scoring(parts: Parts) -> str:
    """Returns what is scored at the end, what is left out, and why answers are not compared."""
    spec = parts.spec
    table, rows = parts.heldout.table, len(parts.heldout.rows)
    size = f"{rows:,} held-out rows {_whose(parts.data.report)}"
    if table.fit.num_dropped:
        size += f" ({table.fit.num_dropped:,} more have no response within the length)"
    if also := parts.data.report["heldout_also_trained"]:
        size += f", {also:,} of all held-out rows are rows of clients too"
    told = [size, _by_whom(parts), _ranked(parts)]
    if parts.heldout.exact_match:
        told.append("answers compared")
    else:
        reason = "as requested" if spec.scoring.exact_match == "off" else why_no_match(table)
        told.append(f"answers are not compared: {reason}; exact_match=on compares them")
    for name, count in left_out(parts.heldout).items():
        told.append(f"{count:,} rows left out of {name}: cut, too long or without a label")
    return "; ".join(filter(None, told))


def _by_whom(parts: Parts) -> str:
    """Returns whose models are scored where none is shared; "" otherwise."""
    if parts.has_shared_model:
        return ""
    return (
        f"all of them by each of {most_scored(parts):,} clients' own models, since no model is "
        "shared; no learning curve"
    )


def _ranked(parts: Parts) -> str:
    """Returns how many labels are ranked, or why they are not; "" for rows without labels."""
    if parts.heldout.choices is None:
        return ""
    texts = parts.heldout.choices.texts
    shown = ", ".join(texts[:_SHOWN]) + (", ..." if len(texts) > _SHOWN else "")
    if is_ranked(parts.heldout):
        return f"{len(texts)} labels ranked ({shown})"
    is_compared = parts.heldout.exact_match
    granted = hosting.grants(parts.spec)
    reason = why_no_ranks(parts.heldout.choices, granted, is_compared=is_compared)
    return f"{len(texts)} labels ({shown}), not ranked: {reason}"


def _model(parts: Parts) -> str:
    spec = parts.spec
    if hosting.is_hosted(spec):
        held = "" if spec.hosting.url else f" in {spec.model.dtype}"
        return f"{spec.hosting.model or spec.model.name}{held} at {hosting.address_of(spec)}"
    frozen = jax.eval_shape(dequantize_model, parts.target)
    weights = count(frozen.variables.get("params", {})) or count(parts.params)
    return f"{spec.model.name}, {weights:,} weights in {spec.model.dtype}{_codes(parts)}"


def _codes(parts: Parts) -> str:
    if parts.spec.model.quantize == "none":
        return ""
    size = format_bytes(num_bytes(parts.target.variables["quantized"]))
    return f", the layers' in {parts.spec.model.quantize} ({size})"


def count(tree: PyTree) -> int:
    """Returns the number of elements in all arrays of a tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
