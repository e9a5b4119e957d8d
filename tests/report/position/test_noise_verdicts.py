"""Verdicts follow the data: noise decides nothing, and either side of the question comes out."""

import pytest

from fedjax_post.report.position import noise
from fedjax_post.report.position.measured import MEASURES

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


def test_the_table_has_a_line_for_each_hypothesis_and_cell():
    lines = noise.table(draws=2).splitlines()
    assert len(lines) == 2 + 8 + 12
    assert lines[5].startswith("| H4 | by definition 100 % |")
