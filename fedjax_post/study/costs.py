"""What a run costs, in one unit for all methods: tokens through the model; before it, and after it.

A token counts once for each forward pass over it in training, in whatever model a client trains or
asks: the target, a proxy or a stand-in. A backward pass counts as two forward ones.

| a method that | counts |
| --- | --- |
| asks the target | all tokens and prompt places of its queries, by the meter |
| has its host train | three times the tokens that the host trains on, in each epoch |
| back-propagates | three times the tokens of its rows, and the places of its prompt |
| holds weights, and only evaluates | twice: all such methods here take two-sided differences |

Scoring is no part of it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_post.core.access import Access, union
from fedjax_post.disclosure.ledger import Sent, asks
from fedjax_post.disclosure.meter import Carried, Purpose, add
from fedjax_post.evaluate.heldout import is_ranked
from fedjax_post.report.table import columns
from fedjax_post.simulate import wire_bytes_of
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.study import metering, prompts, rows
from fedjax_post.study.build import Parts
from fedjax_post.study.personal_scores import most_scored

_BACKWARD, _TWO_SIDED = 3, 2  # passes over a token
_SAMPLED = 8  # clients whose first visits are averaged


class Cost(NamedTuple):
    """What a run is expected to cost."""

    tokens: float  # through the model, in training
    queries: float  # to the target, in training
    private_tokens: float  # in these queries
    money: float  # in the unit of `hosting.price`, in training
    bytes_up: int
    scoring: int  # tokens through the model to score all rows, before and after training


def model_tokens(parts: Parts, *, read: float, num_steps: float, sent: Sequence[Sent]) -> float:
    """Returns the tokens through the model in training.

    Args:
      parts: of the run.
      read: tokens of the rows that clients have read.
      num_steps: local steps, of `training.batch_size` rows each.
      sent: what went to the host of the target.
    """
    access = parts.algorithm.access
    if asks(access):
        training = add([carried for _, purpose, carried in sent if purpose == Purpose.TRAINING])
        return _read(training) + _BACKWARD * training.trained
    places = prompts.places_of(parts.spec, parts.tokenizer)
    return _passes(access) * (read + num_steps * parts.spec.training.batch_size * places)


def question_tokens(parts: Parts) -> float:
    """Returns the tokens through the target for a use: a held-out row with its prompt and answer.

    The prompt is as long as at its start. Examples that a client adds to it are not in it.
    """
    places = prompts.places_of(parts.spec, parts.tokenizer)
    return places + float(parts.heldout.table.length[parts.heldout.rows].mean())


def expected(parts: Parts) -> Cost:
    """Returns what a run will cost, from visits that are drawn, and played where they ask.

    A method that asks more at its first visit than later costs less than this.
    """
    spec, clients = parts.spec, parts.data.clients
    cohort = rows.cohort_size(spec, len(clients))
    visits = spec.training.rounds * cohort
    ids = metering.evenly(len(clients), _SAMPLED)
    drawn = [clients.visit(i, data_rng(spec.seed, 0, i)) for i in ids]
    each = lambda name: float(np.mean([np.sum(getattr(one, name)) for one in drawn]))
    sent = _with_training(parts, _times(_played(parts), visits))
    tokens = model_tokens(
        parts,
        read=visits * each("num_read"),
        num_steps=visits * each("step_mask"),
        sent=[(0, Purpose.TRAINING, sent)],
    )
    paid = spec.hosting.inference == "provider" and asks(parts.algorithm.access)
    price = spec.hosting.price if paid else 0.0
    return Cost(
        tokens=tokens,
        queries=sent.queries,
        private_tokens=sent.private_tokens,
        money=price * (_read(sent) + sent.answers + sent.trained) / 1e6,
        bytes_up=_bytes_up(parts, visits),
        scoring=_scoring(parts),
    )


def table(costs: Mapping[str, Cost], *, budget: int | None = None) -> str:
    """Returns the costs as a text table.

    Args:
      costs: by label.
      budget: tokens through the model that each run should take.
    """
    head = ["", "tokens through the model", "of the budget", "queries", "private tokens", "money"]
    lines = [[*head, "bytes up", "tokens to score it"]]
    for label, cost in costs.items():
        share = "" if not budget else f"{cost.tokens / budget:.2f}"
        sent = f"{cost.queries:,.0f}", f"{cost.private_tokens:,.0f}", f"{cost.money:.3g}"
        ends = f"{cost.bytes_up:,}", f"{cost.scoring:,}"
        lines.append([label, f"{cost.tokens:,.0f}", share, *sent, *ends])
    return columns(lines)


def _passes(access: Mapping[str, Access]) -> int:
    return _BACKWARD if Access.DIFFERENTIATE in union(access) else _TWO_SIDED


def _played(parts: Parts) -> Carried:
    """Returns what a visit sends to the target on average, over some clients."""
    if not asks(parts.algorithm.access):
        return Carried()
    played = metering.play(
        *(parts.algorithm, parts.model, parts.params, parts.data),
        meter=parts.meter,
        num_clients=_SAMPLED,
    )
    return Carried() if played is None else _times(played.metered, 1 / played.num_visits)


def _with_training(parts: Parts, sent: Carried) -> Carried:
    """Adds what a host trains on: in each epoch all rows, with their prompts and ends."""
    if not sent.filed:
        return sent
    epochs = parts.spec.method.params["num_epochs"]
    return sent._replace(trained=epochs * (sent.filed + sent.queries * (parts.form.prompt + 1)))


def _read(sent: Carried) -> int:
    """Returns the tokens and places that calls have the target read; files are trained on alone."""
    return sent.tokens - sent.filed + sent.places


def _times(carried: Carried, factor: float) -> Carried:
    names = [name for name in Carried._fields if name != "distinct"]
    return Carried(**{name: round(factor * getattr(carried, name)) for name in names})


def _bytes_up(parts: Parts, visits: int) -> int:
    if parts.spec.method.baseline != "none":
        return 0
    return visits * wire_bytes_of(parts.algorithm, parts.model, parts.data.clients, parts.params).up


def _scoring(parts: Parts) -> int:
    heldout = parts.heldout
    length = heldout.table.prompt_length if is_ranked(heldout) else heldout.table.length
    models = 1 if parts.has_shared_model else most_scored(parts)
    places = len(heldout.rows) * prompts.places_of(parts.spec, parts.tokenizer)
    return (1 + models) * (int(length[heldout.rows].sum()) + places)
