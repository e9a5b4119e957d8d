"""Arguments of a factory: annotated ones are supplied by the program, the others are flags."""

import dataclasses
import functools
import inspect

import numpy as np
import optax
import pytest

from fedjax_post.algorithms import ALGORITHMS, fed_avg
from fedjax_post.algorithms.references import central
from fedjax_post.core import world
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.experiments.flags.parse import _define
from fedjax_post.study import Method, Spec, factories, methods


def named_otherwise(tx: world.ClientTx, loss: world.LossFn, *, share: float = 0.3):
    del share
    return fed_avg(loss, tx)


def method_of(factory, **fields):
    """The method of an experiment, its arguments filled in."""
    spec = Spec(method=Method(factory, **fields))
    factories.check_taken(spec, factory)
    params = factories.fill_params(spec.method, factory)
    return dataclasses.replace(spec.method, params=params)


def test_arguments_are_given_by_annotation_whatever_their_names():
    method = method_of(named_otherwise, client_lr=0.5, params={"share": 0.1})
    seen = {}

    @functools.wraps(named_otherwise)
    def spy(**given):
        seen.update(given)
        return named_otherwise(**given)

    offered = {"LossFn": len, "ClientTx": optax.sgd(1.0), "ServerLr": 3.0}
    factories.build(spy, method, offered)
    assert seen == {"loss": len, "tx": offered["ClientTx"], "share": 0.1}


def test_flags_that_feed_an_annotation_belong_to_those_that_have_it():
    assert factories.takes(named_otherwise, "client_optimizer")
    assert factories.takes(named_otherwise, "share")
    assert not factories.takes(named_otherwise, "server_lr")
    with pytest.raises(ValueError, match="server_lr=1.0: method=named_otherwise does not take it"):
        method_of(named_otherwise, server_lr=1.0)


@pytest.mark.parametrize("name", ["seed", "lora_rank", "num_rounds"])
def test_an_argument_with_the_name_of_another_flag_is_refused(name):
    """It would be given what it did not ask for, without a word."""

    def own(loss_fn, **others):
        raise AssertionError

    parameters = [
        inspect.Parameter("loss_fn", inspect.Parameter.KEYWORD_ONLY, annotation=world.LossFn),
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=int, default=7),
    ]
    own.__signature__ = inspect.Signature(parameters)
    with pytest.raises(ValueError, match=f"{name} would become the flag --{name}.*own_"):
        _define({**ALGORITHMS, "own": own}, ())


def test_a_bare_name_is_given_nothing():
    with pytest.raises(ValueError, match="its argument loss_fn has no value.*LossFn"):
        method_of(lambda loss_fn, *, keep=0.3: fed_avg(loss_fn, optax.sgd(0.1)))


def test_annotations_may_be_text_and_optional():
    def own(loss_fn: "world.LossFn", *, tx: "world.ServerTx | None" = None):
        del loss_fn, tx

    marks = {name: mark.name for name, mark in world.needs(own).items()}
    assert marks == {"loss_fn": "LossFn", "tx": "ServerTx"}


def test_a_step_size_of_the_server_that_is_missing_is_asked_for():
    def own(loss_fn: world.LossFn, *, eta: world.ServerLr):
        del eta
        return fed_avg(loss_fn, optax.sgd(0.1))

    with pytest.raises(ValueError, match="method=own needs `server_lr`"):
        methods._usual_server_lr(Method(own), own)


def test_a_factory_that_returns_nothing_is_refused():
    def own(loss_fn: world.LossFn):
        del loss_fn

    with pytest.raises(TypeError, match="algorithm must be an Algorithm, got None; return one"):
        factories.build(own, method_of(own), {"LossFn": len})


def test_ditto_goes_around_a_factory_of_other_names():
    factory = factories._ditto_over(named_otherwise, mu=0.5)
    needed = {name: mark.name for name, mark in world.needs(factory).items()}
    assert needed == {"loss_fn": "LossFn", "client_tx": "ClientTx"}
    assert list(factories.own_parameters(factory)) == ["share"]
    made = factory(loss_fn=len, client_tx=optax.sgd(0.1), share=0.2)
    assert isinstance(made, Algorithm)


@pytest.mark.parametrize("factory", [*ALGORITHMS.values(), central])
def test_every_argument_is_given_or_a_flag(factory):
    """But for those that keep their defaults on the command line, since no flag can hold them."""
    kinds = (bool, int, float, str)
    kept = {
        name
        for name, p in factories.own_parameters(factory).items()
        if p.annotation not in kinds and type(p.default) not in kinds
    }
    assert kept <= {"aligner"}


def test_algorithms_that_heed_ranks_say_so_themselves():
    assert {"flora", "het_lora", "florist"} <= set(factories.ranked_names())
    assert not {"fed_avg", "scaffold", "ditto_fed_avg"} & set(factories.ranked_names())
    assert np.all([factories.find_factory(name) for name in factories.ranked_names()])


def test_an_algorithm_may_need_anything_and_is_still_read_before_a_run():
    """Whose access is read, before there is a model, is built with stand-ins for all it needs."""

    def taking(mark):
        def factory(loss_fn: world.LossFn, tx: world.ClientTx, *, other: mark):
            del other
            return fed_avg(loss_fn, tx)

        return factory

    for mark in world.ANNOTATIONS:
        assert factories.access_of(taking(mark)) == factories.access_of("fed_avg")


def test_a_mistake_in_ones_own_factory_is_shown_by_the_run_itself():
    def factory(loss_fn: world.LossFn):
        raise KeyError(loss_fn)

    assert not factories.is_tuned_by_host(factory)
    with pytest.raises(ValueError, match="did you mean fed_avg"):
        factories.is_tuned_by_host("fed_avgg")
