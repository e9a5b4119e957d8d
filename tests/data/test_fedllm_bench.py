"""Laws of JSON by client, as FedLLM-Bench has it: keys are clients, in all of its three forms."""

import json

import pytest

from fedjax_post.data import Population, load_clients, load_pairs
from fedjax_post.data.source import load_splits

AYA = {
    "8ad6": [
        {"instruction": "2 + 2?", "response": "4", "language": "en"},
        {"instruction": "?", "response": "!", "language": "ar"},
    ],
    "01be": [{"instruction": "¿Qué?", "response": "Nada.", "language": "es"}],
}
CHATS = {
    name: [{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": name}]}]
    for name in ("a", "b")
}
PREFERENCES = {
    "user_65": [{"prompt": "hi", "chosen": " hello", "rejected": " no"}],
    "user_154": [{"prompt": "ok?", "chosen": " yes", "rejected": " bye"}] * 2,
}
ONE_STEP = {"batch_size": 1, "local_steps": 1, "population": Population(heldout_fraction=0.0)}


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.mark.parametrize("content", [AYA, {k: dict(enumerate(v)) for k, v in AYA.items()}])
def test_every_row_belongs_to_the_client_that_is_its_key(tmp_path, content):
    rows = load_splits(written(tmp_path / "aya_2c.json", content)).train
    assert rows["client"][:] == ["8ad6", "8ad6", "01be"]
    assert rows["language"][:] == ["en", "ar", "es"]


@pytest.mark.parametrize(
    ("content", "sizes"), [(AYA, {"01be": 1, "8ad6": 2}), (CHATS, {"a": 1, "b": 1})]
)
def test_clients_load_from_both_forms_of_instructions(tmp_path, chat_tokenizer, content, sizes):
    loaded = load_clients(written(tmp_path / "a.json", content), chat_tokenizer, **ONE_STEP)
    offsets = loaded.clients.partition.offsets
    assert dict(zip(loaded.names, offsets[1:] - offsets[:-1], strict=True)) == sizes


def test_clients_load_from_preferences(tmp_path, tokenizer):
    loaded = load_pairs(written(tmp_path / "pa.json", PREFERENCES), tokenizer, **ONE_STEP)
    assert loaded.names == ("user_65", "user_154")  # numbers in names are compared as numbers
    assert loaded.clients.partition.offsets.tolist() == [0, 1, 3]


ROW = {"prompt": "p", "response": "r"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": [ROW], "b": [ROW], "c": []}, "client 'c' has no rows; remove it"),
        ({"a": [ROW], "b": [ROW], "c": 3}, "client 'c' holds '3', but must hold a list of rows"),
        ({"a": [ROW], "b": [ROW], "c": [ROW, "x"]}, "client 'c' holds 'x' as row 1"),
        ({"a": [ROW], "b": [ROW | {"client": "z"}]}, "client 'b' has a column client in row 0"),
        ({"train": [ROW], "test": [ROW]}, "rows under train, test; put each"),
        (json.dumps(AYA)[:-9], "line 1: .*"),
        ('{"a": [{"x": 1}], "b": [{"x": 1}], "a": [{"x": 1}]}', "has the key 'a' twice"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, content, said):
    path = written(tmp_path / "bad.json", content)
    with pytest.raises(ValueError, match=rf"dataset=.*bad\.json cannot be read: .*{said}"):
        load_splits(path)
