"""Other stages: what a host is shown, and when the best method of each side has paid for itself."""

import math

import pytest
from ladders import CLOSED, OPEN, cell, ladder

from fedjax_post.report.markup import Bullets, Table
from fedjax_post.report.position.stages import HOUR, break_even, stages


def costing(one, *, seconds=3600.0, tokens=1000, question=10.0, billed=1.0, scored=0.5):
    """A cell whose runs cost this, in training and for the 5 questions of its evaluation."""
    scoring = {"private_tokens": 20, "queries": 5, "cost": scored}
    more = {"train_seconds": seconds, "model_tokens": tokens, "question_tokens": question}
    more["disclosure"] = {"evaluation": scoring}
    return one._replace(
        runs={
            seed: run._replace(
                summary=run.summary | more, disclosure=run.disclosure | {"cost": billed}
            )
            for seed, run in one.runs.items()
        }
    )


def row_of(name, *cells, **facts):
    """The row of the table of stages whose name contains this."""
    (table,) = [b for b in stages(ladder(list(cells), **facts)) if isinstance(b, Table)]
    return next(row for row in table.rows if name in row[0])


def told(cells, **facts):
    """How costs are counted, as one text."""
    lists = [block.items for block in stages(ladder(cells, **facts)) if isinstance(block, Bullets)]
    return " ".join(line for lines in lists for line in lines)


@pytest.mark.parametrize(
    ("fixed", "each", "expected"),
    [
        ((10.0, 4.0), (0.5, 2.5), 3.0),
        ((1.0, 4.0), (0.5, 2.5), 0.0),
        ((10.0, 4.0), (2.5, 0.5), None),
        ((1.0, 4.0), (2.5, 0.5), None),  # cheaper at first, and dearer from then on
        ((10.0, 4.0), (1.0, 1.0), None),
        ((10.0, 4.0), (0.991, 1.0), None),  # 667 uses, if 0.9 % were a difference
        ((10.0, 4.0), (0.98, 1.0), 300.0),
        ((3.9, 4.0), (1.009, 1.0), 0.0),
        ((3.97, 4.0), (1.0, 1.0), None),
        ((0.0, 0.0), (0.0, 0.0), None),
    ],
)
def test_costs_are_equal_after_the_break_even(fixed, each, expected):
    found = break_even(fixed, each)
    assert found == (expected if not expected else pytest.approx(expected))
    if found:
        assert math.isclose(fixed[0] + found * each[0], fixed[1] + found * each[1])


def test_without_a_tolerance_any_difference_counts():
    assert break_even((10.0, 4.0), (0.991, 1.0), tolerance=0.0) == pytest.approx(6 / 0.009)
    assert break_even((10.0, 4.0), (1.0, 1.0), tolerance=0.0) is None


def test_a_question_of_use_is_that_of_the_ledger_where_there_is_one():
    row = row_of("private tokens of one question", OPEN, costing(CLOSED))
    assert row[1:3] == ("4", "0")
    assert "counted in evaluation;" in row[3]
    asked = {"queries": 3, "private_tokens": 21}
    used = {seed: run._replace(used=asked) for seed, run in costing(CLOSED).runs.items()}
    row = row_of("private tokens of one question", OPEN, CLOSED._replace(runs=used))
    assert row[1:3] == ("7", "0")
    assert "counted in use, or in evaluation of runs that were not used;" in row[3]


@pytest.mark.parametrize(
    ("own", "hosted", "expected"),
    [
        ((900, 10.0), (600, 25.0), "20 questions"),
        ((901, 10.0), (600, 25.0), "21 questions"),
        ((605, 10.0), (600, 25.0), "the first question"),
        ((500, 25.0), (600, 25.0), "the first question"),
        ((900, 25.0), (600, 25.1), "never: a use costs both sides the same"),
        ((500, 25.0), (600, 10.0), "never: a use costs the open side more"),
    ],
)
def test_energy_is_paid_back_by_shorter_questions(own, hosted, expected):
    cells = [
        costing(one, tokens=tokens, question=question)
        for one, (tokens, question) in ((OPEN, own), (CLOSED, hosted))
    ]
    assert row_of("energy", *cells)[2] == expected


