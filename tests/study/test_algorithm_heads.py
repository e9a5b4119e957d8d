"""What the files of the algorithms say is complete, and every paper that they name is known."""

import re
from pathlib import Path

import pytest

from fedjax_post import algorithms, study
from fedjax_post.algorithms import ALGORITHMS
from fedjax_post.study.algorithm_heads import PAPERS, papers

FILES = sorted(Path(algorithms.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_can_be_cited(name):
    told = study.about(name)
    assert told.papers
    entries = study.cite(name).split("\n\n")
    assert f"eprint = {{{told.papers[0]}}}" in entries[0]
    assert len(entries) == len(told.papers)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_paper_that_a_file_names_is_known(file):
    named = re.findall(r"arXiv:(\d{4}\.\d{4,5})", file.read_text(encoding="utf-8"))
    assert set(named) <= papers().keys()


def test_every_paper_has_its_data_and_a_key_of_its_own():
    keys = re.findall(r"^@misc\{(\w+),$", PAPERS.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(keys) == len(set(keys)) == len(papers())
    for entry in papers().values():
        fields = dict(re.findall(r"^  (\w+) = \{(.+)\},$", entry, re.MULTILINE))
        assert {"title", "author", "year", "eprint", "archivePrefix"} <= fields.keys()
        assert entry.count("{") == entry.count("}")
        assert abs(int(fields["eprint"][:2]) + 2000 - int(fields["year"])) <= 2


def test_several_algorithms_are_cited_without_repetition():
    both = study.cite("mime", "mime_lite")
    assert both == study.cite("mime")


def test_a_wrapper_is_cited_as_an_algorithm():
    assert "2012.04221" in study.cite("ditto")


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="scafold is no algorithm; did you mean scaffold"):
        study.cite("scafold")


def test_about_says_what_the_program_supplies_and_what_is_a_flag():
    told = study.about("fed_prox")
    assert told.inputs["loss_fn"] == "LossFn"
    assert "mu" in told.settings
    assert told.access == {"target": "GRADIENTS"}
