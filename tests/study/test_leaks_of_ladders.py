"""What is attacked on a ladder's wires, and that shares are of the questions' private tokens."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
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
        (SETTINGS._replace(wires={}), "attacks have no wires, so that nothing is attacked"),
        (SETTINGS._replace(cells=()), "attacks have no cells, so that nothing is attacked"),
    ],
)
def test_attacks_of_nothing_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        leaks.check(given, RUNGS)


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


OTHERS = [(1, 2, 3), (4, 4), (5, 6, 1), (2, 2, 7, 9), (3,), ()]
TRUE = [(1, 2, 3), (4, 5, 6), (2, 2, 7)]


@pytest.mark.parametrize("num_guesses", [1, 3, 8])
@pytest.mark.parametrize("rows", [TRUE, TRUE[:1], [()], []])
def test_guessing_finds_the_mean_of_what_draws_find(num_guesses, rows):
    count = lambda seed: leaks.guessed_tokens(
        [Counter(row) for row in OTHERS], rows, num_guesses, np.random.default_rng(seed)
    )
    drawn = np.random.default_rng(0).integers(len(OTHERS), size=(leaks.DRAWS, num_guesses))
    found = [attacks.tokens_found([OTHERS[i] for i in draw], rows) for draw in drawn.tolist()]
    assert count(0) == pytest.approx(np.mean(found))


def test_guessing_differs_little_between_seeds():
    others = [Counter(row) for row in OTHERS]
    found = [leaks.guessed_tokens(others, TRUE, 3, np.random.default_rng(s)) for s in range(20)]
    one = [attacks.tokens_found([OTHERS[i] for i in np.random.default_rng(s).integers(6, size=3)],
                                TRUE) for s in range(20)]  # fmt: skip
    assert np.std(found) < 0.2 * np.std(one)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ((), "no visit was recorded in the rounds 0:2, .*; let `rounds` of \\[attacks\\] be some"),
        ((None, None), "no question of the 2 recorded visits has a private token, .*; give client"),
    ],
)
def test_runs_without_private_tokens_are_no_evidence(sent, message, tmp_path, monkeypatch):
    heldout = SimpleNamespace(choices=None, prefix=(5, 6))
    found = SimpleNamespace(sent=sent), SimpleNamespace(heldout=heldout)
    monkeypatch.setattr(leaks, "see", lambda directory: found)
    monkeypatch.setattr(leaks, "truth", lambda parts, sent, answers: [(5, 6)])
    monkeypatch.setattr(leaks.cells, "carry_out_all", lambda planned, **given: None)
    with pytest.raises(ValueError, match=f"lora, own, seed 3: on the wire own {message}"):
        leaks.carry_out(SETTINGS, RUNGS, (3,), tmp_path, show=lambda line: None)


@pytest.mark.heavy
def test_a_step_of_sgd_shows_more_than_guessing(tmp_path):
    settings = SETTINGS._replace(wires={"own": {}}, rounds="0:1")
    (row,) = leaks.carry_out(settings, RUNGS, (0,), tmp_path, show=lambda line: None)
    assert (row["party"], row["protection"]) == ("server", "none")
    assert row["guess"][0] < row["recovered"][0] <= 1
    # two visits of one question each, of four or five nouns
    assert 6 <= row["tokens"][0] <= 10


def test_a_wire_that_trains_otherwise_is_not_that_of_its_cell(tmp_path, monkeypatch):
    wires = {
        "fewer": {"training.cohort_size": 2, "scoring.examples": 48},
        "other": {"training.cohort_size": 2, "training.local_steps": 1},
    }
    settings = SETTINGS._replace(wires=wires, protected={"noise": {"privacy.clip": 1.0}})
    monkeypatch.setattr(leaks.cells, "carry_out_all", lambda planned, **given: None)
    monkeypatch.setattr(leaks, "_attacked", lambda given, cell: {"guess": (0.5, 0.1, 9)})
    rows = leaks.carry_out(settings, RUNGS, (0,), tmp_path, show=lambda line: None)
    own = {row["wire"]: row["own"] for row in rows if row["protection"] == "none"}
    assert own == {"fewer": True, "other": False}
