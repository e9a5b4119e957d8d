"""Audits of ladders seek the rows that are scored, of all seeds, in all that a base has read."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedjax_post.data import reading
from fedjax_post.data.table import gather
from fedjax_post.hub.tokenizer import load_tokenizer
from fedjax_post.integrity import seal_file
from fedjax_post.study import Spec, audits, rows
from fedjax_post.study.build import build
from fedjax_post.study.resolve import resolve

SPEC = Spec(method="fed_avg").put(
    {
        "model.name": "builtin-instruct",
        "data.source": "builtin-kinds-mixed",
        "data.template": "{instruction}\\n",
        "data.num_clients": 2,
        "scoring.examples": 12,
        "training.local_steps": 1,
    }
)
OWN = {
    "data.source": None,
    "data.prompt_column": "text",
    "data.response_column": "label",
    "data.response_words": {"0": "sad", "1": "happy"},
    "data.template": "{text}\\n",
    "data.heldout_fraction": 0.5,
    "scoring.examples": 3,
}


def parts_of(spec, room=400):
    return SimpleNamespace(
        spec=spec,
        tokenizer=load_tokenizer("builtin-instruct"),
        heldout=SimpleNamespace(room=room),
    )


def scored_texts(spec, room=400):
    """The rows that a run of a specification is scored on, decoded."""
    tokenizer = load_tokenizer("builtin-instruct")
    data = rows.load_data(spec, tokenizer, context_length=room)
    heldout = rows.make_heldout(spec, data, tokenizer, room=room, granted=None)
    tokens = gather(heldout.table, heldout.rows)[0]
    sizes = heldout.table.length[heldout.rows]
    texts = [heldout.decode_fn(ids[:n].tolist()) for ids, n in zip(tokens, sizes, strict=True)]
    return [" ".join(text.split()) for text in texts]


@pytest.fixture
def own(tmp_path):
    """Rows of which every second has a label, and one a text that is too long for a model."""
    lines = [f"cat number {n}\t{n % 2}\n" for n in range(20)] + ["cat " * 500 + "\t1\n"]
    (tmp_path / "rows.tsv").write_text("text\tlabel\n" + "".join(lines))
    return SPEC.put(OWN | {"data.source": str(tmp_path / "rows.tsv")})


@pytest.mark.parametrize("seed", [0, 3])
def test_the_rows_that_are_sought_are_those_that_are_scored(seed):
    found, is_exact = audits._rows(parts_of(SPEC), SPEC.replace(seed=seed))
    assert [" ".join(row) for row in found] == scored_texts(SPEC.replace(seed=seed))
    assert is_exact
    assert len(found) == 12


def test_labels_are_sought_as_the_words_that_replace_them(own):
    found, is_exact = audits._rows(parts_of(own, room=9000), own)
    assert [" ".join(row) for row in found] == scored_texts(own, room=9000)
    assert is_exact
    assert {answer for _, answer in found} <= {"sad", "happy"}


def test_all_rows_are_sought_if_some_are_left_out_and_none_says_which(own):
    seeds = range(8)  # with some of them the long row is held out
    for seed in seeds:
        spec = own.replace(seed=seed)
        found, is_exact = audits._rows(parts_of(spec), spec)
        assert len(found) == (3 if is_exact else 10)
        assert {" ".join(row) for row in found} >= set(scored_texts(spec))
    kinds = {audits._rows(parts_of(own), own.replace(seed=seed))[1] for seed in seeds}
    assert kinds == {True, False}


def test_chats_are_refused_after_the_runs_and_nothing_fails():
    turns = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "animal"}]
    spec = SPEC.put(
        {"data.source": [{"messages": turns}] * 8, "data.template": "auto", "data.num_clients": 2}
    )
    assert "chats" in audits.audit_of(parts_of(spec), [0])["refused"]


def test_what_is_closed_is_refused_without_any_part_of_a_run():
    spec = SimpleNamespace(model=SimpleNamespace(name="Qwen/Qwen3-0.6B"))
    assert "datasets is released: no" in audits.audit_of(SimpleNamespace(spec=spec), [0])["refused"]
    spec = SimpleNamespace(model=SimpleNamespace(name="mine"))
    assert "no passport" in audits.audit_of(SimpleNamespace(spec=spec), [0])["refused"]


@pytest.mark.parametrize(
    ("before", "is_made"),
    [
        (None, True),
        ({"contamination": {}, "sampled": True}, True),  # of an earlier version
        ({"refused": "closed"}, True),
        ({"seeds": [0]}, True),
        ({"seeds": [0, 2]}, False),
    ],
)
def test_an_audit_is_made_anew_when_seeds_were_added(before, is_made, tmp_path, monkeypatch):
    for path in ("lora/seed-0", "lora/seed-2", "lora/seed-1", "search/lora/seed-9"):
        (tmp_path / path).mkdir(parents=True)
        if path != "lora/seed-1":  # which has not finished
            (tmp_path / path / "summary.json").write_text("{}")
    if before is not None:
        (tmp_path / "audit.json").write_text(seal_file(before))
    made = []
    monkeypatch.setattr(
        audits, "audit_of", lambda parts, seeds: made.append(seeds) or {"seeds": seeds}
    )
    for _ in range(2):
        found = audits.read_or_make(tmp_path, None, ["lora", "fed_bpt"])
    assert found["seeds"] == [0, 2]
    assert made == ([[0, 2]] if is_made else [])


@pytest.mark.heavy
def test_an_audit_is_of_all_seeds_and_of_the_whole_corpus(monkeypatch):
    for base in ("builtin", "builtin-instruct"):
        small = reading.READINGS[base]._replace(num_calls=3, call_tokens=3000)
        monkeypatch.setitem(reading.READINGS, base, small)
    parts = build(resolve(SPEC.put({"training.cohort_size": 2})))
    found = audits.audit_of(parts, [0, 1, 2])
    documents = list(reading.all_texts("builtin-instruct"))
    assert found["contamination"]["num_documents"] == len(documents)
    rows_of = lambda seed: audits._rows(parts, SPEC.replace(seed=seed))[0]
    distinct = {row for seed in range(3) for row in rows_of(seed)}
    assert found["contamination"]["num_rows"] == len(distinct)
    assert 0 <= found["contamination"]["rows"] <= found["contamination"]["questions"]
    assert not found["sampled"]
    assert (found["seeds"], found["num_seeds"]) == ([0, 1, 2], 3)
    assert np.isfinite(found["memorisation"]["read_loss"])
    assert found["memorisation"]["num_documents"] <= 300
