"""Scores of a model on any data: overall, for each task and for each client."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fedjax_post.evaluate.heldout import choose_rows
from fedjax_post.evaluate.scores import Scores, score
from fedjax_post.report.table import SCORES, columns, score_cells
from fedjax_post.study import rows
from fedjax_post.study.served import serve

_NONE: Mapping[str, Any] = MappingProxyType({})


class Evaluation(NamedTuple):
    """Scores of a model."""

    scores: Scores  # on held-out rows; "per_task" holds those of each label
    clients: dict[str, Scores]  # on the rows of each client, by the client's name

    def table(self) -> str:
        """Returns the scores as a text table, with the clients' mean and deviation."""
        names = [name for name in SCORES if name in self.scores]
        lines = [["", *names], ["held out", *score_cells(self.scores, names)]]
        for task, scores in self.scores.get("per_task", {}).items():
            lines.append([f"  {task}", *score_cells(scores, names)])
        for client, scores in self.clients.items():
            lines.append([f"client {client}", *score_cells(scores, names)])
        if len(self.clients) > 1:
            values = {name: [s[name] for s in self.clients.values() if name in s] for name in names}
            for what, fn in (("mean", np.mean), ("deviation", np.std)):
                spread = {name: float(fn(found)) for name, found in values.items() if found}
                lines.append([f"clients, {what}", *score_cells(spread, names)])
        return columns(lines)


def evaluate(what: str | Path, changes: Mapping[str, Any] = _NONE) -> Evaluation:
    """Returns the scores of a run's model, of an adapter's folder or of a base model.

    The rows are those of the run, unless `changes` name others, as in
    `{"data.source": "rows.jsonl"}`. They are held out as in a run with this specification.
    At most `scoring.examples` of the held-out rows are scored, and at most as many rows of each
    of `scoring.clients` clients; 0 examples stands for all.

    Args:
      what: as for `serve`.
      changes: of the specification, by path.

    Raises:
      ValueError, OSError: for a model or rows that cannot be read or scored.
    """
    model, params, tokenizer, spec = serve(what, changes)
    if spec.training.local_steps is None and spec.training.local_epochs is None:
        spec = spec.put({"training.local_steps": 1})  # loading needs a value; nothing is trained
    room = model.config.max_positions - model.prompt_length(params)
    data = rows.load_data(spec, tokenizer, context_length=room)
    heldout = rows.make_heldout(spec, data, tokenizer, room=room)
    held = getattr(data.clients, "preferred", data.clients)
    offsets, indices = held.partition
    scored = {}
    for number in choose_rows(len(data.clients), spec.scoring.clients, seed=spec.seed).tolist():
        own = indices[offsets[number] : offsets[number + 1]]
        chosen = own[choose_rows(len(own), spec.scoring.examples, seed=spec.seed)]
        name = data.names[number] if data.names else str(number)
        theirs = heldout._replace(table=held.table, rows=chosen, rejected=None)
        scored[str(name)] = score(model, params, theirs)
    return Evaluation(score(model, params, heldout), scored)
