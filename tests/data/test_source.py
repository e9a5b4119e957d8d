"""Laws of sources: the same rows in any form give the same result; errors name the rows."""

import csv
import json
import os
import re

import datasets
import numpy as np
import pytest

from fedjax_post.data import Population, Text, gather, load_clients, rules
from fedjax_post.data.columns import Columns
from fedjax_post.data.source import load_splits
from fedjax_post.data.splits import Splits, hold_out, is_held_out

ROWS = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(4)]


def write(path, rows=ROWS):
    """Writes rows in the form that the name asks for; `wrapped.json` holds them under a key."""
    if path.stem == "wrapped":
        path.write_text(json.dumps({"note": "x", "examples": rows}, indent=1))
    elif path.stem == "keyed":
        path.write_text(json.dumps({"examples": {str(i): row for i, row in enumerate(rows)}}))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl" or path.suffix == "":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def folder(path, **files):
    path.mkdir()
    for stem, rows in files.items():
        write(path / f"{stem}.json", rows)
    return str(path)


@pytest.mark.parametrize(
    "name",
    ["a.json", "wrapped.json", "keyed.json", "a.jsonl", "a.csv", "a.tsv", "a.parquet"],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    splits = load_splits(str(write(tmp_path / name)))
    assert splits.train.to_list() == ROWS
    assert splits.heldout is None


def test_json_lines_may_be_called_json(tmp_path):
    path = write(tmp_path / "rows.jsonl").rename(tmp_path / "rows.json")
    assert load_splits(str(path)).train.to_list() == ROWS


@pytest.mark.parametrize("name", ["wrapped.json", "a.jsonl", "a.csv", "a.parquet"])
def test_an_edited_file_is_read_anew_whatever_its_size_and_time(tmp_path, name):
    path = write(tmp_path / name)
    load_splits(str(path))
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"r0", b"x0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert load_splits(str(path)).train["response"][0] == "x0"


def test_a_folder_is_a_client_a_file_in_natural_order(tmp_path):
    path = folder(tmp_path / "f", c10=ROWS[:1], c9=ROWS[1:3], global_test=ROWS[3:])
    splits = load_splits(path)
    assert splits.train["client"] == ["c9", "c9", "c10"]
    assert splits.heldout["prompt"] == ["p3"]


def test_files_of_one_folder_may_lack_columns_and_hold_only_nulls(tmp_path):
    extra = [row | {"context": None} for row in ROWS[:1]]
    filled = [row | {"context": "c"} for row in ROWS[1:2]]
    splits = load_splits(folder(tmp_path / "f", a=extra, b=filled, c=ROWS[2:3]))
    assert splits.train["context"] == [None, "c", None]


@pytest.mark.parametrize(
    ("name", "held_out"),
    [
        ("global_test", True),
        ("valid", True),
        ("held_out", True),
        ("eval-2", True),
        ("medieval", False),
        ("contest", False),
        ("train", False),
        ("client_3", False),
    ],
)
def test_held_out_files_are_told_by_whole_words(name, held_out):
    assert is_held_out(name) == held_out


def test_saved_folders_load(tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(str(tmp_path / "two"))
    assert load_splits(str(tmp_path / "one")).train.to_list() == ROWS
    assert len(load_splits(str(tmp_path / "two")).heldout) == 1


def test_holding_out_shares_no_row_and_follows_the_seed():
    splits = Splits(datasets.Dataset.from_list(ROWS), None)
    parts = hold_out(splits, 0.25, seed=1)
    assert sorted([*parts.train["prompt"], *parts.heldout["prompt"]]) == ["p0", "p1", "p2", "p3"]
    assert hold_out(splits, 0.25, seed=1).heldout.to_list() == parts.heldout.to_list()
    assert len(hold_out(splits, 0.01).heldout) == 1
    assert hold_out(splits, 0.0).heldout is None
    assert hold_out(parts, 0.5) == parts


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_bad_fractions_are_refused(fraction):
    splits = Splits(datasets.Dataset.from_list(ROWS), None)
    with pytest.raises(ValueError, match=rf"heldout_fraction={fraction:g} must be in \[0, 1\)"):
        hold_out(splits, fraction)


def test_bad_sources_are_named(tmp_path):
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "broken.json").write_text('[{"a": 1}, {')
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "hollow").mkdir()
    for name, message in {
        "missing.json": "no such file or folder",
        "empty.json": "the file is empty",
        "none.json": "no rows|cannot be read",
        "broken.json": "cannot be read",
        "notes.txt": "unknown kind",
        "hollow": "no files to train on",
    }.items():
        with pytest.raises(ValueError, match=rf"dataset=.*{name}.*({message})"):
            load_splits(str(tmp_path / name))


def test_hub_without_network_says_so(monkeypatch):
    def fail(*args):
        raise ConnectionError("unreachable")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match=r"dataset=some/name .*unreachable.*the network.*local"):
        load_splits("some/name")


def test_load_clients_from_rows_in_memory(tokenizer):
    rows = [row | {"client": f"c{i % 2}"} for i, row in enumerate(ROWS)]
    population = Population(heldout_fraction=0.25)
    loaded = load_clients(
        rows,
        tokenizer,
        batch_size=2,
        local_steps=3,
        text=Text(max_length=40),
        population=population,
    )
    assert len(loaded.clients) == 2
    assert loaded.names == ("c0", "c1")
    assert loaded.clients.visit(0, np.random.default_rng(0)).batches["tokens"].shape == (3, 2, 40)
    assert loaded.report["examples"] == 3
    assert loaded.report["heldout_examples"] == len(loaded.heldout.length) == 1


