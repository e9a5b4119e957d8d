"""Labels are spelled as the rows spell them; rows with another response are refused beforehand."""

import json

import pytest

from fedjax_post import study

WORDS = {
    "adapter.kind": "text_prompt",
    "adapter.prompt_text": "say",
    "adapter.candidates": ("cat", "dog"),
    "method.params": {"num_samples": 2},
}


def spec_of(model, rows, labels, **changes):
    base = {
        "model.name": str(model),
        "data.source": str(rows),
        "data.template": "{instruction}\\n",
        "data.labels": labels,
        "training.batch_size": 2,
        "training.rounds": 1,
        "training.local_steps": 1,
        "training.cohort_size": 1,
        "scoring.every": 0,
    }
    return study.Spec(method="bdpl").put(base | WORDS | changes)


def test_a_response_that_is_no_label_is_refused_with_an_example(tiny_folder, tiny_rows):
    with pytest.raises(
        ValueError, match=r"labels=cat,dog: the response of \d+ of \d+ rows is none"
    ):
        study.prepare(spec_of(tiny_folder, tiny_rows, ("cat", "dog")))


def test_a_label_that_rows_spell_by_several_tokens_is_refused(tiny_folder, tmp_path):
    """A loss over labels knows one spelling, and would be infinite for the rows with the other."""
    spelled = ["cat", "dog", " cat"] * 8
    rows = [{"instruction": f"say {i}", "response": word} for i, word in enumerate(spelled)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"\d of \d+ rows spell theirs by another first token"):
        study.prepare(spec_of(tiny_folder, path, ("cat", "dog"), **{"data.num_clients": 1}))


@pytest.mark.smollm2
@pytest.mark.heavy
@pytest.mark.parametrize("method", ["bdpl", "fed_dtpt"])
def test_a_label_after_a_space_is_another_token_and_is_found(method, tmp_path):
    """Where it was not, all updates were infinite, and all clients dropped without a word."""
    rows = [
        {"text": f"a {word} film", "label": f" {label}"}
        for word, label in (("bad", "negative"), ("good", "positive"))
        for _ in range(8)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {
        "data.prompt_column": "text",
        "data.response_column": "label",
        "data.template": "Review: {text}\\nSentiment:",
        "data.heldout_fraction": 0.25,
        "data.num_clients": 1,
        "scoring.exact_match": "off",
        "method.name": method,
        "method.params": WORDS["method.params"] if method == "bdpl" else {"num_edits": 2},
    }
    spec = spec_of("smollm2", path, ("negative", "positive"), **columns)
    (record,) = [record for _, record in study.prepare(spec).run()]
    assert record["dropped"] == []
    assert record["accuracy"] > 0


def test_labels_compete_alone_where_runs_are_scored_by_their_rank(tiny_folder, tiny_rows):
    labels = ("cat", "dog", "hen", "pig", "cow")
    losses = {}
    for exact in ("on", "off"):
        spec = spec_of(tiny_folder, tiny_rows, labels, **{"scoring.exact_match": exact})
        (record,) = [record for _, record in study.prepare(spec).run()]
        losses[exact] = record["loss"]
    assert losses["off"] < losses["on"]
