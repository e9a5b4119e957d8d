"""Held-out rows that clients train on, and clients whose rows are all held out, are counted."""

import logging

import numpy as np

from fedjax_post.data.load import load_clients
from fedjax_post.data.population import Population
from fedjax_post.hub.tokenizer import load_tokenizer

SCHEDULE = {"batch_size": 2, "local_steps": 1}


def report_of(rows, **population):
    given = Population(heldout_fraction=0.25, **population)
    return load_clients(rows, load_tokenizer("builtin"), population=given, **SCHEDULE).report


def row(number, client="ann", response="food"):
    prompt = " ".join(np.random.default_rng(number).choice(["bread", "chair", "cold", "ant"], 8))
    return {"prompt": prompt, "response": response, "client": client}


def test_repeated_rows_are_counted_and_warned_of(caplog):
    """Each row twice: a held-out row's twin is held out too, or trained on."""
    rows = [row(number % 20) for number in range(40)]
    with caplog.at_level(logging.WARNING):
        found = report_of(rows)
    assert 0 < found["heldout_also_trained"] <= 10
    assert f"{found['heldout_also_trained']} of 10 held-out rows are rows that" in caplog.text


def test_rows_that_differ_anywhere_are_not_repeated(caplog):
    """Also those whose response alone differs, or whose tokens are divided elsewhere."""
    rows = [row(number, response=word) for number in range(12) for word in ("food", "tool")]
    assert report_of(rows)["heldout_also_trained"] == 0
    assert "word for word" not in caplog.text


def test_clients_whose_rows_are_all_held_out_are_told(caplog):
    rows = [row(number, client=f"c{number}") for number in range(20)]
    found = report_of(rows)
    assert found["clients_without_training"] == 5
    assert found["clients"] == 15
    assert "5 clients have held-out rows alone, and do not train" in caplog.text
