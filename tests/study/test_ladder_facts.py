"""The facts beside the runs of a ladder: bases, methods by tier, and whether it can be prompted."""

import pytest

from fedjax_post.core.access import LEVELS
from fedjax_post.integrity import seal_file
from fedjax_post.study import ladder_facts
from fedjax_post.study.factories import declared_access


@pytest.fixture
def scored(tmp_path):
    """A folder in which runs have final scores, given as method -> seed -> score."""

    def write(scores):
        for name, by_seed in scores.items():
            for seed, score in by_seed.items():
                folder = tmp_path / name / f"seed-{seed}"
                folder.mkdir(parents=True)
                (folder / "summary.json").write_text(seal_file({"final": {"exact_match": score}}))
        cells = {"manual": "manual_prompt", "soft": "soft_prompt", "full": "lora"}
        return ladder_facts.gate_of(tmp_path, 0.5, measure="exact_match", **cells)

    return write


def test_a_base_that_answers_nothing_has_a_gate_that_was_measured(scored):
    gate = scored({"manual_prompt": {0: 0.0}, "soft_prompt": {0: 0.25}, "lora": {0: 0.5}})
    assert (gate["manual_prompt"], gate["soft_prompt_share"]) == (0.0, 0.5)


def test_the_gate_is_of_the_seeds_that_its_cells_share(scored):
    manual, lora = {0: 0.2, 1: 0.4, 2: 0.9}, {0: 0.6, 1: 0.8, 2: 0.1}
    gate = scored({"manual_prompt": manual, "soft_prompt": {0: 0.4, 1: 0.6}, "lora": lora})
    assert gate["seeds"] == [0, 1]
    assert gate["manual_prompt"] == pytest.approx(0.3)
    assert gate["gain"] == pytest.approx(0.4)
    assert gate["soft_prompt_share"] == pytest.approx(0.5)


def test_a_gate_without_a_shared_seed_has_the_manual_prompt_alone(scored):
    gate = scored({"manual_prompt": {0: 0.2, 1: 0.4}, "soft_prompt": {2: 0.4}, "lora": {0: 0.5}})
    assert gate["manual_prompt"] == pytest.approx(0.3)
    assert gate["soft_prompt_share"] is None


def test_bases_of_one_producer_share_data():
    found = ladder_facts.base_entries("builtin-instruct", ["builtin", "Qwen/Qwen3-0.6B", "mine"])
    shared = {base: entry["shares_data"] for base, entry in found.items()}
    assert shared == {"builtin": True, "Qwen/Qwen3-0.6B": False, "mine": None}


def test_a_method_below_the_weights_runs_at_more_tiers():
    told = ladder_facts.matrix_entry()
    counts = [told[tier.name] for tier in LEVELS]
    assert counts == sorted(counts)
    assert counts[-1] == told["methods"] == len(declared_access())
    assert 0 < counts[0] < counts[-1]