def test_natural_clients_are_the_first_ones(tokenizer):
    rows = [row | {"client": f"c{i}"} for i, row in enumerate(ROWS)]
    population = Population(num_clients=2, heldout_fraction=0.0)
    loaded = load_clients(rows, tokenizer, batch_size=1, local_epochs=1, population=population)
    assert loaded.names == ("c0", "c1")
    assert loaded.clients.partition.indices.tolist() == [0, 1]
    assert loaded.heldout is None


def test_labels_skew_and_columns_are_checked(tokenizer):
    def load(**population):
        population = Population(heldout_fraction=0.0, **population)
        return load_clients(ROWS, tokenizer, batch_size=1, local_steps=1, population=population)

    assert len(load(partition="iid", num_clients=4).clients) == 4
    with pytest.raises(ValueError, match=r"partition=dirichlet needs a column.*`label_column`"):
        load(partition="dirichlet", num_clients=2)
    with pytest.raises(ValueError, match=r"partition=natural needs a column.*`client_column`"):
        load(partition="natural")
    with pytest.raises(ValueError, match="partition=random is unknown; use one of natural, iid"):
        load(partition="random")
    with pytest.raises(ValueError, match="partition=iid needs `num_clients`"):
        load(partition="iid")
    with pytest.raises(ValueError, match="`num_clients` must be in"):
        load(partition="iid", num_clients=5)


def test_more_natural_clients_than_there_are_is_refused(tokenizer):
    rows = [row | {"user": "u"} for row in ROWS]
    text = Text(columns=Columns(client="user"))
    with pytest.raises(ValueError, match="num_clients=2, but partition=natural finds 1"):
        load_clients(
            rows,
            tokenizer,
            batch_size=1,
            local_steps=1,
            text=text,
            population=Population(num_clients=2),
        )


def test_held_out_rows_must_have_the_columns(tokenizer):
    heldout = datasets.Dataset.from_list([{"prompt": "p"}])
    splits = Splits(datasets.Dataset.from_list(ROWS), heldout)
    population = Population("iid", 2)
    with pytest.raises(ValueError, match="response_column=response: no such column"):
        load_clients(splits, tokenizer, batch_size=1, local_steps=1, population=population)


def test_builtin_tasks_load(tokenizer):
    loaded = load_clients(
        "builtin", tokenizer, batch_size=2, local_steps=1, population=Population(num_clients=3)
    )
    assert loaded.report["clients"] == 3
    assert loaded.report["truncated"] == loaded.report["heldout_truncated"] == 0


def test_published_clients_load(test_data):
    splits = load_splits(str(test_data / "datasets" / "dolly15k" / "shepherd10"))
    assert len(splits.train) == 14_931
    assert len(splits.heldout) == 80
    assert sorted(set(splits.train["client"])) == [f"local_training_{i}" for i in range(10)]


SENTENCES = ["it 's \"good", "n/a", "so bad", "null"]


def labelled(path, *, header=False, sentences=SENTENCES):
    """A file of sentences with labels, tab between them, as SST-2 comes."""
    lines = ["sentence\tlabel"] * header
    lines += [f"{text}\t{i % 2}" for i, text in enumerate(sentences)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_file_of_labels_needs_no_names_of_columns(tmp_path):
    rows = load_splits(str(labelled(tmp_path / "train.tsv"))).train
    assert rows["text"] == SENTENCES
    assert rows["label"] == ["0", "1", "0", "1"]


def test_names_of_columns_are_kept_where_there_are_some(tmp_path):
    path = labelled(tmp_path / "train.tsv", header=True, sentences=SENTENCES[1:3])
    rows = load_splits(str(path)).train
    assert rows.column_names == ["sentence", "label"]
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1\ta\t0\n2\tb\t0\n", "the roles of 3 columns are unclear"),
        ("a\t0.5\nb\t0.7\n", "its first line names no columns"),
    ],
)
def test_a_file_whose_columns_cannot_be_told_is_refused(tmp_path, text, words):
    path = tmp_path / "rows.tsv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{words}.*put their names there"):
        load_splits(str(path))


def load_worded(path, tokenizer, words, **columns):
    return load_clients(
        path,
        tokenizer,
        batch_size=1,
        local_steps=1,
        text=Text(Columns(**columns), template="{text}\n", response_words=words),
        population=Population(rules.dirichlet(100.0), num_clients=1),
    )


def test_labels_become_words_and_stay_labels(tmp_path, tokenizer):
    path = tmp_path / "sst"
    path.mkdir()
    for name in ("train", "dev", "test"):
        labelled(path / f"{name}.tsv")
    loaded = load_worded(path, tokenizer, {"0": "sad", "1": "happy"})
    table = loaded.clients.table
    tokens, mask = gather(table, np.arange(2))
    said = [tokenizer.decode(row[where]) for row, where in zip(tokens, mask, strict=True)]
    assert said == ["sad</s>", "happy</s>"]
    assert table.label.tolist() == ["0", "1", "0", "1"]
    assert len(loaded.heldout.length) == 8
    assert loaded.report["columns"]["label"] == "label"


@pytest.mark.parametrize(
    ("words", "columns", "message"),
    [
        ({"0": "sad"}, {}, "'1' of row 1 (train.tsv, line 2); it has '0': add one"),
        ({"0": "sad"}, {"label": "mood"}, "there is no column mood; choose one by `label_column`"),
    ],
)
def test_labels_without_words_are_refused(tmp_path, tokenizer, words, columns, message):
    path = labelled(tmp_path / "train.tsv")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_worded(path, tokenizer, words, **columns)
