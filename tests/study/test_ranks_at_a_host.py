"""Whole runs at a host that are scored by the rank of labels: what decides it, sends and counts."""

import json

import jax
import numpy as np
import pytest

import fedjax_post
from fedjax_post import study
from fedjax_post.core.access import Access
from fedjax_post.data.builtin.corpus import build_tokenizer
from fedjax_post.disclosure.arrivals import Private, arrivals, index_of, offsets_of
from fedjax_post.evaluate.bounds import rank_by_bounds
from fedjax_post.evaluate.ranking import choice_log_probs, rank
from fedjax_post.hub.load import save_model
from fedjax_post.model.views import init_model
from fedjax_post.provider.calls import Provider
from fedjax_post.provider.hosted import make_hosted
from fedjax_post.provider.inside import PEER, Inside
from fedjax_post.provider.journal import Journal
from fedjax_post.provider.log import read_texts
from fedjax_post.provider.served import load_served
from fedjax_post.provider.service import Provider as Service
from fedjax_post.provider.service import Settings
from fedjax_post.provider.terms import Terms
from fedjax_post.study import hosting, search
from fedjax_post.testing.models import tiny_config

LABELS = ("cat", "dog")
ROWS = [
    {"instruction": f"{one} {other}", "response": LABELS[i % 2], "client": i % 3}
    for i, (one, other) in enumerate(
        (one, other) for one in ("hen", "pig", "cow", "pear") for other in ("hen", "pig", "cow")
    )
]
COMMON = {
    "data.source": ROWS * 3,
    "data.template": "say {instruction}\\n",
    "data.labels": LABELS,
    "data.heldout_fraction": 0.34,
    "adapter.kind": "text_prompt",
    "adapter.prompt_text": "name the kind:",
    "training.batch_size": 4,
    "training.sampling": "full",
    "training.local_steps": 1,
    "training.rounds": 1,
    "scoring.every": 0,
    "scoring.exact_match": "off",
}
HOST = {"execution.executor": "host", "method.params": {"num_epochs": 1}}


def spec_of(name, base, **changes):
    return study.Spec(method=name).put({"model.name": str(base)} | COMMON | changes)


def tuned(base, **changes):
    return spec_of("host_tuning", base, **HOST | changes)


def hosted_by(base, tokenizer, num_top):
    """The same model, at a provider in this process that returns so many log-probabilities."""
    served = load_served(str(base))._replace(name="tiny")
    inside = Inside(lambda: Service(served, Settings(max_logprobs=num_top)))
    provider, terms = Provider(PEER, "tiny", "", inside.post), Terms(top_logprobs=num_top)
    given = {"terms": terms, "journal": Journal(None), "access": Access.LOGITS}
    return make_hosted(provider, tokenizer, **given)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "2 labels ranked (cat, dog); answers are not compared"),
        ({"scoring.exact_match": "on"}, "not ranked: each question would be asked twice"),
        ({"hosting.access": "TEXT"}, "not ranked: the provider grants no log-probabilities"),
        (
            {
                "data.response_column": "response",
                "data.response_words": {"cat": "cat hen", "dog": "dog"},
                "data.labels": ("cat hen", "dog"),
            },
            "not ranked: a host scores next tokens alone, and 'cat hen' has 2 tokens",
        ),
    ],
)
def test_whether_a_host_ranks_labels_is_said_before_a_run(changes, told, tiny_folder):
    assert told in str(study.prepare(tuned(tiny_folder, **changes)))


