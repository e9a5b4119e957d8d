"""Which held-out rows are scored how: one odd row decides nothing for the others."""

import json
from itertools import takewhile

import numpy as np
import pytest

from fedjax_post import study
from fedjax_post.data.table import TokenTable, gather
from fedjax_post.study import Adapter, Data, Model, Scoring, Spec, Training
from fedjax_post.study.rows import why_no_match
from fedjax_post.study.summary import digest


def table_of(sizes, cut=()):
    """A table that has only the lengths of its rows: prompts of 3 tokens, responses of `sizes`."""
    length = np.array(sizes, np.int32) + 3
    zeros = np.zeros(len(sizes), np.int32)
    is_cut = np.isin(np.arange(len(sizes)), cut)
    return TokenTable((), zeros, zeros, length, zeros + 3, 64, 0, is_cut=is_cut)


def test_one_row_that_is_cut_or_long_does_not_switch_the_comparison_off():
    assert why_no_match(table_of([4] * 19 + [50])) == ""
    assert why_no_match(table_of([4] * 20, cut=[3])) == ""


@pytest.mark.parametrize(
    "given", [{"sizes": [40] * 3 + [4] * 17}, {"sizes": [4] * 20, "cut": [1, 2, 3]}]
)
def test_many_such_rows_do(given):
    assert "only 17 of 20 held-out responses are whole" in why_no_match(table_of(**given))


@pytest.fixture(scope="module")
def job(tiny_folder, tmp_path_factory):
    """Rows of two answers, of which the only one that is too long for `max_length` is held out."""
    path = tmp_path_factory.mktemp("rows")
    rows = [{"prompt": f"q {i % 7}", "response": "yes" if i % 2 else "no"} for i in range(40)]
    long = {"prompt": "q", "response": "yes " * 30}
    for name, part in (("train", rows), ("test", [*rows[:10], long])):
        text = "\n".join(map(json.dumps, part))
        (path / f"{name}.jsonl").write_text(text)
    return study.prepare(
        Spec(
            model=Model(str(tiny_folder)),
            data=Data(str(path), template="{prompt} ", max_length=16),
            adapter=Adapter(rank=2),
            training=Training(rounds=1, cohort_size=2, batch_size=2, local_steps=1),
            scoring=Scoring(every=1),
        ),
        directory=path / "run",
    )


def test_what_all_prompts_begin_with_is_read_once(job):
    """Of held-out rows and of clients' rows, but for the last token of the shortest prompt."""
    heldout, prompts = job.parts.heldout, []
    for table in (heldout.table, job.parts.data.clients.table):
        tokens = gather(table, np.arange(len(table.length)))[0].tolist()
        prompts += [ids[:n] for ids, n in zip(tokens, table.prompt_length.tolist(), strict=True)]
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
    start = [column[0] for column in columns][: min(map(len, prompts)) - 1]
    assert heldout.prefix == tuple(start)
    assert len(start) > 1


def test_a_digest_stands_for_the_rows_that_are_scored(job):
    heldout = job.parts.heldout
    some, others = (heldout._replace(rows=heldout.rows[part]) for part in (slice(3), slice(1, 4)))
    assert digest(some) == digest(some._replace(batch_size=1))
    assert len({digest(each) for each in (heldout, some, others)}) == 3


def test_labels_and_what_is_left_out_are_said_and_recorded(job):
    told = str(job)
    assert "2 labels ranked (no, yes); answers compared" in told
    assert "1 rows left out of exact_match" in told
    assert "1 rows left out of accuracy" in told


@pytest.mark.heavy
def test_a_run_ranks_labels_in_its_curve_and_its_summary(job):
    summary = study.carry_out(job, command=["test"])
    assert summary["labels"] == ["no", "yes"]
    assert summary["left_out"] == {"exact_match": 1, "accuracy": 1}
    names = {"loss", "exact_match", "accuracy", "accuracy_per_token", "accuracy_pmi"}
    assert names <= summary["final"].keys()
    (record,) = map(json.loads, (job.directory / "records.jsonl").read_text().splitlines())
    assert {f"eval_{name}" for name in names} <= record.keys()
