"""Uploads to a host that trains: what is uploaded, once, and what rows are made of."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post import algorithms
from fedjax_post.blackbox import crossed, shots
from fedjax_post.core import ClientData, Context, engine
from fedjax_post.testing import toy_service

TOKENS = jnp.array([[8, 1, 2, 5, 9, 0], [8, 3, 4, 5, 9, 0], [8, 1, 2, 6, 9, 0], [0] * 6], jnp.int32)
LEARNED = jnp.array([[0, 0, 0, 1, 1, 0]] * 3 + [[0] * 6], bool)
DROPPED = jnp.array([8, 9])


class Heard(NamedTuple):
    """A model that notes what is uploaded to it."""

    calls: list

    def upload(self, params, tokens, question, answer):
        kept = np.asarray(question.any(axis=1))
        mask = np.asarray(question | answer)
        self.calls.append(
            [row[m].tolist() for row, m in zip(tokens[kept], mask[kept], strict=True)]
        )


def made(name="host_tuning", **given):
    return getattr(algorithms, name)(None, dropped=DROPPED, num_clients=3, **given)


def visit(algorithm, shared, heard, *, client_id, round, steps=(True,)):
    batches = {"tokens": TOKENS[None], "loss_mask": LEARNED[None]}
    data = ClientData(batches, np.array(steps), 3.0, 3.0, 0)
    ctx = Context(jax.random.key(0), jnp.int32(round), jnp.int32(client_id))
    return algorithm.client.update(heard, shared, (), data, ctx)


def start(algorithm):
    return engine.init(algorithm, toy_service.toy_params()).shared


def test_a_question_ends_where_the_last_answer_begins():
    learned = jnp.array([[0, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0]], bool)
    question, answer = shots.sides(jnp.array([[8, 1, 2, 3, 4, 9]] * 2), learned, DROPPED)
    assert question.tolist() == [[True] * 4 + [False] * 2, [False] * 6]
    assert answer.tolist() == [[False] * 4 + [True, False], [False] * 6]


def test_a_client_uploads_its_rows_at_its_first_visit_alone():
    algorithm, heard = made(), Heard([])
    shared = start(algorithm)
    upload, _, told = visit(algorithm, shared, heard, client_id=1, round=4)
    assert heard.calls == [[[8, 1, 2, 5], [8, 3, 4, 5], [8, 1, 2, 6]]]
    assert {name: float(value) for name, value in told.items()} == {
        "queries": 3.0, "tokens_sent": 12.0, "labels_sent": 3.0, "places_sent": 0.0,
    }  # fmt: skip
    assert upload.weight == 1
    stacked = jax.tree.map(lambda x: jnp.stack([x, x * 0]), upload.value), jnp.array([1.0, 0.0])
    shared, _ = algorithm.server.update(stacked, (), shared)
    assert shared.uploaded.tolist() == [0, 5, 0]
    upload, _, told = visit(algorithm, shared, heard, client_id=1, round=5)
    assert (heard.calls[1], float(upload.weight), float(told["queries"])) == ([], 0.0, 0.0)


def test_steps_that_are_not_taken_are_not_uploaded():
    algorithm, heard = made(), Heard([])
    visit(algorithm, start(algorithm), heard, client_id=0, round=0, steps=(False,))
    assert heard.calls == [[]]


def test_crossed_rows_keep_the_answer_and_the_template_and_are_no_row_of_the_client():
    question, answer = shots.sides(TOKENS, LEARNED, DROPPED)
    rows = crossed.cross_rows(TOKENS, question, answer, jax.random.key(1), num=64)
    tokens, question, answer = map(np.asarray, rows)
    kept = question.any(axis=1)
    assert (kept == answer.any(axis=1)).all()
    found = {tuple(row[m].tolist()) for row, m in zip(tokens[kept], question[kept], strict=True)}
    assert found == {(8, 1, 4), (8, 3, 2)}  # of two rows with answer 5; that with 6 has no second
    assert set(tokens[kept][answer[kept]].tolist()) == {5}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("host_tuning", {"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
        ("host_tuning", {"batch_rows": 0}, "batch_rows must be at least 1"),
        ("host_tuning", {"multiplier": 0.0}, "multiplier must be at least 1e-06"),
        ("synthetic_tuning", {"num_synthetic": 0}, "num_synthetic must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(name, given, message):
    with pytest.raises(ValueError, match=message):
        made(name, **given)
