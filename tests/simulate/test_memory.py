"""The memory of a chunk, as the compiler reports it, and the chunk that fits a budget."""

import jax
import optax
import pytest

import fedjax_post as fp
from fedjax_post.algorithms import fed_avg, scaffold
from fedjax_post.simulate.memory import largest_chunk, visit_memory
from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params

GIVEN = toy_model(), toy_clients()
ALGORITHMS = {
    "fed_avg": fed_avg(toy_loss, optax.adam(0.05)),
    "scaffold": scaffold(toy_loss, 0.05, participation=0.5),
}


def used(algorithm, chunk_size):
    return visit_memory(algorithm, *GIVEN, params=toy_params(), chunk_size=chunk_size)


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_it_is_what_the_program_of_a_run_takes(algorithm):
    programs, seen = fp.device(algorithm), []

    def visit(*args):
        seen.append(programs.visit.lower(*args).compile().memory_analysis())
        return programs.visit(*args)

    watched = programs._replace(visit=visit)
    plan = fp.Plan(chunk_size=3, executor=lambda _: watched)
    next(fp.run(algorithm, *GIVEN, params=toy_params(), rounds=1, plan=plan))
    assert used(algorithm, 3).arguments == seen[0].argument_size_in_bytes
    assert used(algorithm, 3).temporaries == seen[0].temp_size_in_bytes


@pytest.mark.heavy
@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_the_largest_chunk_fits_and_one_more_does_not(algorithm):
    budget = int(used(algorithm, 7).total / 0.9) + 1
    given = {"params": toy_params(), "num_bytes": budget}
    assert largest_chunk(algorithm, *GIVEN, at_most=64, **given) in (6, 7)
    assert largest_chunk(algorithm, *GIVEN, at_most=5, **given) == 5


def test_what_cannot_fit_is_refused():
    with pytest.raises(ValueError, match="chunk_size=auto: one client takes about"):
        largest_chunk(ALGORITHMS["fed_avg"], *GIVEN, params=toy_params(), at_most=4, num_bytes=99)


def test_nothing_is_run():
    shapes = jax.eval_shape(lambda: (toy_model(), toy_params()))
    model, params = shapes
    found = visit_memory(ALGORITHMS["fed_avg"], model, toy_clients(), params=params, chunk_size=2)
    assert found == used(ALGORITHMS["fed_avg"], 2)
