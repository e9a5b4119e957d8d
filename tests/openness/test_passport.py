"""Passports: all of the project's can be read, name their sources, and errors name a remedy."""

import re

import pytest

from fedjax_post.core.access import Access
from fedjax_post.hub.facts import CHECKPOINTS
from fedjax_post.openness import page, read, runnable
from fedjax_post.openness import passport as passports
from fedjax_post.openness.licences import terms_of

PASSPORTS = [read.load_passport(name) for name in read.passport_names()]
EVERY = pytest.mark.parametrize("passport", PASSPORTS, ids=lambda p: p.name)


def statements(passport):
    said = [*passport.project.values(), *passport.definition.values(), *passport.eu_index.values()]
    said += [passport.tier, passport.inference, passport.terms]
    said += [one for one in (passport.scores, passport.fine_tuning) if one is not None]
    return [(one.value, one.source, one.date) for one in said] + [
        (part.released, part.source, part.date) for part in passport.components.values()
    ]


def test_the_models_that_are_asked_for_have_one():
    wanted = {"pythia", "olmo-1", "olmo-2", "smollm2", "smollm3", "qwen2.5", "qwen3", "llama-3.1",
              "llama-3.2", "gemma-3", "mistral-7b", "phi-4", "gpt-oss", "builtin",
              "hosted-api", "deepseek-v3", "deepseek-r1", "llama-4", "gemma-4", "apertus", "olmo-3",
              "mistral-3", "hosted-claude", "hosted-gemini"}  # fmt: skip
    assert wanted <= set(read.passport_names())


@EVERY
def test_every_statement_has_a_source_or_is_unknown(passport):
    for value, source, date in statements(passport):
        assert (source != "unknown" and len(date) == 10) or value == "unknown"


@pytest.mark.parametrize(
    ("name", "tuned"),
    [("hosted-api", True), ("hosted-gemini", True), ("hosted-claude", False), ("olmo-2", False)],
)
def test_a_host_that_fine_tunes_grants_it(name, tuned):
    access = passports.granted_access(read.load_passport(name))
    assert (Access.FINETUNE in access) == tuned
    needed = {"host_tuning": {"target": Access.TEXT | Access.FINETUNE}}
    refused = runnable.refusals(needed, runnable.roles(access))
    assert bool(refused) == (name == "hosted-claude")  # whoever holds weights can run a service


@EVERY
def test_what_the_hub_knows_is_said_once(passport):
    facts = {entry.name: entry for entry in CHECKPOINTS}
    if passport.checkpoint:
        fact = facts[passport.checkpoint]
        assert passport.terms == fact.licence
        assert passport.components["parameters_final"].licence == fact.licence.value
        assert passport.model_type == fact.model_type


@EVERY
def test_what_was_read_of_another_size_is_marked(passport):
    """An index entry is of the size in the passport's title, or its source says of which model."""
    text = page.passport_page(passport)
    for name in passports.transferred(passport.eu_index.values()):
        assert f"(of {name})" in text
        assert f"{passport.name} " in page.passport_table([passport])
        assert "*" in page.passport_table([passport]).splitlines()[1]
    kept = read.FOLDER / f"{passport.name}.toml"
    entries = re.findall(r"\.yaml \(([^)]+)\)\"", kept.read_text())
    sizes = lambda text: set(re.findall(r"[\d.]+[BM]\b", text.upper()))
    for entry in entries:
        own = sizes(passport.title)
        assert not sizes(entry) or sizes(entry) <= own or "of = " in kept.read_text()


def test_sizes_that_were_moved_are_marked():
    moved = {"gemma-3": "Gemma-3-27B-PT", "gpt-oss": "gpt-oss-120b", "olmo-2": "OLMo-2-0325-32B",
             "smollm2": "SmolLM2-1.7B", "qwen2.5": "Qwen2.5-32B", "llama-3.1": "Llama-3.1-405B",
             "qwen3": "Qwen3-235B-A22B"}  # fmt: skip
    for name, of in moved.items():
        index = read.load_passport(name).eu_index
        assert all(one.of == of for one in index.values() if "osai-index" in one.source)


def test_a_base_that_was_published_is_not_read_in_its_siblings_entry():
    assert read.load_passport("qwen3").eu_index["weights_basemodel"].value == "open"


def test_the_end_of_a_hosted_model_is_a_fact_with_a_source():
    found = read.load_passport("hosted-api").retirement
    assert (found["announced"].value, found["shut_down"].value) == ("2026-10-14", "2027-01-14")
    assert "fine-tuning" in found["fine_tunes"].value
    text = page.passport_page(read.load_passport("hosted-api"))
    assert re.search(r"shut down +2027-01-14 +\[\d+\]", text)
    assert "Retirement" not in page.passport_page(read.load_passport("pythia"))
    assert read.load_passport("pythia").retirement == {}


@EVERY
def test_hope_never_lowers_the_class(passport):
    sure = passports.classify(passport).rank or 4  # none, then III, II, I
    best = passports.classify(passport, hopeful=True).rank or 4
    assert best <= sure


@EVERY
def test_the_licence_of_derived_models_has_been_read(passport):
    assert terms_of(passport.terms.value).rules["share_derived"] != "unknown"


