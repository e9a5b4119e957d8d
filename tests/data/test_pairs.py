"""Pairs of responses, in the layouts of public data sets."""

import json

import numpy as np
import pytest

from fedjax_post.data import Population, Text, load_pairs

POPULATION = Population(partition="iid", num_clients=2, heldout_fraction=0.25)
VISITS = {"batch_size": 2, "local_steps": 1}


def turn(role, content):
    return {"role": role, "content": content}


def plain(i):
    return {"prompt": f"say cat {i}", "chosen": "cat", "rejected": "dog pig"}


def whole_chats(i):
    start = [turn("user", f"say cat {i}")]
    return {
        "chosen": [*start, turn("assistant", "cat")],
        "rejected": [*start, turn("assistant", "dog pig")],
    }


def last_messages(i):
    return {
        "conversations": [{"from": "human", "value": f"say cat {i}"}],
        "chosen": {"from": "gpt", "value": "cat"},
        "rejected": {"from": "gpt", "value": "dog pig"},
    }


@pytest.mark.parametrize("layout", [plain, whole_chats, last_messages])
def test_every_layout_gives_a_question_and_both_responses(chat_tokenizer, layout):
    rows, tokenizer = [layout(i) for i in range(8)], chat_tokenizer
    template = "{prompt}\n" if layout is plain else "auto"
    loaded = load_pairs(
        rows, tokenizer, text=Text(template=template), population=POPULATION, **VISITS
    )
    batches = loaded.clients.visit(0, np.random.default_rng(0)).batches
    pair = zip(batches["tokens"][0, 0], batches["loss_mask"][0, 0], strict=True)
    assert [tokenizer.decode(row[mask]) for row, mask in pair] == ["cat</s>", "dog pig</s>"]
    asked = np.where(batches["loss_mask"], -1, batches["tokens"])[0, 0]
    start = int(np.argmax(batches["loss_mask"][0, 0, 0]))
    np.testing.assert_array_equal(asked[0, :start], asked[1, :start])
    assert len(loaded.heldout.length) == len(loaded.rejected.length) == 2
    assert loaded.heldout.max_length == loaded.rejected.max_length
    assert loaded.report["rejected_column"].startswith("rejected")


def test_a_response_column_may_be_the_preferred_one(tokenizer):
    rows = [{"prompt": "say", "response": "cat", "other": "dog"} for _ in range(8)]
    loaded = load_pairs(
        rows, tokenizer, text=Text(template="{prompt}\n"), population=POPULATION,
        rejected="other", **VISITS,
    )  # fmt: skip
    assert len(loaded.clients) == 2


def test_the_built_in_pairs_are_of_different_kinds(tokenizer):
    population = Population(num_clients=2)
    loaded = load_pairs(
        "builtin-kinds", tokenizer, text=Text(template="{instruction}\n"),
        population=population, **VISITS,
    )  # fmt: skip
    tokens = loaded.clients.visit(0, np.random.default_rng(0)).batches["tokens"]
    assert (tokens[:, :, 0] != tokens[:, :, 1]).any(axis=-1).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rejected": "worse"}, "rejected_column=worse: no such column; there are"),
        ({"text": Text(pack_length=32)}, "pack_length=32: pairs cannot be packed"),
        ({"text": Text(response_words={"0": "no"})}, "`response_words` would give both"),
    ],
)
def test_what_makes_no_pairs_is_refused(tokenizer, given, said):
    rows = [plain(i) for i in range(8)]
    with pytest.raises(ValueError, match=said):
        load_pairs(rows, tokenizer, **{"population": POPULATION, **VISITS, **given})


def test_last_messages_need_the_turns_before_them(chat_tokenizer):
    rows = [{k: v for k, v in last_messages(i).items() if k != "conversations"} for i in range(8)]
    with pytest.raises(ValueError, match="the turns before it; choose one by `messages_column`"):
        load_pairs(rows, chat_tokenizer, population=POPULATION, **VISITS)


@pytest.mark.parametrize("name", ["rasbt/instruction-data-with-preference", "llamafactory/dpo_en"])
def test_published_pairs_load(test_data, chat_tokenizer, name):
    found = next(iter((test_data / "datasets" / "preference").glob(f"{name}*.json")))
    rows = json.loads(found.read_text())[:40]
    text = Text(max_length=2048)
    loaded = load_pairs(
        found.as_posix(), chat_tokenizer, text=text, population=POPULATION, **VISITS
    )
    assert len(loaded.clients.table.length) + len(loaded.heldout.length) >= len(rows)


def test_a_pair_is_kept_or_left_out_whole(chat_tokenizer):
    def chat(question, answer):
        return [turn("user", question), turn("assistant", answer)]

    long = "long " * 20
    rows = [
        {"chosen": chat(long, "A0"), "rejected": chat("q", "R0")},
        {"chosen": chat("q", "A1"), "rejected": chat(long, "R1")},
        {"chosen": chat("q", "A2"), "rejected": chat("q", "R2")},
    ]
    population = Population(partition="iid", num_clients=1, heldout_fraction=0.0)
    loaded = load_pairs(
        rows, chat_tokenizer, text=Text(max_length=40), population=population, **VISITS
    )
    batches = loaded.clients.visit(0, np.random.default_rng(0)).batches
    pair = zip(batches["tokens"][0, 0], batches["loss_mask"][0, 0], strict=True)
    assert [chat_tokenizer.decode(row[mask]) for row, mask in pair] == ["A2</s>", "R2</s>"]
    assert loaded.report["dropped"] == 2
    assert len(loaded.clients.table.length) == len(loaded.clients.rejected.length) == 1


def test_texts_that_hold_their_prompt_are_refused_with_a_remedy(tokenizer):
    rows = [{"chosen": "Human: a Assistant: b", "rejected": "Human: a Assistant: c"}] * 8
    with pytest.raises(ValueError, match="no prompt column.*write the prompt into a column"):
        load_pairs(rows, tokenizer, population=POPULATION, **VISITS)


def test_an_empty_side_of_the_first_row_is_named(chat_tokenizer):
    rows = [last_messages(i) for i in range(8)]
    rows[0]["rejected"] = None
    population = Population(partition="iid", num_clients=1, heldout_fraction=0.0)
    with pytest.raises(ValueError, match="row 0: column rejected holds no response"):
        load_pairs(rows, chat_tokenizer, population=population, **VISITS)
