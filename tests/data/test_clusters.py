"""Laws of clusters: rows that are alike share one, which then serves as their label."""

import importlib.util

import numpy as np
import pytest

from fedjax_post.data import Population, Text, clusters, load_clients, rules
from fedjax_post.data.label_skew import dirichlet
from fedjax_post.data.partition import owners

pytest.importorskip("sklearn", reason="install the extra: pip install 'fedjax_post[clusters]'")

TOPICS = ("ship sea sail wave captain", "goal match ball team score", "soup salt pan oven bake")


def texts(number, seed=0):
    """Sentences of six words, each of one topic, and their topics."""
    rng = np.random.default_rng(seed)
    topics = rng.integers(len(TOPICS), size=number)
    return [" ".join(rng.choice(TOPICS[t].split(), 6)) for t in topics], topics


def agreement(found, topics):
    """The share of rows in the most frequent topic of their cluster."""
    table = np.zeros((found.max() + 1, topics.max() + 1))
    np.add.at(table, (found, topics), 1)
    return table.max(axis=1).sum() / len(found)


def test_clusters_of_words_are_topics():
    (rows, topics), (others, other_topics) = texts(200), texts(60, seed=1)
    features, other_features = clusters.tfidf(rows, others)
    found, nearest = clusters.cluster(features, 3, others=other_features)
    assert agreement(found, topics) == 1.0
    assert agreement(np.r_[found, nearest], np.r_[topics, other_topics]) == 1.0


def test_many_words_are_projected_to_unit_length():
    rng = np.random.default_rng(0)
    rows = [" ".join(f"w{i}" for i in rng.integers(300, size=20)) for _ in range(150)]
    features, others = clusters.tfidf(rows[:140], rows[140:])
    assert features.shape == (140, 100)
    np.testing.assert_allclose(np.linalg.norm(np.r_[features, others], axis=1), 1.0)
    np.testing.assert_array_equal(clusters.tfidf(rows[:140], rows[140:])[0], features)


def test_centres_are_at_their_rows_means():
    features = np.random.default_rng(0).normal(size=(300, 5))
    found, _ = clusters.cluster(features, 4, seed=1)
    means = np.stack([features[found == i].mean(axis=0) for i in range(4)])
    apart = np.linalg.norm(features[:, None] - means, axis=-1)
    assert np.mean(apart.argmin(axis=1) == found) > 0.99  # a fixed point of k-means


def load(rows, tokenizer, rule, **population):
    given = Population(rule, num_clients=8, heldout_fraction=0.25, **population)
    made = [{"prompt": text, "response": "x"} for text in rows]
    visits = {"batch_size": 1, "local_steps": 1}
    return load_clients(
        made, tokenizer, text=Text(template="{prompt}:"), population=given, **visits
    )


def test_the_split_is_dirichlet_over_clusters(tokenizer):
    rows, _ = texts(240)
    loaded = load(rows, tokenizer, rules.clusters(3, 0.5), seed=2)
    table = loaded.clients.table
    words = clusters.texts_of(table, tokenizer)
    assert {text.removesuffix(":x") for text in words} <= set(rows)
    found, _ = clusters.cluster(clusters.tfidf(words, seed=2)[0], 3, seed=2)
    expected = dirichlet(found, 8, alpha=0.5, seed=2)
    np.testing.assert_array_equal(loaded.clients.partition.indices, expected.indices)
    assert loaded.report["partition"] == "clusters(3, 0.5)"


def test_held_out_rows_go_to_clients_with_their_cluster(tokenizer):
    loaded = load(texts(400)[0], tokenizer, rules.clusters(3, 0.1))
    topic = lambda table: np.array(
        [
            next(i for i, words in enumerate(TOPICS) if text[: text.index(" ")] in words.split())
            for text in clusters.texts_of(table, tokenizer)
        ]
    )
    own, held = topic(loaded.clients.table), topic(loaded.heldout)
    mine, theirs = (
        owners(loaded.clients.partition, len(own)),
        owners(loaded.heldout_partition, len(held)),
    )
    for client in range(8):
        assert set(held[theirs == client]) <= set(own[mine == client])


def test_features_of_your_own_decide(tokenizer):
    by_length = lambda table: (table.length > 31)[:, None].astype(float)
    loaded = load(texts(80)[0], tokenizer, rules.clusters(2, 1e-3, by_length))
    long = loaded.clients.table.length > 31
    mine = owners(loaded.clients.partition, len(long))
    mixed = [0 < long[mine == client].mean() < 1 for client in range(8)]
    assert sum(mixed) <= 1  # the last clients take what is left


@pytest.mark.parametrize(
    ("rows", "number", "said"),
    [
        ([" ?", " !", " -"] * 8, 2, "none of the 18 rows has a word of text that is not in"),
        (["same words"] * 20, 2, "none of the 15 rows has a word of text that is not in"),
        (["one", "two", "three", "four"], 9, r"clusters\(9\): it finds 3 different rows"),
    ],
)
def test_rows_without_differences_are_refused(tokenizer, rows, number, said):
    made = [{"prompt": row, "response": "."} for row in rows]
    given = Population(rules.clusters(number), num_clients=2, heldout_fraction=0.25)
    with pytest.raises(ValueError, match=said):
        load_clients(made, tokenizer, batch_size=1, local_steps=1, population=given)


def test_without_the_library_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'fedjax_post\[clusters\]'"):
        clusters.cluster(np.zeros((4, 1)), 2)
