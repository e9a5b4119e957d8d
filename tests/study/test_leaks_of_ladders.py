"""What is attacked on a ladder's wires, and that shares are of the questions' private tokens."""

import pytest

from fedjax_post import attacks
from fedjax_post.study import Rung, Spec, leaks
from fedjax_post.study.leaks import Leaks

OPEN = Spec(method="fed_avg").put(
    {
        "model.name": "builtin-instruct",
        "data.source": "builtin-kinds",
        "data.template": "{instruction}\\n",
        "data.num_clients": 8,
        "adapter.prompt_text": "name the kind of these words:",
        "adapter.rank": 64,
        "method.client_lr": 0.1,
        "method.client_optimizer": "sgd",
        "training.cohort_size": 2,
        "training.local_steps": 1,
        "training.batch_size": 1,
        "scoring.examples": 8,
        "scoring.exact_match": "off",
        "scoring.telemetry_clients": 0,
    }
)
RUNGS = {"lora": Rung(OPEN, "open"), "bdpl": Rung(Spec(method="bdpl"), "closed")}
SETTINGS = Leaks(("lora",), (attacks.dager(),), {"own": {}, "large": {"training.batch_size": 8}})


def test_every_wire_is_run_with_every_seed_and_recorded(tmp_path):
    planned = leaks.plan(SETTINGS, RUNGS, (0, 1), tmp_path)
    assert [(wire, cell.spec.seed) for _, wire, cell in planned] == [
        *(("own", 0), ("own", 1), ("large", 0), ("large", 1)),
    ]
    for _, wire, cell in planned:
        assert cell.spec.execution.record_wire == "0:2"
        assert cell.spec.training.rounds == 2
        assert cell.spec.training.batch_size == (8 if wire == "large" else 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (SETTINGS._replace(cells=("bdpl",)), "attacks name bdpl, which is no open method"),
        (SETTINGS._replace(protected={"own": {}}), "attacks have two wires named own"),
    ],
)
def test_what_sends_no_updates_is_not_attacked(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        leaks.plan(given, RUNGS, (0,), tmp_path)


@pytest.mark.parametrize(
    ("guesses", "found"),
    [
        ([(1, 2, 3), (4, 5)], 5),
        ([(4, 5), (3, 2, 1)], 5),  # rows and tokens in any order
        ([(1, 2, 3, 4, 5)], 3),  # one guess is for one row
        ([(1, 1, 1)], 1),
        ([(9,)], 0),
        ([], 0),
    ],
)
def test_tokens_are_found_once_in_the_row_that_they_stand_in(guesses, found):
    assert attacks.tokens_found(guesses, [(1, 2, 3), (4, 5)]) == found


@pytest.mark.heavy
def test_a_step_of_sgd_shows_more_than_guessing(tmp_path):
    settings = SETTINGS._replace(wires={"own": {}}, rounds="0:1")
    (row,) = leaks.carry_out(settings, RUNGS, (0,), tmp_path, show=lambda line: None)
    assert (row["party"], row["protection"]) == ("server", "none")
    assert row["guess"][0] < row["recovered"][0] <= 1
    # two visits of one question each, of four or five nouns
    assert 6 <= row["tokens"][0] <= 10