@pytest.fixture(scope="module")
def headed_folder(tmp_path_factory):
    """A tiny model that knows its first token, which a prompt follows at a provider too."""
    folder, tokenizer = tmp_path_factory.mktemp("models") / "headed", build_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 8, "intermediate_size": 8}
    config = tiny_config(**sizes, num_layers=1, max_positions=32, bos_id=tokenizer.bos_token_id)
    save_model(folder, init_model(config, jax.random.key(0)))
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.heavy
def test_ranks_at_a_provider_are_those_of_the_model_itself(headed_folder):
    """Calibrated ones too. With few log-probabilities, what is not decided counts as wrong."""
    parts = study.prepare(spec_of("manual_prompt", headed_folder)).parts
    model, params = fedjax_post.deployed(parts.algorithm, parts.model, parts.start)
    heldout, size = parts.heldout, len(parts.tokenizer)
    local = rank(model, params, heldout).shares
    whole = hosted_by(headed_folder, parts.tokenizer, size)
    found = rank_by_bounds(whole, params, heldout).shares
    for name in ("accuracy", "accuracy_per_token", "accuracy_pmi"):
        np.testing.assert_array_equal(found[name], local[name])
    assert not found["accuracy_undecided"].any()
    null = heldout.choices.null_prompt
    expected = choice_log_probs(model, params, [null], heldout.choices).labels
    asked = (null[None], np.ones((1, len(null)), bool), heldout.choices.tokens[:, 0])
    np.testing.assert_allclose(whole.next_bounds(params, *asked), [expected] * 2, atol=1e-5)
    few = rank_by_bounds(hosted_by(headed_folder, parts.tokenizer, 20), params, heldout).shares
    for name in ("accuracy", "accuracy_pmi"):
        is_open = few[f"{name}_undecided"] > 0
        assert not few[name][is_open].any()
        np.testing.assert_array_equal(few[name][~is_open], local[name][~is_open])
    assert few["accuracy_undecided"].any()


@pytest.mark.heavy
def test_ranked_rows_are_in_the_ledger_as_in_the_provider_s_log(tiny_folder, tmp_path):
    """Each row once before and once after training, and the null prompt, which is public."""
    job = study.prepare(tuned(tiny_folder), directory=tmp_path / "run")
    summary = study.carry_out(job)
    lines = (tmp_path / "run" / "disclosure.jsonl").read_text().splitlines()
    told = [entry for entry in map(json.loads, lines) if entry["outside"]]
    private = [Private(row["instruction"], row["response"], "\n ") for row in ROWS]
    offsets_fn = offsets_of(build_tokenizer())
    log = read_texts(tmp_path / "run" / hosting.LOG)
    seen = arrivals(log, index_of(private), offsets_fn=offsets_fn)
    total = lambda name: sum(entry[name] for entry in told)
    assert total("queries") == seen.queries + 2  # the null prompt carries nothing that is sought
    assert total("private_tokens") == seen.private_tokens > 0
    assert total("labels") == seen.labels > 0
    evaluation = summary["disclosure"]["evaluation"]
    num_rows = summary["heldout_examples"]
    assert (evaluation["queries"], evaluation["labels"]) == (2 * (num_rows + 1), 0)
    assert evaluation["private_tokens"] == 2 * 2 * num_rows  # a question has two words
    assert "loss" not in summary["final"]
    assert {"accuracy", "accuracy_pmi", "accuracy_undecided"} <= summary["final"].keys()


@pytest.mark.heavy
def test_a_ladder_compares_a_tuning_host_by_rank(tiny_folder, tmp_path):
    rungs = {
        "host_tuning": study.Rung(tuned(tiny_folder), "closed"),
        "manual_prompt": study.Rung(spec_of("manual_prompt", tiny_folder), "baseline"),
    }
    given = {"task": study.Task(measure="accuracy"), "directory": tmp_path / "ladder"}
    report = study.ladder(rungs, **given, show=str).table()
    (line,) = [line for line in report.splitlines() if line.startswith("host_tuning")][:1]
    assert "FINETUNE" in line
    assert "%" in line


def test_a_search_by_rank_refuses_a_host_that_ranks_nothing(tiny_folder, tmp_path):
    spec = tuned(tiny_folder, **{"scoring.exact_match": "on"})
    rungs = {"host_tuning": study.Rung(spec, "closed")}
    setting = search.Setting({"multiplier": 2.0}, {"method.params": {"multiplier": 2.0}})
    found = search.Search({"host_tuning": [setting]}, trials=1, seed=100)
    given = {"task": study.Task(measure="accuracy"), "extras": study.Extras(search=found)}
    with pytest.raises(ValueError, match="at a host of one token each and with exact_match=off"):
        study.ladder(rungs, **given, directory=tmp_path / "ladder", show=str)
