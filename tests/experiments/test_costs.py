"""Costs: what is expected before a run is what its summary has after it."""

import pytest

from fedjax_post.report.records import read_summary
from fedjax_post.study import build, costs, read, resolve

pytestmark = pytest.mark.heavy


def test_gradients_take_three_passes_over_what_is_read(finished):
    told = read_summary(finished)
    assert told["model_tokens"] == 3 * told["tokens"] > 0
    heldout = build.build(resolve(read(finished).spec)).heldout
    assert told["question_tokens"] == heldout.table.length[heldout.rows].mean()


def test_what_is_expected_is_near_what_was_spent(finished):
    told, parts = read_summary(finished), build.build(resolve(read(finished).spec))
    cost = costs.expected(parts)
    # visits are drawn at random: the rows of the first ones are not those that were read
    assert cost.tokens == pytest.approx(told["model_tokens"], rel=0.3)
    assert cost.bytes_up == told["bytes_up"]
    assert (cost.queries, cost.money) == (0, 0)
    assert "of the budget" in costs.table({"this": cost}, budget=100)


def test_queries_are_expected_as_they_are_made(call, tmp_path):
    prompt = ("--adapter=text_prompt", "--prompt_text=say", "--template={instruction} ->")
    method = ("--algorithm=fed_dtpt", "--num_edits=2", "--labels=cat,dog,hen,pig,cow")
    assert call(*prompt, *method, "--inference=provider", "--price=2") == 0
    told = read_summary(tmp_path / "run")
    cost = costs.expected(build.build(resolve(read(tmp_path / "run").spec)))
    assert cost.queries == told["queries"] > 0
    assert cost.tokens == pytest.approx(told["model_tokens"], rel=0.3)
    assert cost.money == pytest.approx(told["disclosure"]["cost"], rel=0.3)