def test_the_best_method_of_each_side_is_compared_whatever_else_was_run():
    """A soft prompt that asks longer questions makes no other method's question dearer."""
    pair = [costing(OPEN, tokens=500, question=15.0), costing(CLOSED, tokens=600, question=15.0)]
    worse = [
        costing(cell("soft_prompt", "open", (0.7, 0.7, 0.7)), tokens=9000, question=25.0),
        costing(cell("bdpl", "closed", (0.3, 0.3, 0.3), asked=7.0), tokens=10, question=5.0),
        cell("unscored", "open", (None, None, None)),
    ]
    as_good = [costing(OPEN._replace(label="Second"), question=99.0)]
    for name in ("energy", "cost less"):
        alone = row_of(name, *pair)
        assert row_of(name, *worse, *pair, *as_good) == alone
        assert alone[3].startswith("Lora against Fed_Bpt, the best of each side: ")


def test_a_closed_method_that_asks_nothing_in_training_is_not_compared():
    silent = costing(cell("fed_pt", "closed", (0.9, 0.9, 0.9), asked=0.0), billed=0.0)
    assert "Lora against Fed_Bpt" in row_of("cost less", costing(OPEN), silent, costing(CLOSED))[3]
    assert row_of("cost less", costing(OPEN), silent)[2] == "missing"


def test_money_counts_all_tokens_of_a_question_on_both_sides():
    """A question has 4 private tokens, and 10 through the model: those cost a client's time."""
    own = costing(OPEN, seconds=3600.0 / HOUR, tokens=1000, question=10.0)  # 1 in training
    hosted = costing(CLOSED, billed=0.5, scored=0.5)  # 0.1 for a question
    row = row_of("cost less", own, hosted)
    assert row[2] == "6 questions"  # 0.5 / (0.1 - 10 / 1000), rounded up
    assert row[3].endswith("training 1 against 0.5, a million questions 1e+04 against 1e+05")


def test_a_pair_whose_files_lack_a_cost_is_named():
    for name in ("energy", "cost less"):
        row = row_of(name, OPEN, costing(CLOSED))
        assert row[2] == "missing"
        assert row[3].startswith("Lora against Fed_Bpt, the best of each side: a summary lacks")
        assert row_of(name, OPEN)[2] == "missing"


def test_means_say_over_how_many_methods_they_are():
    second = costing(cell("bdpl", "closed", (0.3, 0.3, 0.3), asked=900.0))
    cells = [costing(OPEN), costing(CLOSED), second]
    training = row_of("post-training", *cells)
    assert training[1] == "800 (700 to 900)"
    assert "mean over 2 methods" in training[3]
    scored = row_of("an evaluation", *cells)
    assert scored[1] == str(4 * 240)  # tokens of a question, held-out rows
    assert "mean over 2 methods, and with the weights over 1 method" in scored[3]
    assert row_of("of one question", *cells)[1] == "4"
    assert row_of("post-training", OPEN)[1] == "missing"


def test_equal_training_is_said_to_be_set_by_the_budget():
    cells = [costing(OPEN), costing(CLOSED)]
    assert "to one budget, 300,000 tokens through the model" in told(cells, budget=300_000)
    assert "No budget was stated" in told(cells)
    assert "the budget counts it three times" in told(cells)


def test_unlearning_has_its_loss_of_score_on_either_side():
    row = {"drill": "forgotten", "method": "lora", "lost": [0.3, 0.3, 0.3]}
    found = row_of("unlearning", OPEN, CLOSED, drills=[row])
    assert found[1] == "missing"
    assert "lora loses +30.0" in found[2]
