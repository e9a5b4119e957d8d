"""The site has every room, page and algorithm; what it makes from the code is what is meant."""

import importlib
import re
from pathlib import Path

import pytest

from fedjax_post.algorithms import ALGORITHMS
from fedjax_post.experiments.flags.define import FLAGS

ROOT = Path(__file__).parent.parent.parent
SITE = ROOT / "docs" / "site"
GUIDE = (ROOT / "docs" / "rooms.md").read_text(encoding="utf-8")


@pytest.fixture
def made(monkeypatch):
    """The modules that make the pages; they need no Sphinx."""
    monkeypatch.syspath_prepend(SITE)
    names = ("wire", "equations", "catalogue", "reference", "docstrings", "releases")
    return {name: importlib.import_module(name) for name in names}


def test_every_room_is_described_and_its_names_exist(made):
    pages = made["reference"].pages(GUIDE)
    for room in ["fedjax_post", *made["reference"].rooms()]:
        assert f"reference/{room}.md" in pages


def test_what_the_guide_calls_exists(made):
    """The first name of each bullet is at the face of its room."""
    for room, text in re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL):
        path = "fedjax_post" if room == "fedjax_post" else f"fedjax_post.{room}"
        face = importlib.import_module(path)
        for name in re.findall(r"^- `(\w+)", text, re.MULTILINE):
            assert name == "python" or hasattr(face, name), f"{path} has no {name}"


def test_a_room_without_a_description_is_refused(made):
    with pytest.raises(ValueError, match=r"rooms\.md has no section on core"):
        made["reference"].pages(GUIDE.replace("## `core`", "## `else`"))


def test_every_page_is_in_the_navigation():
    listed = (SITE / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT).with_suffix("").as_posix()
        assert name.startswith("docs/site/") or f"\n{name}\n" in listed, f"{name} is in no toctree"


@pytest.mark.heavy
def test_the_catalogue_has_every_algorithm(made):
    pages = made["catalogue"].pages()
    text = "\n".join(pages.values())
    for name in ALGORITHMS:
        assert f"## `{name}`\n" in text
        assert f"[`{name}`](" in pages["catalogue/index.md"]


def test_every_flag_is_listed(made):
    text = made["reference"].pages(GUIDE)["reference/flags.md"]
    assert [name for name in FLAGS if not re.search(rf"^- `--{name}[=`]", text, re.MULTILINE)] == []


@pytest.mark.heavy
def test_sizes_are_in_adapters(made):
    """FedAvg sends an adapter each way and the weight of a client; the others relate to it."""
    sizes = made["wire"].sizes()
    one, weight = sizes.adapter, 4
    assert sizes.of["fed_avg"] == (one, one + weight)
    assert sizes.of["scaffold"] == (2 * one, 2 * one + weight)
    assert sizes.of["ffa_lora"] == (one // 2, one // 2 + weight)
    assert sizes.of["fed_k_seed"] == (4 * 1024, 4 * 1024 + weight)
    assert not {"fed_bpt", "bdpl", "offsite_tuning"} & sizes.of.keys()


def test_numbers_of_the_releases_are_those_of_the_code_and_the_results_file(made):
    measured = lambda value, commit: {
        **{"suite": "tax", "figure": "FedAvg", "value": value, "unit": "s", "quartiles": None},
        **{"aim": {"number": 3, "at_least": False}, "met": value <= 3, "commit": commit},
        **{"versions": {"fedjax_post": "0.1.0"}, "date": "2026-11-30T07:00:00"},
    }
    text = made["releases"].text([measured(2.0, "a" * 40), measured(4.0, "b" * 40)])
    assert f"| algorithms | {len(ALGORITHMS)} |" in text
    assert "| tax | 1 | 0 of 1 | 0.1.0, bbbbbbb, 2026-11-30 |" in text
    missed, changed = re.findall(r"^## (?:Aims|Then).*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert "| FedAvg | 4 s |  | ≤ 3 s | no |" in missed
    assert "| 2 s (aaaaaaa, 2026-11-30) | 4 s (bbbbbbb, 2026-11-30) |" in changed
    assert "None." in made["releases"].text([measured(2.0, "a" * 40)])


@pytest.mark.parametrize(
    ("plain", "typeset"),
    [
        ("w_k", "<i>w</i><sub><i>k</i></sub>"),
        ("x^2", "<i>x</i><sup>2</sup>"),
        ("F^(q+1)", "<i>F</i><sup><i>q</i>+1</sup>"),
        ("sum_{i <= p} S_i", "Σ<sub><i>i</i> ≤ <i>p</i></sub> <i>S</i><sub><i>i</i></sub>"),
        ("eta grad f", "<i>η</i> ∇ <i>f</i>"),
        ("max_variance", "<code>max_variance</code>"),
        ("a < b", "<i>a</i> &lt; <i>b</i>"),
        ("V'", "<i>V</i>′"),
    ],
)
def test_equations_are_typeset(made, plain, typeset):
    assert made["equations"].typeset(plain) == typeset


def test_no_character_of_an_equation_is_lost(made):
    """Without its marks, what is typeset has the words and numbers of the head."""
    for name in ALGORITHMS:
        text = importlib.import_module(ALGORITHMS[name].__module__).__doc__
        for line in re.findall(r"^    .*", text, re.MULTILINE):
            plain = re.sub(r"<[^<>]+>", "", made["equations"].typeset(line))
            assert re.findall(r"\d+", plain) == re.findall(r"\d+", line)


def test_docstrings_keep_code_and_escape_the_rest(made):
    to_rst = made["docstrings"].to_rst
    assert to_rst(["Of |x - y| by `a * b`."]) == [r"Of \|x - y\| by ``a * b``."]
    assert to_rst(["Writes:", "", "    a = b * c"]) == ["Writes:", "", "::", "", "    a = b * c"]
