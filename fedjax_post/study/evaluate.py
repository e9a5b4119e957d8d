"""Scores of a model on any data: overall, for each task and for each client."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fedjax_post.core.access import Access
from fedjax_post.evaluate.clients import ClientTable
from fedjax_post.evaluate.generation import NoteFn
from fedjax_post.evaluate.heldout import HeldOut, score_names
from fedjax_post.evaluate.scores import Scores, left_out, measure, scores_of
from fedjax_post.report.clients import heading, spread_rows
from fedjax_post.report.table import SCORES, columns, left_out_lines, score_cells
from fedjax_post.study import client_rows, client_tables, ledgers, rows, uses
from fedjax_post.study.served import Served, load_rows, serve

_NONE: Mapping[str, Any] = MappingProxyType({})
_USUAL = 8  # clients whose training rows are scored by default


class Evaluation(NamedTuple):
    """Scores of a model."""

    scores: Scores  # on held-out rows; "per_task" holds those of each label
    clients: dict[str, ClientTable]  # "shared", of clients that train, and "heldout"
    heldout_clients: Scores | None  # on rows of held-out clients; None if there are none
    left_out: dict[str, int]  # of the held-out rows, by score

    def table(self) -> str:
        """Returns the scores as a text table, with a line for each client and their spread."""
        names = [name for name in SCORES if name in self.scores]
        lines = [["", *names], ["held out", *score_cells(self.scores, names)]]
        for task, scores in self.scores.get("per_task", {}).items():
            lines.append([f"  {task}", *score_cells(scores, names)])
        if self.heldout_clients is not None:
            lines.append(["held-out clients", *score_cells(self.heldout_clients, names)])
        for name, table in self.clients.items():
            found = table.summary()
            lines.append([heading(name, found), *[""] * len(names)])
            for line in table.lines:
                cells = score_cells(line.scores, names)
                lines.append([f"  {line.client} ({line.examples} rows)", *cells])
            lines += spread_rows(found, names)
        return "\n".join([columns(lines), *left_out_lines(self.left_out)])


def evaluate(what: str | Path, changes: Mapping[str, Any] = _NONE) -> Evaluation:
    """Returns the scores of a run's model, of an adapter's folder or of a base model.

    The rows are those of the run, unless `changes` name others, as in
    `{"data.source": "rows.jsonl"}`. They are held out as in a run with this specification.
    At most `scoring.examples` of the held-out rows are scored, and the clients' rows are among
    them, see `client_rows`. Where nothing says whose they are, at most as many rows of each of
    `scoring.clients` clients (8) are scored that it trains on; 0 examples stands for all.

    A run whose target is at a provider asks it, without a loss. That is a use of the run, as is
    an evaluation of a closed target that is simulated here, see `uses`.

    Args:
      what: as for `serve`.
      changes: of the specification, by path.

    Raises:
      ValueError, OSError: for a model or rows that cannot be read or scored, and a provider that
        does not answer.
      DisclosureError: with `hosting.fail_on_disclosure`, if a provider would be shown questions.
    """
    served = serve(what, changes)
    spec, data, room = load_rows(served)
    granted = Access[spec.hosting.access] if served.is_hosted else None
    heldout = rows.make_heldout(spec, data, served.tokenizer, room=room, granted=granted)
    if not score_names(heldout):
        unmatched = rows.why_no_match(heldout.table)
        unranked = rows.why_no_ranks(heldout.choices, granted, is_compared=heldout.exact_match)
        raise ValueError(
            f"{what} has no score at its provider: {unmatched}; {unranked or 'there are no labels'}"
        )
    if client_rows.kind_of(data) == "training" and spec.scoring.clients is None:
        spec = spec.put({"scoring.clients": _USUAL})
    with _model_of(served, heldout) as (model, note_fn):
        measure_fn = lambda heldout: measure(model, served.params, heldout, note_fn=note_fn)
        outcomes = measure_fn(heldout)
        by_client = client_tables.tables_of(
            data, heldout, outcomes, measure_fn=measure_fn, spec=spec
        )
    return Evaluation(scores_of(outcomes, heldout), *by_client, left_out(heldout))


@contextlib.contextmanager
def _model_of(served: Served, heldout: HeldOut) -> Iterator[tuple[Any, NoteFn | None]]:
    """Returns a context with the model to score, and the function that counts its calls."""
    if served.use is None:
        yield served.model, None
        return
    questions, rounds = ledgers.questions_in(heldout.table), served.spec.training.rounds
    with uses.opened(served.use, questions, rounds=rounds) as (hosted, note_fn):
        yield served.model if hosted is None else hosted, note_fn
