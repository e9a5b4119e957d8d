"""One function states who visited when, and the run agrees with it."""

import optax
import pytest

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.simulate.speeds import lognormal
from fedjax_post.simulate.visits import Visit, visits
from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params

PLANS = {
    "uniform": fp.Plan(sampler=fp.uniform(3), seed=2),
    "poisson": fp.Plan(sampler=fp.poisson(3), seed=1),
    "full, in chunks": fp.Plan(chunk_size=2),
    "asynchronous": fp.Plan(buffer=fp.Buffer(4, 2), seed=3),
    "asynchronous, at unlike speeds": fp.Plan(
        buffer=fp.Buffer(4, 2), speeds=lognormal(1.0, seed=0), seed=3
    ),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_visits_told_are_those_of_the_run(plan):
    computed = set()

    def watched(algorithm, *watch):
        programs = fp.device(algorithm, *watch)

        def visit(model, replica, total, chunk, stored, run_key):
            ids = chunk.client_ids[chunk.client_ids >= 0].tolist()
            computed.update((int(chunk.round), client_id) for client_id in ids)
            return programs.visit(model, replica, total, chunk, stored, run_key)

        return programs._replace(visit=visit)

    algorithm = algorithms.fed_avg(toy_loss, optax.sgd(0.05))
    clients = toy_clients()
    cohorts = [
        record["cohort"]
        for _, record in fp.run(
            algorithm,
            toy_model(),
            clients,
            params=toy_params(),
            rounds=5,
            plan=plan._replace(executor=watched),
        )
    ]
    told = list(visits(plan, len(clients), range(5)))
    assert {(visit.began, visit.client_id) for visit in told} == computed
    assert [sum(visit.round == round for visit in told) for round in range(5)] == cohorts


def test_visits_of_later_rounds_do_not_depend_on_where_one_begins():
    for plan in PLANS.values():
        every = list(visits(plan, 6, range(6)))
        later = list(visits(plan, 6, range(4, 6)))
        assert later == [visit for visit in every if visit.round >= 4]


def test_a_client_that_was_slow_began_before_the_round_that_takes_its_update():
    plan = PLANS["asynchronous, at unlike speeds"]
    found = list(visits(plan, 6, range(8)))
    assert all(isinstance(visit, Visit) and visit.began <= visit.round for visit in found)
    assert any(visit.began < visit.round for visit in found)
