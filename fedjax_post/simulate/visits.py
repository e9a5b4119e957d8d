"""The visits of clients by round: a function of the plan alone, for runs and for their ledgers."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from fedjax_post.simulate.cohort import draw
from fedjax_post.simulate.plan import Plan
from fedjax_post.simulate.step import Step


class Visit(NamedTuple):
    """One client's visit; its data and its key are those of the round in which it began."""

    round: int  # of the server step that uses its update
    began: int
    client_id: int


def steps(plan: Plan, population: int, rounds: range) -> Iterator[Step]:
    """Returns an iterator over the server's steps of some rounds.

    Args:
      plan: of the run; only its sampler and seed matter, or its buffer, speeds and seed.
      population: number of clients.
      rounds: consecutive.
    """
    if plan.buffer is None:
        for round in rounds:
            cohort = draw(plan.sampler, population, seed=plan.seed, round=round)
            yield Step(round, ((round, cohort),))
        return
    from fedjax_post.simulate import asynchronous
    from fedjax_post.simulate.speeds import equal

    every = asynchronous.steps(
        plan.buffer, plan.speeds or equal(), population=population, seed=plan.seed
    )
    yield from islice(every, rounds.start, rounds.stop)


def visits(plan: Plan, population: int, rounds: range) -> Iterator[Visit]:
    """Returns an iterator over the visits whose updates the server uses in some rounds.

    Args:
      plan: as for `steps`.
      population: number of clients.
      rounds: consecutive.
    """
    for step in steps(plan, population, rounds):
        for began, client_ids in step.began:
            for client_id in client_ids.tolist():
                yield Visit(step.round, began, client_id)
