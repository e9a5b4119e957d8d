"""The rules of the Model Openness Framework, on cases that its own tool has classified."""

import pytest

from fedjax_post.openness.framework import COMPONENTS, evaluate, progress, required
from fedjax_post.openness.licences import is_open, suits

OPEN = {"distribution": "Apache-2.0"}


def all_but(*names, rank=1):
    return {name: None for name in required(rank) if name not in names}


def test_there_are_17_components_and_classes_nest():
    assert len(COMPONENTS) == 17
    assert [len(required(rank)) for rank in (3, 2, 1)] == [6, 10, 14]
    assert set(required(3)) < set(required(2)) < set(required(1))


@pytest.mark.parametrize(
    ("released", "project", "expected"),
    [
        (all_but(rank=3), OPEN, 3),
        (all_but(rank=2), OPEN, 2),
        (all_but(), OPEN, 1),
        ({}, OPEN, 0),
        (all_but(), {}, 0),  # released, but nobody may use it
        (all_but("technical_report"), OPEN, 1),  # the research paper stands in
        (all_but("technical_report", "research_paper"), OPEN, 0),
        (all_but("technical_report", rank=2), OPEN, 0),  # no paper to stand in
        (all_but("technical_report", rank=3) | {"research_paper": "CC-BY-4.0"}, OPEN, 3),
        (all_but("datasets"), OPEN, 2),
        (all_but("evaluation_code"), OPEN, 3),  # classes are cumulative
        (all_but() | {"model_card": "arXiv.org perpetual non-exclusive license 1.0"}, OPEN, 0),
        (all_but() | {"datasets": "CC-BY-NC-4.0"}, OPEN, 2),
        (all_but() | {"datasets": "unlicensed"}, OPEN, 2),  # its own word beats the project's
        (all_but(), {"distribution": "Llama 3.2 Community License"}, 0),
        (all_but(), {"code": "MIT", "data": "CDLA-Permissive-2.0", "document": "CC-BY-4.0"}, 1),
        (all_but(), {"code": "MIT", "data": "CDLA-Permissive-2.0"}, 0),
    ],
)
def test_the_class_is_what_the_rules_give(released, project, expected):
    assert evaluate(released, project).rank == expected


def test_a_licence_resolves_from_the_component_outwards():
    project = {"distribution": "Apache-2.0", "data": "CC-BY-4.0"}
    licences = evaluate(all_but() | {"model_card": "MIT"}, project).licences
    assert licences["model_card"] == "MIT"
    assert licences["datasets"] == "CC-BY-4.0"
    assert licences["training_code"] == "Apache-2.0"


def test_an_open_licence_for_other_content_counts_and_warns():
    found = evaluate(all_but(), {"distribution": "MIT"})
    assert found.rank == 1
    assert set(found.warnings) == {n for n in required(1) if COMPONENTS[n].content != "code"}
    assert evaluate(all_but(), {"distribution": "OpenMDW-1.0"}).warnings == ()


@pytest.mark.parametrize(
    ("name", "licence", "why"),
    [
        ("data_card", None, "not released"),
        ("data_card", "", "released without a licence"),
        ("data_card", "unknown", "released, its licence unknown"),
        ("data_card", "Proprietary", "Proprietary is not an open licence"),
    ],
)
def test_what_is_missing_says_why(name, licence, why):
    released = all_but(name) | ({} if licence is None else {name: licence})
    assert evaluate(released, OPEN).lacking[3] == {name: why}


def test_progress_is_nought_until_the_class_below_is_met():
    two_thirds = evaluate(all_but("model_card", "data_card"), OPEN)
    assert [progress(two_thirds, rank) for rank in (3, 2, 1)] == [pytest.approx(200 / 3), 0, 0]
    stood_in = evaluate(all_but("technical_report", "datasets"), OPEN)
    assert progress(stood_in, 1) == pytest.approx(100 * 12 / 13)  # one fewer is required
    assert progress(evaluate(all_but(), OPEN), 1) == 100


def test_unknown_components_are_refused_with_the_list():
    with pytest.raises(ValueError, match=r"'weights' is unknown; there are architecture"):
        evaluate({"weights": None}, OPEN)


@pytest.mark.parametrize("licence", ["MIT", "CC0-1.0", "ODbL-1.0", "Apache-1.0", "OpenMDW-1.0"])
def test_open_licences(licence):
    assert is_open(licence)


@pytest.mark.parametrize("licence", ["CC-BY-NC-4.0", "Gemma Terms of Use", "unlicensed", ""])
def test_licences_that_are_not_open(licence):
    assert not is_open(licence)


def test_licences_suit_what_they_are_made_for():
    assert suits("Apache-2.0", "code")
    assert suits("Apache-2.0", "document")
    assert not suits("Apache-2.0", "data")
    assert suits("CDLA-Permissive-2.0", "data")
