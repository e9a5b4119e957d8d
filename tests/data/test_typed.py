"""Laws of types: rows in memory, typed rows and rows of a file give the same text."""

import datetime
import json
import re

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from fedjax_post.data import Population, Splits, Text, gather, load_clients
from fedjax_post.data.columns import Columns
from fedjax_post.data.messages import _NO, _YES
from fedjax_post.data.source import load_splits
from fedjax_post.data.splits import hold_out
from fedjax_post.data.typed import as_text

ONE = Population("iid", num_clients=1, heldout_fraction=0.0)


def load(rows, tokenizer, population=ONE, **text):
    text = {"template": "{prompt} "} | text
    given = {"text": Text(**text), "population": population}
    return load_clients(rows, tokenizer, batch_size=1, local_steps=1, **given)


def learned(rows, tokenizer, **text):
    """What the responses of rows say."""
    table = load(rows, tokenizer, **text).clients.table
    tokens, mask = gather(table, np.arange(len(table.length)))
    said = (tokenizer.decode(row[where]) for row, where in zip(tokens, mask, strict=True))
    return [text.removesuffix("</s>") for text in said]


def test_rows_in_memory_mean_what_their_file_means(tmp_path):
    rows = [
        {"prompt": "007", "response": 7, "turns": [{"role": "u", "weight": 0, "name": None}]},
        {"prompt": "2021-03-04", "response": "x", "extra": ["y", {"z": np.int64(3)}]},
        {"prompt": None, "response": -(10**30)},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row, default=int) + "\n" for row in rows))
    assert load_splits(rows).train.to_list() == load_splits(str(path)).train.to_list()


BAD = [1.5, True, datetime.date(2021, 3, 4), b"x", [1.5]]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("form", ["memory", "parquet"])
def test_what_has_several_spellings_is_refused_where_it_is_used(tmp_path, tokenizer, value, form):
    rows = [{"prompt": "q", "response": "a", "note": value}] * 2
    rows += [{"prompt": "q", "response": "a", "note": None}]
    rows = rows[::-1]
    if form == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        rows = str(tmp_path / "a.parquet")
    assert learned(rows, tokenizer) == ["a"] * 3
    inner = value[0] if isinstance(value, list) else value
    said = f"column note holds {str(inner)!r} of type {type(inner).__name__}; convert it to text"
    with pytest.raises(ValueError, match=rf"row 1.*{re.escape(said)}"):
        learned(rows, tokenizer, columns=Columns(response="note"))
    with pytest.raises(ValueError, match=rf"row 1.*{re.escape(said)}"):
        learned(rows, tokenizer, template="{note} {prompt}")


def test_values_that_no_column_can_hold_are_named():
    with pytest.raises(ValueError, match=r"row 1: column a holds '1\.5' of type float; convert it"):
        load_splits([{"a": "x"}, {"a": 1.5}])


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([7, -1, None], pa.int8()), ["7", "-1", None]),
        (pa.array(["x", None, "y"]).dictionary_encode(), ["x", None, "y"]),
        (pa.array(["01", "1", ""], pa.large_string()), ["01", "1", ""]),
        (pa.array([None] * 3), [None] * 3),
    ],
)
def test_types_that_say_their_text_are_that_text(tmp_path, tokenizer, column, said):
    table = pa.table({"prompt": ["q"] * 3, "response": ["a"] * 3, "task": column})
    parquet.write_table(table, tmp_path / "a.parquet")
    loaded = load(str(tmp_path / "a.parquet"), tokenizer)
    expected = ["" if value is None else value for value in said]
    assert loaded.clients.table.label.tolist() == expected


