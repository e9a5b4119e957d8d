"""Laws of the partition of a specification: its spellings, and the rows that it divides."""

import importlib.util

import numpy as np
import pytest

from fedjax_post.data.table import gather
from fedjax_post.hub.load import load_embedding, load_model
from fedjax_post.hub.tokenizer import load_tokenizer
from fedjax_post.study import Data, Spec, Training, prepare
from fedjax_post.study.partitions import check, mean_embeddings, rule_of
from fedjax_post.study.rows import load_data

ROWS = [
    {"instruction": " ".join(["cat", "dog", "hen"][: 1 + i % 3]), "response": "cow", "task": i % 4}
    for i in range(120)
]


def load(**data):
    spec = Spec(
        model="builtin-small",
        data=Data(ROWS, num_clients=5, **data),
        training=Training(local_steps=1),
    )
    return load_data(spec, load_tokenizer("builtin-small"), context_length=512)


def test_both_spellings_of_dirichlet_give_the_same_clients():
    one = load(partition="dirichlet(0.05)")
    other = load(partition="dirichlet", partition_alpha=0.05)
    usual = load(partition="dirichlet")
    assert one.clients.fingerprint() == other.clients.fingerprint()
    assert usual.report["partition"] == "dirichlet(0.3)"


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("natural", "natural"),
        ("quantity", "quantity(lognormal, 1)"),
        ("quantity(power_law, 1.5)", "quantity(power_law, 1.5)"),
        ("quantity(poisson)", "quantity(poisson)"),
        ("shards(per_client=3)", "shards(3)"),
        ("length(0.5)", "length(0.5)"),
        ("clusters(4)", "clusters(4, 0.3)"),
        ("clusters(4, 1.0, embeddings)", "clusters(4, 1, embeddings)"),
    ],
)
def test_a_rule_is_reported_with_all_of_its_settings(text, reported):
    assert rule_of(Spec(data=Data(partition=text))).text == reported


def test_the_embedding_is_that_of_the_whole_model():
    whole = load_model("builtin-small").variables["params"]["embedding"]
    np.testing.assert_array_equal(load_embedding("builtin-small"), whole)


def test_features_are_the_mean_embeddings_of_rows():
    table = load(partition="iid").clients.table
    weights = load_embedding("builtin-small")
    rows, _ = gather(table, np.arange(len(table.length)))
    means = [weights[row[:size]].mean(axis=0) for row, size in zip(rows, table.length, strict=True)]
    np.testing.assert_allclose(mean_embeddings("builtin-small")(table), means, atol=1e-6)


def test_embeddings_of_a_model_elsewhere_cannot_be_read(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    spec = Spec(data=Data(partition="clusters(4, 0.3, embeddings)"))
    with pytest.raises(ValueError, match="a model at a provider cannot be read; use tfidf"):
        check(spec.put({"hosting.url": "http://localhost:1"}))


def test_the_plan_says_who_has_held_out_rows_and_what_is_left_out():
    data = Data(ROWS, partition="shards(1)", num_clients=4, max_examples=60)
    training = Training(rounds=1, cohort_size=2)
    plan = str(prepare(Spec(model="builtin-small", data=data, method="fed_avg", training=training)))
    assert "4, shards(1), of 15 to 15 examples" in plan
    assert "6 held-out rows of 4 clients, by label" in plan
    assert "54 more are not used, by max_examples" in plan
