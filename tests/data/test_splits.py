"""Laws of splits and folders: which rows are for training, which are held out, and why."""

import json

import datasets
import pytest

from fedjax_post.data import Population, load_clients, load_pairs
from fedjax_post.data.source import load_splits
from fedjax_post.data.splits import Splits, choose, hold_out, limit

NAMES = ["train_sft", "test_sft", "train_prefs", "test_prefs"]
ROWS = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(6)]


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def shards(path, **rows):
    """A folder as copied from a hub, one row a file."""
    path.mkdir()
    (path / "README.md").write_text("---\nlicense: mit\n---\n")
    for split, found in rows.items():
        for i, row in enumerate(found):
            name = f"data/{split}-{i:05}-of-{len(found):05}.parquet"
            (path / "data").mkdir(exist_ok=True)
            datasets.Dataset.from_list([row]).to_parquet(str(path / name))
    return path


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        (["train", "test", "validation"], None, ("train", "test")),
        (["train", "validation"], None, ("train", "validation")),
        (["train"], None, ("train", None)),
        (["train_sft", "test_sft"], None, ("train_sft", "test_sft")),
        (["train_sft", "test_sft", "train"], None, ("train", None)),
        (["train_sft", "test"], None, ("train_sft", "test")),
        (["all", "dev"], None, ("all", "dev")),
        (NAMES, "train_sft", ("train_sft", "test_sft")),
        (NAMES, "train_prefs", ("train_prefs", "test_prefs")),
        (NAMES, "test_prefs", ("test_prefs", None)),
        (["train_gen", "test_sft"], "train_gen", ("train_gen", None)),
    ],
)
def test_a_split_is_held_out_with_its_partner(names, split, chosen):
    assert choose(names, "d", split=split) == chosen


@pytest.mark.parametrize(
    ("names", "split", "said"),
    [
        (NAMES, None, "train_prefs, test_prefs, several of which are possible; .*`split`"),
        (
            ["test"],
            None,
            "none of which is for training; choose one by `split`, such as split=test",
        ),
        (NAMES, "train", "split=train: dataset=d has the splits train_sft, "),
    ],
)
def test_splits_that_cannot_be_told_are_named(names, split, said):
    with pytest.raises(ValueError, match=said):
        choose(names, "d", split=split)


def test_held_out_splits_that_belong_to_no_other_are_told(caplog):
    choose(["train_a", "test_b"], "d", split="train_a")
    assert "rows of train_a are held out, since none of test_b matches it" in caplog.text


def test_the_report_says_which_splits_were_used(tmp_path, tokenizer):
    rows = datasets.Dataset.from_list([row | {"rejected": "x"} for row in ROWS])
    saved = datasets.DatasetDict(dict.fromkeys(NAMES, rows) | {"test_sft": rows.select([0])})
    saved.save_to_disk(str(tmp_path / "uf"))
    given = {"batch_size": 1, "local_steps": 1, "population": Population("iid", 2)}
    for load in (load_clients, load_pairs):
        for dataset in (str(tmp_path / "uf"), saved):
            loaded = load(dataset, tokenizer, split="train_sft", **given)
            assert loaded.report["splits"] == {"train_sft": 6, "test_sft": 1}
    loaded = load_clients(ROWS, tokenizer, **given)
    assert loaded.report["splits"] == {"train": 5, "train, set aside": 1}


def test_a_copy_of_a_hub_repository_is_its_splits(tmp_path):
    splits = load_splits(str(shards(tmp_path / "d", train=ROWS[:3], test=ROWS[3:5])))
    assert splits.train.to_list() == ROWS[:3]
    assert splits.heldout.to_list() == ROWS[3:5]
    several = shards(tmp_path / "e", train_sft=ROWS[:3], test_sft=ROWS[3:4], train_gen=ROWS[4:])
    assert load_splits(str(several), split="train_sft").heldout.to_list() == ROWS[3:4]
    with pytest.raises(ValueError, match=r"several of which are possible"):
        load_splits(str(several))


def test_files_named_as_splits_can_be_chosen(tmp_path):
    lines(tmp_path / "d" / "train_a.jsonl", ROWS[:2])
    lines(tmp_path / "d" / "train_b.jsonl", ROWS[2:4])
    lines(tmp_path / "d" / "test_b.jsonl", ROWS[4:])
    splits = load_splits(str(tmp_path / "d"), split="train_b")
    assert (splits.train.to_list(), splits.heldout.to_list()) == (ROWS[2:4], ROWS[4:])


@pytest.mark.parametrize("source", ["builtin", "file", "memory"])
def test_a_split_of_what_has_none_is_refused(tmp_path, source):
    lines(tmp_path / "a.jsonl", ROWS)
    dataset = {"builtin": "builtin", "file": str(tmp_path / "a.jsonl"), "memory": ROWS}[source]
    with pytest.raises(
        ValueError, match=r"split=train: dataset=.* has no splits; leave `split` out"
    ):
        load_splits(dataset, split="train")


