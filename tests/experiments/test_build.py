"""What flags that are left out stand for."""

import pytest

from experiments import flags
from experiments.build import make_sampler
from fedjax_post.simulate.cohort import draw


@pytest.mark.parametrize(("population", "expected"), [(10, 10), (128, 16)])
def test_without_a_cohort_size_sixteen_take_part_or_all(population, expected):
    options = flags.define()
    options(["train"])
    sampler = make_sampler(options, population)
    assert len(draw(sampler, population, seed=0, round=0)) == expected
