"""Other stages: what a host is shown, and when the best method of each side has paid for itself."""

import math

import pytest
from ladders import CLOSED, OPEN, cell, ladder

from fedjax_post.report.markup import Bullets, Table
from fedjax_post.report.position.ladder import TIERS
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
    """The row of the tables of stages and of costs whose name contains this."""
    tables = [b for b in stages(ladder(list(cells), **facts)) if isinstance(b, Table)]
    return next(row for table in tables for row in table.rows if name in row[0])


def of(name, tier, *cells, **facts):
    """The entry of a capability in such a row."""
    return row_of(name, *cells, **facts)[1 + TIERS.index(tier)]


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
    assert of("of a question", "LOGITS", OPEN, costing(CLOSED)) == "4.0"
    asked = {"queries": 3, "private_tokens": 21}
    used = {seed: run._replace(used=asked) for seed, run in costing(CLOSED).runs.items()}
    assert of("of a question", "LOGITS", OPEN, CLOSED._replace(runs=used)) == "7.0"
    assert of("of a question", "GRADIENTS", OPEN) == "0, by definition"


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
    assert row_of("energy", *cells)[1] == expected


def test_the_best_method_of_each_side_is_compared_whatever_else_was_run():
    """A soft prompt that asks longer questions makes no other method's question dearer."""
    pair = [costing(OPEN, tokens=500, question=15.0), costing(CLOSED, tokens=600, question=15.0)]
    worse = [
        costing(cell("soft_prompt", "open", (0.7, 0.7, 0.7)), tokens=9000, question=25.0),
        costing(cell("bdpl", "closed", (0.3, 0.3, 0.3), asked=7.0), tokens=10, question=5.0),
        cell("unscored", "open", (None, None, None)),
    ]
    as_good = [costing(OPEN._replace(label="Second"), question=99.0)]
    for name in ("energy", "money"):
        alone = row_of(name, *pair)
        assert row_of(name, *worse, *pair, *as_good) == alone
        assert alone[2].startswith("Lora against Fed_Bpt, the best of each side: ")


def test_a_closed_method_that_asks_nothing_in_training_is_not_compared():
    silent = costing(cell("fed_pt", "closed", (0.9, 0.9, 0.9), asked=0.0), billed=0.0)
    assert "Lora against Fed_Bpt" in row_of("money", costing(OPEN), silent, costing(CLOSED))[2]
    assert row_of("money", costing(OPEN), silent)[1] == "missing"


def test_money_counts_all_tokens_of_a_question_on_both_sides():
    """A question has 4 private tokens, and 10 through the model: those cost a client's time."""
    own = costing(OPEN, seconds=3600.0 / HOUR, tokens=1000, question=10.0)  # 1 in training
    hosted = costing(CLOSED, billed=0.5, scored=0.5)  # 0.1 for a question
    row = row_of("money", own, hosted)
    assert row[1] == "6 questions"  # 0.5 / (0.1 - 10 / 1000), rounded up
    assert row[2].endswith("training 1 against 0.5, a million questions 1e+04 against 1e+05")


def test_a_pair_whose_files_lack_a_cost_is_named():
    for name in ("energy", "money"):
        row = row_of(name, OPEN, costing(CLOSED))
        assert row[1] == "missing"
        assert row[2].startswith("Lora against Fed_Bpt, the best of each side: a summary lacks")
        assert row_of(name, OPEN)[1] == "missing"


def test_a_capability_has_the_mean_and_range_of_its_methods():
    second = costing(cell("bdpl", "closed", (0.3, 0.3, 0.3), asked=900.0))
    unscored = cell("fed_one", "closed", (None, None, None), asked=None)
    text = costing(cell("fed_dtpt", "closed", (0.4, 0.4, 0.4), tier="TEXT", asked=100.0))
    cells = [costing(OPEN), costing(CLOSED), second, unscored, text]
    assert of("methods", "LOGITS", *cells) == "3"
    assert of("exact match", "LOGITS", *cells) == "40.5 (30.0 to 51.0), 2 of 3 methods"
    assert of("post-training: private", "LOGITS", *cells) == "800 (700 to 900), 2 of 3 methods"
    assert of("post-training: private", "TEXT", *cells) == "100"
    assert of("evaluation of", "TEXT", *cells) == str(4 * 240)
    assert of("of a question", "TEXT", *cells) == "4.0"


def test_what_is_by_definition_and_what_was_not_measured_are_told_apart():
    stand_in = costing(cell("offsite", "closed", (0.5,) * 3, tier="EMULATOR", asked=0.0))
    cells = [costing(OPEN), costing(CLOSED), stand_in]
    for name in ("post-training: private", "evaluation of", "of a question"):
        assert of(name, "GRADIENTS", *cells) == "0, by definition"
        assert of(name, "FINETUNE", *cells) == "not measured"
    assert of("post-training: private", "EMULATOR", *cells) == "0, by definition"
    assert of("of a question", "EMULATOR", *cells) == "4.0"  # its host is asked in use
    assert of("pre-training", "EMULATOR", *cells) == "impossible, by definition"
    assert of("pre-training", "GRADIENTS", *cells) == "possible, by definition; not measured"


def test_a_method_that_asks_and_was_not_metered_in_evaluation_is_not_measured():
    blind = costing(CLOSED)
    for run in blind.runs.values():
        run.summary["disclosure"]["evaluation"] |= {"private_tokens": 0, "queries": 0}
    assert of("evaluation of", "LOGITS", blind) == "not measured"


def test_equal_training_is_said_to_be_set_by_the_budget():
    cells = [costing(OPEN), costing(CLOSED)]
    assert "to one budget, 300,000 tokens through the model" in told(cells, budget=300_000)
    assert "No budget was stated" in told(cells)
    assert "the budget counts it three times" in told(cells)


def test_unlearning_has_its_loss_of_score_by_capability():
    row = {"drill": "forgotten", "method": "lora", "lost": [0.3, 0.3, 0.3]}
    assert of("unlearning", "LOGITS", OPEN, CLOSED, drills=[row]) == "not measured"
    found = of("unlearning", "GRADIENTS", OPEN, CLOSED, drills=[row])
    assert found == "+30.0 ± 0.0 points (3 seeds), lora"