@pytest.mark.parametrize(
    ("name", "rank"),  # the tool's own class of its record
    [("pythia", 1), ("olmo-1", 1), ("gpt-oss", 0), ("llama-3.2", 0), ("mistral-7b", 0)],
)
def test_classes_are_those_of_the_tool(name, rank):
    assert passports.classify(read.load_passport(name)).rank == rank


@pytest.mark.parametrize(
    ("name", "score"),
    [("olmo-2", 12), ("pythia", 10), ("smollm2", 8), ("gemma-3", 4.5), ("llama-3.1", 3.5)],
)
def test_index_scores_are_the_sums_of_its_entries(name, score):
    assert passports.index_score(read.load_passport(name)) == (score, 12)


def test_a_converted_file_is_said_to_be_one():
    """Whose it is, and what the header says; a passport without one needs no such table."""
    page_of = lambda name: page.passport_page(read.load_passport(name))
    assert "made by" in page_of("smollm2")
    assert "QuantFactory" in page_of("smollm2")
    assert "converted" not in page_of("smollm3")


def test_the_definition_needs_all_three_parts():
    base = read.load_passport("pythia")
    part = base.definition["code"]
    for value, result in (("yes", "passes"), ("unknown", "unknown"), ("no", "fails")):
        said = base.definition | {"code": part._replace(value=value)}
        assert passports.meets_definition(base._replace(definition=said)) == result


BROKEN = {
    'released = "yes", source = "hub"': ('released = "si", source = "hub"', "released = 'si'"),
    'datasheet = { value = "closed"': ('datasheet = { value = "shut"', "datasheet.value = 'shut'"),
    'datasheet = {': ('datashet = {', "index.datashet"),
    'title = "Gemma 3 1B"': ("title = 3", "title = 3; give a text"),
    'value = "GRADIENTS", source = "index"': ('value = "GRADIENTS"', "write { value"),
    'tier = { value = "GRADIENTS"': ('tier = { value = "ALL"', "give one of TEXT, LOGITS"),
    'source = "reading" }': ('source = "hearsay" }', "'hearsay'; [sources] has index, reading"),
    'date = "2026-06-12"': ('date = "June"', "write it as YYYY-MM-DD"),
    'checkpoint = "google/gemma-3-1b-pt"': ('checkpoint = "gemma"', "must be one of"),
    "[terms]": ("[projects]", "projects = {"),
    "[index]": ("[index.datasheets]", "index.datasheets"),
    'index = { what =': ("index = { who =", "name the author and the place"),
    'title = "Gemma 3 1B"\n': ('title = "G"\nproject = 3\n', "write a table [project]"),
    'released = "no", source = "index"': ('released = "no", source = ["index"]', "[sources] has"),
    "[access]": ("[access", "write it as TOML"),
    'model_card = { released = "yes", licence = "unknown"': (
        'model_card = { released = "yes", licence = 1', "model_card.licence = 1"),
}  # fmt: skip


@pytest.mark.parametrize("good", BROKEN)
def test_bad_files_name_file_field_value_and_remedy(good, tmp_path):
    text = (read.FOLDER / "gemma-3.toml").read_text()
    bad, told = BROKEN[good]
    assert good in text
    (tmp_path / "mine.toml").write_text(text.replace(good, bad, 1))
    with pytest.raises(ValueError, match=rf"mine\.toml.*{re.escape(told)}"):
        read.load_passport(str(tmp_path / "mine.toml"))


def test_a_passport_of_ones_own_reads_like_ours(tmp_path):
    text = (read.FOLDER / "gemma-3.toml").read_text()
    (tmp_path / "gemma-3.toml").write_text(text)
    own = read.load_passport(str(tmp_path / "gemma-3.toml"))
    assert own == read.load_passport("gemma-3")


def test_unknown_models_list_those_that_there_are():
    with pytest.raises(ValueError, match="no passport 'gpt-9'; there are apertus"):
        read.load_passport("gpt-9")


METHODS = {"words": {"target": Access.TEXT}, "probe": {"target": Access.LOGITS},
           "tune": {"target": Access.GRADIENTS}}  # fmt: skip


def test_a_lower_tier_loses_what_needs_more_and_nothing_else():
    gone = runnable.lost_methods(METHODS, Access.GRADIENTS, Access.LOGITS)
    assert [refusal.method for refusal in gone] == ["tune"]
    assert runnable.lost_methods(METHODS, Access.LOGITS, Access.LOGITS) == []
    assert runnable.lost_methods(METHODS, Access.TEXT, Access.GRADIENTS) == []


def test_every_refusal_has_its_reason():
    found = runnable.refusals(METHODS, {"target": Access.TEXT})
    assert [refusal.method for refusal in found] == ["probe", "tune"]
    assert "its log-probabilities would have to be open" in found[0].reason


def test_an_unknown_tier_grants_the_least():
    base = read.load_passport("pythia")
    unsure = base._replace(tier=base.tier._replace(value="unknown"))
    assert passports.granted_access(unsure) == Access.TEXT


def test_what_the_library_cannot_load_is_said_apart_from_access():
    text = page.methods_page([read.load_passport("gpt-oss")], METHODS)
    assert "model_type gpt_oss has no row" in text
    assert "3 methods  run:       3" in text
