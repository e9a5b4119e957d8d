"""Verdicts follow the data: noise decides nothing, and either side of the question comes out."""

import numpy as np
import pytest

from fedjax_post.report.position import noise
from fedjax_post.report.position.measured import MEASURES
from fedjax_post.report.position.verdicts import verdicts

WANTED = {"the paper's side": "supported", "its opposite": "not supported"}
CELLS = {
    *("weights, privacy", "weights, autonomy", "weights, heterogeneity"),
    "licence, heterogeneity",
}


@pytest.fixture(scope="module")
def read():
    draws = {"noise": 200} | dict.fromkeys(WANTED, 20)
    return {world: noise.tally(world, draws=number) for world, number in draws.items()}


@pytest.mark.parametrize("key", [*MEASURES, *sorted(CELLS)])
def test_noise_leaves_what_is_measured_undecided(read, key):
    assert read["noise"][key]["undecided"] >= 0.9 * 200


@pytest.mark.parametrize("world", WANTED)
@pytest.mark.parametrize("key", [*MEASURES, *sorted(CELLS)])
def test_a_side_that_the_data_take_comes_out(read, world, key):
    assert read[world][key][WANTED[world]] >= 0.9 * 20


def test_what_reads_the_same_whatever_the_data_are_is_said_to(read):
    for name in read["noise"]:
        seen = set().union(*(read[world][name] for world in read))
        if name in MEASURES or name in CELLS:
            assert {"undecided", *WANTED.values()} <= seen
        else:
            assert seen in ({"by definition"}, {"not measured"})


def test_with_three_seeds_noise_decides_nothing_either():
    found = noise.tally("noise", draws=40, num_seeds=3)
    assert all(found[key]["undecided"] >= 36 for key in MEASURES)


@pytest.mark.parametrize("spread", [0.005, 0.02])
def test_what_is_not_there_is_found_in_at_most_five_percent(spread):
    """One-sided tests at the edges of both verdicts, where their errors are largest."""
    limit = 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5
    no_lead = noise.found_rates(0.0, spread, draws=200)
    at_margin = noise.found_rates(0.02, spread, draws=200)
    apart = noise.found_rates(0.05, spread, draws=200)
    for key in MEASURES:
        if key == "H6":  # five points are its limit, on either side
            assert max(apart[key]) <= limit
        else:
            assert no_lead[key][0] <= limit
            assert at_margin[key][1] <= limit


def test_what_is_there_is_found():
    none, lead = (noise.found_rates(d, 0.005, draws=40) for d in (0.0, 0.05))
    for key in MEASURES:
        assert none[key][1] >= 0.8
        assert key == "H6" or lead[key][0] >= 0.8
    assert noise.found_rates(0.1, 0.005, draws=40)["H6"][0] >= 0.8


def test_ladders_in_which_nothing_was_learned_or_hurt_decide_nothing():
    rng = np.random.default_rng(0)
    drawn = noise.known(0.0, 0.005, rng)
    flat = lambda cell: cell._replace(
        runs={s: run._replace(right=0.4 + 0.005 * rng.normal()) for s, run in cell.runs.items()}
    )
    facts = {**drawn.facts, "drills": [
        row | {"lost": [0.002 * rng.normal() for _ in row["lost"]]} for row in drawn.facts["drills"]
    ]}  # fmt: skip
    cells, bases = [flat(cell) for cell in drawn.cells], {"second": [flat(drawn.cells[0])]}
    judged = verdicts(drawn._replace(cells=cells, facts=facts, bases=bases))
    read = {one.claim.key: one.finding.verdict for one in judged}
    assert {read[key] for key in ("H1", "H2", "H3", "H6", "H8", "H9")} == {"undecided"}


def test_the_table_has_a_line_for_each_hypothesis_and_cell():
    lines = noise.table(draws=2).splitlines()
    assert len(lines) == 2 + 9 + 12
    assert lines[5].startswith("| H4 | by definition 100 % |")
