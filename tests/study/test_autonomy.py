"""Drills: effects of faults on who takes part, on the model, and on the results."""

import jax
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.core.access import Access
from fedjax_post.openness import licences
from fedjax_post.openness.artefact import artefact_terms, passport_of
from fedjax_post.openness.read import load_passport, passport_names
from fedjax_post.simulate.cohort import draw
from fedjax_post.study import autonomy
from fedjax_post.study.faults import LLAMA_4
from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params
from fedjax_post.testing.models import tiny_model


def cohorts(sampler, rounds=20, population=10):
    return [draw(sampler, population, seed=0, round=round) for round in range(rounds)]


def test_those_left_out_are_missing_and_nobody_else():
    for cohort, whole in zip(
        cohorts(autonomy.without(fp.uniform(5), [2, 7])), cohorts(fp.uniform(5)), strict=True
    ):
        assert cohort.tolist() == [i for i in whole.tolist() if i not in (2, 7)]


def test_a_rate_limit_lets_some_of_the_cohort_through_and_not_always_the_same():
    limited = cohorts(autonomy.at_most(fp.uniform(5), 2))
    for cohort, whole in zip(limited, cohorts(fp.uniform(5)), strict=True):
        assert len(cohort) == 2
        assert set(cohort) <= set(whole)
    assert len({tuple(cohort) for cohort in limited}) > 5
    for cohort, whole in zip(
        cohorts(autonomy.at_most(fp.uniform(5), 9)), cohorts(fp.uniform(5)), strict=True
    ):
        np.testing.assert_array_equal(cohort, whole)
    with pytest.raises(ValueError, match="rate_limit=0 admits no client"):
        autonomy.at_most(fp.full(), 0)


@pytest.mark.heavy
def test_after_a_shutdown_a_run_stands_where_it_stood(tmp_path):
    algorithm = algorithms.fed_avg(toy_loss, optax.sgd(0.05))

    def play(rounds, sampler, resume):
        plan = fp.Plan(
            sampler=sampler,
            directory=tmp_path,
            resume=resume,
            chunk_size=3,
            may_differ=("cohorts",),
        )
        run = fp.run(
            algorithm, toy_model(), toy_clients(), params=toy_params(), rounds=rounds, plan=plan
        )
        return list(run)[-1]

    before, _ = play(2, fp.uniform(3), resume=False)
    after, record = play(4, autonomy.nobody(), resume=True)
    assert record["round"] == 3
    assert record["cohort"] == record["bytes_up"] == 0
    jax.tree.map(np.testing.assert_array_equal, before.shared, after.shared)


COUNTS = np.array([[4, 0], [0, 4], [3, 1], [1, 3], [2, 2]])
TOKENS = np.array([10, 50, 40, 30, 20])


def excluded(reason, num=2, seed=0):
    return autonomy.choose_excluded(
        reason, counts=COUNTS, tokens=TOKENS, num=num, seed=seed
    ).tolist()


def test_regions_are_of_one_label_and_prices_by_tokens():
    assert excluded("excluded_region") in ([0, 2], [1, 3])
    assert excluded("excluded_price") == [1, 2]
    assert excluded("excluded_price", num=1) == [1]


def test_licences_exclude_anybody_by_the_seed():
    drawn = {tuple(excluded("excluded_licence", seed=seed)) for seed in range(20)}
    assert len(drawn) > 4
    assert excluded("excluded_licence", seed=3) == excluded("excluded_licence", seed=3)


@pytest.mark.parametrize("num", [0, 5])
def test_an_exclusion_leaves_somebody_and_shuts_somebody_out(num):
    with pytest.raises(ValueError, match=f"excluded_clients={num} must be from 1 to 4"):
        excluded("excluded_price", num=num)


@pytest.mark.parametrize("seed", range(3))
def test_memories_lie_between_their_ends_and_grow_with_the_model(seed):
    drawn = autonomy.client_memory(1000, size=100, least=2.0, most=32.0, seed=seed)
    assert (drawn.min() >= 200, drawn.max() <= 3200) == (True, True)
    # log-uniform: the middle of the logarithm is the median, the geometric mean of the ends
    np.testing.assert_allclose(np.median(drawn), 800, rtol=0.15)
    twice = autonomy.client_memory(1000, size=200, least=2.0, most=32.0, seed=seed)
    np.testing.assert_allclose(twice, 2 * drawn)


