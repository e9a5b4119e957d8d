"""What is saved where many rows begin with the same tokens, which are then read once for a batch.

Two functions take turns in one process: one is told of the prefix, the other reads it in every
row. Their first results must be equal up to rounding.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

import fedjax_post
from fedjax_post.adapters.prompt import add_soft_prompt
from fedjax_post.algorithms import fed_bpt
from fedjax_post.data import TokenClients, iid
from fedjax_post.data.table import TokenTable
from fedjax_post.evaluate.choices import Choices
from fedjax_post.evaluate.ranking import choice_log_probs
from fedjax_post.experiments.benchmark.lines import Aim, Figure, ratio
from fedjax_post.experiments.benchmark.settings import Settings, select
from fedjax_post.hub.load import load_model
from fedjax_post.objectives.choice import choice_loss

PREFIX, LENGTH = 64, 96  # tokens that all rows share, and tokens of a row
SCORED, ASKED = 32, 8  # rows of a batch: the usual number of an evaluation, and that of a client
LABELS, SOFT = 4, 16  # labels, of which half have two tokens; places of the soft prompt
_AIM = Aim(2.0)


def measure(settings: Settings) -> Iterator[Figure]:
    """Yields the ratio for a batch of labelled rows, and for a round of FedBPT."""
    model = load_model(settings.model)
    for title, make in select({"ranks of labels": _ranks, "FedBPT round": _rounds}, settings):
        num_rows = SCORED if make is _ranks else ASKED
        rows = np.random.default_rng(0).integers(2, model.config.vocab_size, (num_rows, LENGTH))
        rows[:, :PREFIX] = rows[0, :PREFIX]
        name = f"{title}, {num_rows} rows of {LENGTH - PREFIX} tokens after a prefix of {PREFIX}"
        yield _compare(name, make(model, rows.astype(np.int32)), settings)


def _compare(title: str, sides: tuple[Callable, Callable], settings: Settings) -> Figure:
    """Returns seconds without the prefix over seconds with it; the sides are with, without."""
    np.testing.assert_allclose(sides[0](), sides[1](), atol=1e-3)
    turns = [[_seconds(side) for side in sides] for _ in range(settings.warm_up + settings.turns)]
    told, whole = zip(*turns[settings.warm_up :], strict=True)
    return ratio(
        title,
        whole,
        told,
        aim=_AIM,
        model=settings.model,
        seconds_with_prefix=float(np.median(told)),
        seconds_without=float(np.median(whole)),
    )


def _seconds(side: Callable) -> float:
    began = time.perf_counter()
    jax.block_until_ready(side())
    return time.perf_counter() - began


def _ranks(model: Any, rows: np.ndarray) -> tuple[Callable, Callable]:
    """Returns functions that score the labels after every row."""
    tokens = rows[:LABELS, -2:]
    length = np.array([1, 2] * (LABELS // 2), np.int32)
    choices = Choices(tuple("abcd"), tokens, length, rows[0, :1])

    def score(prompts, **given):
        return choice_log_probs(
            model, {}, list(prompts), choices, batch_size=len(rows), **given
        ).labels

    prefix = tuple(rows[0, :PREFIX].tolist())
    return lambda: score(rows[:, PREFIX:], prefix=prefix), lambda: score(rows)


def _rounds(model: Any, rows: np.ndarray) -> tuple[Callable, Callable]:
    """Returns functions that run a round of one client, which asks for its rows six times."""
    num, length = rows.shape
    answers = np.arange(2, 2 + num, dtype=np.int32)
    signed = np.concatenate([rows[:, :-1], ~answers[:, None]], axis=1)
    start, size = np.arange(num, dtype=np.int64) * length, np.full(num, length, np.int32)
    chunk = np.zeros(num, np.int32)
    table = TokenTable((signed.reshape(-1),), chunk, start, size, size - 1, length, 0)
    clients = TokenClients(table, iid(num, 1), batch_size=num, local_steps=1)
    params = add_soft_prompt(model, jax.random.key(0), length=SOFT)

    def side(prefix: list[int]) -> Callable:
        loss_fn = choice_loss(answers.tolist(), among_all=True, prefix=prefix)
        algorithm = fed_bpt(loss_fn, search_dim=50, num_points=5, generations=1)
        rounds = fedjax_post.run(algorithm, model, clients, params=params, rounds=1000)
        return lambda: next(rounds)[1]["loss"]

    return side(rows[0, :PREFIX].tolist()), side([])