def test_categories_are_their_names(tmp_path, tokenizer):
    label = datasets.ClassLabel(names=["sad", "happy"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    rows.to_parquet(tmp_path / "a.parquet")
    rows.save_to_disk(tmp_path / "saved")
    for source in (rows, str(tmp_path / "a.parquet"), str(tmp_path / "saved")):
        columns = Columns(response="label")
        assert learned(source, tokenizer, columns=columns, template="{text}") == ["happy", "sad"]
    frame = pd.DataFrame({"text": ["a", "b"], "label": pd.Categorical(["v", "u"])})
    frame.to_parquet(tmp_path / "frame.parquet")
    source = str(tmp_path / "frame.parquet")
    assert learned(source, tokenizer, columns=columns, template="{text}") == ["v", "u"]


def test_numbers_within_typed_structures_become_text(tmp_path):
    turns = [[{"role": "user", "weight": 1}], [{"role": "user", "weight": None}], None]
    table = pa.table({"prompt": ["q"] * 3, "response": ["a"] * 3, "turns": turns})
    parquet.write_table(table, tmp_path / "a.parquet")
    from fedjax_post.data.typed import as_text

    rows = as_text(load_splits(str(tmp_path / "a.parquet")).train, ["turns"])
    assert rows["turns"][0] == [{"role": "user", "weight": "1"}]
    assert rows["turns"][1:] == [[{"role": "user", "weight": None}], None]


def test_ids_with_leading_zeros_are_clients_of_their_own(tmp_path, tokenizer):
    (tmp_path / "a.csv").write_text("prompt,response,client\na,x,01\nb,y,1\nc,z,001\nd,w,NA\n")
    population = Population(heldout_fraction=0.0)
    loaded = load(str(tmp_path / "a.csv"), tokenizer, population)
    assert sorted(loaded.names) == ["001", "01", "1", "NA"]
    assert loaded.report["partition"] == "natural"


def test_a_structure_is_no_client(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "response": "b", "client": ["x"]}\n')
    with pytest.raises(ValueError, match=r"row 0 \(a\.jsonl, line 1\): column client holds a list"):
        load(str(tmp_path / "a.jsonl"), tokenizer, Population(heldout_fraction=0.0))


@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_client_is_named_by_its_line(tmp_path, tokenizer, blank):
    (tmp_path / "a.csv").write_text(f"prompt,response,client\na,x,1\nb,y,{blank}\n")
    with pytest.raises(ValueError, match=r"no client for row 1 \(a\.csv, line 3\)"):
        load(str(tmp_path / "a.csv"), tokenizer, Population(heldout_fraction=0.0))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_labels_and_their_words_match_what_the_file_says(tmp_path, tokenizer, name):
    labels = ["true", "false"] if name == "a.jsonl" else ["1", "0"]
    if name == "a.csv":
        body = "".join(f"t,{label}\n" for label in labels)
        (tmp_path / name).write_text(f"text,label\n{body}")
    else:
        (tmp_path / name).write_text("".join(f'{{"text": "t", "label": {x}}}\n' for x in labels))
    words = dict(zip(labels, ["yes", "no"], strict=True))
    given = {"template": "{text}", "response_words": words}
    assert learned(str(tmp_path / name), tokenizer, **given) == ["yes", "no"]
    with (tmp_path / name).open("a") as file:
        file.write("t,\n" if name == "a.csv" else '{"text": "t", "label": null}\n')
    with pytest.raises(ValueError, match=rf"is empty in row 2 \({name}, line ."):
        learned(str(tmp_path / name), tokenizer, **given)


def test_messages_count_the_rows_of_the_file(tmp_path, tokenizer):
    """Held-out rows are drawn at random: a row keeps the number that it has in its file."""
    rows = [{"prompt": f"q{i}", "response": f"a{i}"} for i in range(40)]
    rows[23]["response"] = ""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed in range(3):
        population = ONE._replace(heldout_fraction=0.3, seed=seed)
        for source, said in ((str(path), r"row 23 \(a\.jsonl, line 24\): "), (rows, "row 23: ")):
            with pytest.raises(ValueError, match=said):
                load(source, tokenizer, population)


def test_a_row_cut_by_length_is_called_as_in_its_file(tokenizer):
    rows = [{"prompt": "q", "response": "a" * (60 if i == 5 else 1)} for i in range(12)]
    splits = hold_out(Splits(datasets.Dataset.from_list(rows), None), 0.25, seed=2)
    side = "train" if 5 in splits.origin.numbers else "heldout"
    loaded = load(splits, tokenizer, max_length=20)
    table = loaded.clients.table if side == "train" else loaded.heldout
    assert table.fit.example == 5


def test_rows_without_clients_are_dealt_out_with_a_word(tokenizer, caplog):
    rows = [{"prompt": f"q{i}", "response": "a"} for i in range(50)]
    loaded = load(rows, tokenizer, Population(heldout_fraction=0.0))
    assert loaded.report["partition"] == "iid"
    assert (loaded.report["clients"], loaded.report["examples_min"]) == (6, 8)
    assert "no column names clients: the rows are divided evenly among 6" in caplog.text
    assert len(load(rows, tokenizer, Population(num_clients=3)).clients) == 3
    assert len(load(rows[:5], tokenizer, Population(heldout_fraction=0.0)).clients) == 1
    assert len(load(rows * 10, tokenizer, Population()).clients) == 16


def test_equal_content_is_tokenised_once(tmp_path, tokenizer, monkeypatch):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"prompt": "q", "response": "a"}\n' * 3)
    first = load(str(tmp_path / "a.jsonl"), tokenizer)
    monkeypatch.setattr("fedjax_post.data.tokenise.make_encoder", lambda *args, **options: None)
    again = load(str(tmp_path / "b.jsonl"), tokenizer)
    assert all(map(np.array_equal, first.clients.table.values, again.clients.table.values))


@pytest.mark.parametrize("value", [False, 0, 0.0, "false", True, 1, 1.0])
@pytest.mark.parametrize("key", ["train", "weight"])
def test_whether_a_turn_is_learned_may_be_a_truth_value(tmp_path, key, value):
    """In memory and in parquet as in json, where `messages` reads it as text."""
    turn = {"role": "assistant", "content": "a", key: value}
    rows = [{"messages": [{"role": "user", "content": "q", key: None}, turn]}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for source in (rows, str(tmp_path / "a.parquet")):
        source = load_splits(source).train
        (row,) = as_text(source, ["messages"]).to_list()
        text = row["messages"][1][key]
        assert text in (_YES if value in (True, 1) else _NO)


def test_two_types_of_text_are_one(tmp_path, tokenizer):
    """As pandas and `datasets` write them, in one folder."""
    for name, kind in (("a", pa.large_string()), ("b", pa.string())):
        table = pa.table({"prompt": ["q"], "response": [name]})
        table = table.cast(pa.schema([(column, kind) for column in table.column_names]))
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    assert sorted(learned(str(tmp_path), tokenizer)) == ["a", "b"]


@pytest.mark.parametrize("name", ["weight", "train", "tool_calls", "reasoning"])
def test_columns_that_change_the_meaning_of_a_row_are_refused(tokenizer, name):
    rows = [{"prompt": "q", "response": "a", name: "0"}]
    with pytest.raises(ValueError, match=f"column {name} changes the meaning of the row"):
        learned(rows, tokenizer)
    for harmless in {"weight": ("1", ""), "train": ("true",)}.get(name, ("",)):
        assert learned([rows[0] | {name: harmless}], tokenizer) == ["a"]