@pytest.mark.parametrize(("least", "most"), [(0.0, 1.0), (2.0, 1.0)])
def test_a_range_of_memories_is_not_empty(least, most):
    with pytest.raises(ValueError, match=f"least_memory={least:g} must be above 0"):
        autonomy.client_memory(4, size=1, least=least, most=most, seed=0)


def test_a_licence_bars_whom_its_terms_name():
    assert licences.bars(LLAMA_4, "European Union")
    assert not licences.bars(LLAMA_4, "Moon")
    assert not licences.bars("Apache-2.0", "European Union")
    with pytest.raises(ValueError, match="weights_licence=mine is not in the table"):
        licences.bars("mine", "European Union")


@pytest.mark.heavy
def test_another_version_is_as_far_as_it_is_said_to_be():
    model, key = tiny_model(), jax.random.key(0)
    same = autonomy.another_version(model, key, change=0.0)
    jax.tree.map(np.testing.assert_array_equal, model, same)
    other = autonomy.another_version(model, key, change=0.5)
    assert jax.tree.structure(other) == jax.tree.structure(model)
    for was, now in zip(jax.tree.leaves(model), jax.tree.leaves(other), strict=True):
        if was.size > 500:
            ratio = np.std(now - was) / np.std(was)
            np.testing.assert_allclose(ratio, 0.5, rtol=0.1)


@pytest.mark.parametrize(
    ("access", "trains", "serves"),
    [
        ({"target": Access.GRADIENTS}, True, True),
        ({"target": Access.WEIGHTS}, True, True),
        ({"target": Access.LOGITS}, False, False),
        ({"target": Access.TEXT}, False, False),
        ({"target": Access.LOGITS, "proxy": Access.GRADIENTS}, True, False),
        ({"emulator": Access.GRADIENTS}, True, False),
    ],
)
def test_who_goes_on_alone_follows_from_what_is_held(access, trains, serves):
    assert autonomy.trains_alone(access) == trains
    assert autonomy.serves_alone(access) == serves


def row(drill, before, after, **changes):
    return autonomy.Row(drill, "m", before, after, True, True, "", {"clients": [1]})._replace(
        **changes
    )


def test_rows_of_seeds_stand_side_by_side():
    rows = autonomy.over_seeds(
        [row("a", 0.5, 0.25), row("b", 1.0, 1.0), row("a", 0.75, 0.25, can_serve=False)]
    )
    assert [found["drill"] for found in rows] == ["a", "b"]
    first = rows[0]
    assert first["before"] == [0.5, 0.75]
    assert first["lost"] == [0.25, 0.5]
    assert first["clients"] == [[1], [1]]
    assert (first["can_train"], first["can_serve"]) == (True, False)
    assert "37.5" in autonomy.table(rows)


def test_terms_of_weights_are_those_of_the_passport():
    terms = {t.about: t for t in artefact_terms(load_passport("llama-3.1"))}
    assert terms["licence of the base"].says.endswith("(not open)")
    assert terms["what they must be called"].says == "begins with Llama"
    assert all(t.source for t in terms.values())


def test_a_prompt_carries_no_weights_and_no_name():
    terms = artefact_terms(load_passport("llama-3.1"), holds_weights=False)
    about = [t.about for t in terms]
    assert "what they must be called" not in about
    assert "uses that are ruled out" in about
    assert (
        "only where the base is available"
        in {t.about: t.says for t in terms}["passing a prompt on"]
    )


@pytest.mark.parametrize("name", passport_names())
def test_every_passport_says_what_may_be_done(name):
    for holds_weights in (True, False):
        terms = artefact_terms(load_passport(name), holds_weights=holds_weights)
        assert all(t.about and t.says and t.source and t.date for t in terms)


@pytest.mark.parametrize(
    ("licence", "said"),
    [("CC-BY-4.0", "CC-BY-4.0 (open)"), ("mine", "not an open"), ("unknown", "unknown")],
)
def test_the_data_have_a_licence_of_their_own(licence, said):
    (found,) = [
        t for t in artefact_terms(load_passport("builtin"), data_licence=licence)
        if t.about == "licence of the clients' data"
    ]  # fmt: skip
    assert said in found.says


@pytest.mark.parametrize(
    ("model", "passport"),
    [
        ("builtin", "builtin"),
        ("builtin-of-my-own", "builtin"),
        ("olmo-2", "olmo-2"),
        ("allenai/OLMo-1B-hf", "olmo-1"),
        ("somebody/else", ""),
        ("", ""),
    ],
)
def test_a_passport_is_found_by_the_model_s_name(model, passport):
    assert passport_of(model) == passport
