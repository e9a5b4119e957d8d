"""Laws of token tables: what fits, what is cut, what is left out, and that nothing is copied."""

import datasets
import numpy as np
import pytest

from fedjax_post.data.columns import Columns, find_columns
from fedjax_post.data.partition import describe, iid
from fedjax_post.data.table import fit_message, gather, make_table

# With <s> before and </s> behind: 4, 6, 8 and 12 tokens, prompts of 2, 3, 4 and 10.
ROWS = [
    {"prompt": "p", "response": "r", "client": "x", "label": "u"},
    {"prompt": "pp", "response": "rr", "client": "x", "label": None},
    {"prompt": "ppp", "response": "rrr", "client": "y", "label": "u"},
    {"prompt": "ppppppppp", "response": "r", "client": "y", "label": "v"},
]
COLUMNS = Columns("prompt", "response", label="label", client="client")


def table_of(tokenizer, rows=ROWS, *, columns=COLUMNS, **options):
    data = datasets.Dataset.from_list(rows)
    return make_table(data, tokenizer, columns=columns, template="{prompt}", **options)


def texts(tokenizer, table):
    tokens, loss_mask = gather(table, np.arange(len(table.length)))
    return [
        (tokenizer.decode(row[:n]), tokenizer.decode(row[mask]))
        for row, n, mask in zip(tokens, table.length, loss_mask, strict=True)
    ]


def test_rows_come_back_as_they_went_in(tokenizer):
    table = table_of(tokenizer)
    assert texts(tokenizer, table) == [
        (f"<s>{row['prompt']}{row['response']}</s>", f"{row['response']}</s>") for row in ROWS
    ]
    assert table.prompt_length.tolist() == [2, 3, 4, 10]
    assert table.client.tolist() == ["x", "x", "y", "y"]
    assert table.label.tolist() == ["u", "", "u", "v"]


def test_a_missing_label_is_empty_and_leaves_the_others_as_they_are(tokenizer):
    for given, expected in (
        ([1, None, 0], ["1", "", "0"]),
        (["None", None, "a"], ["None", "", "a"]),
    ):
        rows = [row | {"label": label} for row, label in zip(ROWS, given, strict=False)]
        assert table_of(tokenizer, rows).label.tolist() == expected


def test_length_is_the_longest_row_rounded_up_to_eight(tokenizer):
    assert table_of(tokenizer).max_length == 16
    assert table_of(tokenizer, max_length=0).max_length == 16
    assert table_of(tokenizer, context_length=13).max_length == 13


def test_long_responses_are_cut_and_lose_their_end(tokenizer):
    table = table_of(tokenizer, ROWS[:3], max_length=6)
    assert texts(tokenizer, table)[2] == ("<s>ppprr", "rr")
    assert table.is_cut.tolist() == [False, False, True]
    assert table.fit._asdict() == {
        "num_rows": 3,
        "num_truncated": 1,
        "num_dropped": 0,
        "longest": 8,
        "example": 2,
    }


def test_rows_that_leave_no_response_are_left_out_and_counted(tokenizer):
    table = table_of(tokenizer, max_length=10)
    assert len(table.length) == 3
    assert (table.fit.num_rows, table.fit.num_dropped, table.fit.example) == (4, 1, 3)
    assert "1 left out" in fit_message(table)
    assert "max_length=10" in fit_message(table)


def test_one_token_more_than_the_prompt_is_enough(tokenizer):
    assert table_of(tokenizer, max_length=11).fit.num_dropped == 0


def test_any_length_reads_the_same_table(tokenizer, monkeypatch):
    whole = table_of(tokenizer)
    monkeypatch.setattr("fedjax_post.data.tokenise.make_encoder", lambda *args, **options: None)
    cut = table_of(tokenizer, max_length=6, columns=COLUMNS._replace())
    assert cut.max_length == 6
    assert all(map(np.array_equal, whole.values, cut.values))


def test_tokens_are_not_copied(tokenizer):
    assert not any(values.flags.owndata for values in table_of(tokenizer).values)


def test_many_chunks_read_as_one(tokenizer):
    rows = [{"prompt": "p", "response": str(i)} for i in range(2500)]
    table = table_of(tokenizer, rows, columns=Columns("prompt", "response"))
    assert len(table.values) > 1
    tokens, loss_mask = gather(table, np.array([2499, 0, 1000]))
    learned = [tokenizer.decode(row[mask]) for row, mask in zip(tokens, loss_mask, strict=True)]
    assert learned == ["2499</s>", "0</s>", "1000</s>"]


def test_no_row_left_is_refused_with_the_length_that_would_do(tokenizer):
    message = r"max_length=2 leaves no response in any of the 4 rows.*at least 3 \(all rows: 11\)"
    with pytest.raises(ValueError, match=message):
        table_of(tokenizer, max_length=2)


def test_a_client_left_with_nothing_is_refused_with_the_length_that_would_do(tokenizer):
    message = r"max_length=4 leaves 1 of 2 clients \(such as y\).*use at least 5"
    with pytest.raises(ValueError, match=message):
        table_of(tokenizer, max_length=4)
    assert table_of(tokenizer, max_length=5).fit.num_dropped == 1
    alone = table_of(tokenizer, max_length=4, columns=COLUMNS._replace(client=None))
    assert alone.fit.num_dropped == 2


def test_bad_lengths_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"max_length must be at least 2.*got 1"):
        table_of(tokenizer, max_length=1)
    with pytest.raises(ValueError, match="max_length=64 exceeds the model's context of 32"):
        table_of(tokenizer, max_length=64, context_length=32)


def test_rows_without_client_are_named(tokenizer):
    with pytest.raises(ValueError, match="column client names no client for row 1"):
        table_of(tokenizer, [ROWS[0], ROWS[1] | {"client": None}])


def test_no_rows_are_refused(tokenizer):
    empty = datasets.Dataset.from_dict({"prompt": [], "response": []})
    with pytest.raises(ValueError, match="dataset. has no rows"):
        make_table(empty, tokenizer, columns=Columns("prompt", "response"))


def test_description_counts_what_is_held(tokenizer):
    table = table_of(tokenizer, max_length=10)
    assert describe(iid(3, 2), table) == {
        "clients": 2,
        "examples": 3,
        "examples_min": 1,
        "examples_median": 1.5,
        "examples_max": 2,
        "tokens": 18,
        "max_length": 10,
        "truncated": 0,
        "dropped": 1,
    }


def test_real_rows_fit_as_counted(test_data):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(test_data / "models" / "stories260K")
    file = test_data / "datasets" / "dolly15k" / "shepherd10" / "global_test.json"
    rows = datasets.load_dataset("json", data_files=str(file), split="train")
    table = make_table(rows, tokenizer, columns=find_columns(rows.column_names), max_length=256)
    assert table.fit.num_rows == 80
    assert len(table.length) + table.fit.num_dropped == 80
    assert table.length.max() == 256
    assert (table.prompt_length < 256).all()