def test_only_files_of_rows_are_clients(tmp_path):
    lines(tmp_path / "a.jsonl", ROWS[:2])
    lines(tmp_path / "b.jsonl", ROWS[2:])
    for name in ("dataset_info.json", ".hidden.jsonl", "README.md", "LICENSE"):
        lines(tmp_path / name, [{"note": "x"}])
    assert load_splits(str(tmp_path)).train["client"] == ["a"] * 2 + ["b"] * 4


def test_a_clients_own_test_file_holds_its_held_out_rows(tmp_path):
    for stem in ("local_training_0", "local_training_1", "local_test_1", "global_test", "test"):
        row = {"prompt": stem, "response": "r"}
        (tmp_path / f"{stem}.jsonl").write_text(json.dumps(row) + "\n")
    splits = load_splits(str(tmp_path))
    found = dict(zip(splits.heldout["prompt"], splits.heldout["client"], strict=True))
    assert found == {
        "local_test_1": "local_training_1",
        "global_test": "global_test",
        "test": "test",
    }


def test_a_folder_with_one_file_names_no_client(tmp_path):
    lines(tmp_path / "train.jsonl", ROWS[:4])
    lines(tmp_path / "test.jsonl", ROWS[4:])
    splits = load_splits(str(tmp_path))
    assert splits.train.to_list() == ROWS[:4]
    assert splits.heldout.to_list() == ROWS[4:]


def test_clients_of_one_name_are_refused(tmp_path):
    lines(tmp_path / "a.jsonl", ROWS)
    lines(tmp_path / "a.json", ROWS)
    with pytest.raises(
        ValueError, match=r"two files for the client a, a\.json and a\.jsonl; rename"
    ):
        load_splits(str(tmp_path))


def test_a_folder_of_folders_says_which_there_are(tmp_path):
    lines(tmp_path / "main" / "train.jsonl", ROWS)
    with pytest.raises(ValueError, match="no files to train on.*choose a folder in it: main"):
        load_splits(str(tmp_path))


def test_clients_may_hold_what_looks_like_another_type_each(tmp_path):
    answers = {"a": "2021-03-04", "b": "soon", "c": "7", "d": 7, "e": True}
    for client, answer in answers.items():
        lines(tmp_path / f"{client}.jsonl", [{"prompt": "q", "response": answer}])
    datasets.Dataset.from_list([{"prompt": "q", "response": 8}]).to_parquet(tmp_path / "f.parquet")
    rows = load_splits(str(tmp_path)).train
    assert rows["response"] == ["2021-03-04", "soon", "7", "7", "true", "8"]
    assert rows["client"] == list("abcdef")


def test_a_client_that_names_its_columns_otherwise_is_named(tmp_path, tokenizer):
    lines(tmp_path / "a.jsonl", ROWS)
    lines(tmp_path / "b.jsonl", [{"instruction": "q", "output": "a"}] * 2)
    said = r"a\.jsonl has no column instruction, which other.*it has prompt, response: rename them"
    with pytest.raises(ValueError, match=said):
        load_clients(str(tmp_path), tokenizer, batch_size=1, local_steps=1)


def test_a_file_that_names_clients_in_some_rows_is_refused(tmp_path):
    lines(tmp_path / "a.jsonl", [{"prompt": "q", "client": "x"}, {"prompt": "q"}])
    lines(tmp_path / "b.jsonl", ROWS)
    with pytest.raises(
        ValueError, match=r"a\.jsonl has a client in some rows, but on line 2 it has none"
    ):
        load_splits(str(tmp_path))


MANY = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(100)]


def numbers_of(splits):
    """Numbers of the rows to train on: by the rows' text, and by their origin."""
    named = [int(prompt[1:]) for prompt in splits.train["prompt"]]
    assert named == [splits.origin.row(i).number for i in range(len(named))]
    return named


def test_a_limit_takes_random_rows_in_their_order():
    splits = Splits(datasets.Dataset.from_list(MANY), None)
    found = numbers_of(limit(splits, 10, seed=1))
    assert len(found) == 10
    assert found == sorted(found) != list(range(10))
    assert numbers_of(limit(splits, 10, seed=1)) == found != numbers_of(limit(splits, 10, seed=2))
    assert limit(splits, 0) is limit(splits, 100) is splits


def test_the_held_out_rows_do_not_depend_on_the_limit():
    splits = hold_out(Splits(datasets.Dataset.from_list(MANY), None), 0.2)
    few = limit(splits, 10)
    assert few.heldout is splits.heldout
    assert set(numbers_of(few)) <= set(numbers_of(splits))
    assert not set(few.train["prompt"]) & set(few.heldout["prompt"])


def test_a_limited_population_is_divided_and_reported(tokenizer):
    given = {"batch_size": 1, "local_steps": 1, "population": Population("iid", 3, max_examples=12)}
    report = load_clients(MANY, tokenizer, **given).report
    assert (report["examples"], report["not_chosen"], report["splits"]["train"]) == (12, 83, 12)
