"""Composition: every wrapper works around every algorithm, or is refused with a reason."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_contract import ROWS

from fedjax_post import algorithms
from fedjax_post.adapters import robust
from fedjax_post.algorithms import ALGORITHMS
from fedjax_post.core import (
    Around,
    cast,
    chain,
    clip,
    engine,
    error_feedback,
    fixed_mean,
    krum,
    norm_bounded,
    quantize,
    sign,
    stack,
    top_k,
    trimmed_mean,
    with_aggregate,
    with_uplink,
)
from fedjax_post.privacy import private, secure_sum
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.simulate.visit import contexts_of, fresh_states, visit
from fedjax_post.testing import toy, toy_lora, toy_loss

CASES = {name: make() for name, make in ROWS.items()}
LANES, SGD = 4, optax.sgd(0.05)
WRAPPERS = {
    "ditto": lambda case: algorithms.ditto(case.algorithm, case.world.toy_loss, client_tx=SGD),
    "ef21": lambda case: algorithms.ef21(case.algorithm, top_k(0.5), population=LANES),
    "cast": lambda case: with_uplink(case.algorithm, cast("bfloat16")),
    "fed back": lambda case: with_uplink(case.algorithm, error_feedback(top_k(0.5))),
    "quantize": lambda case: with_uplink(case.algorithm, quantize(8)),
    "clip": lambda case: with_uplink(case.algorithm, clip(1.0)),
    "krum": lambda case: with_aggregate(case.algorithm, krum(1)),
    "bounded": lambda case: with_aggregate(case.algorithm, norm_bounded(1.0)),
    "fixed": lambda case: with_aggregate(case.algorithm, fixed_mean(LANES)),
    "trimmed": lambda case: with_aggregate(case.algorithm, trimmed_mean(0.25)),
    "private": lambda case: private(
        case.algorithm, clip_norm=1.0, noise_multiplier=0.1, cohort_size=LANES, seed=0
    ),
    "secure": lambda case: secure_sum(
        with_uplink(case.algorithm, clip(1.0)),
        threshold=2,
        max_clients=LANES,
        max_weight=64.0,
        seed=0,
    ),
    "products, krum": lambda case: robust.on_products(case.algorithm, robust.krum(1)),
    "products, median": lambda case: robust.on_products(case.algorithm, robust.coordinate_median()),
}
FOLDED = {"flora", "florist", "flex_lora"}  # their servers take products of factors
NO_MEAN = FOLDED | {"fed_ex_lora", "lora_fair", "fwd_llm"}  # more than one mean of values
# what one round sends is no beginning of what the next one does
NO_MEMORY = {"de_com_fl", "mime", "fed_svd", "ro_lora", "het_lora", "fed_ex_lora", "lora_fair"}
NO_MEMORY |= FOLDED
# searches of a prompt: what is sent is a place, or tokens, or nothing
NO_LINK = {"fed_dtpt", "host_tuning", "in_context", "manual_prompt", "synthetic_tuning"}
NO_MEMORY |= NO_LINK | {"fed_bpt", "fed_avg_bbt", "fed_prompt_search"}
NO_MEAN |= {"fed_bpt", "fed_dtpt", "host_tuning", "synthetic_tuning"}
FAIR = {"agnostic_fed_avg", "q_fed_avg"}  # the clients that a robust rule leaves out count most
NO_RULE = NO_MEAN | {"fed_k_seed", "fed_k_seed_pro", "in_context", "manual_prompt"} | FAIR
PLACES = {"het_lora", "fed_ex_lora", "lora_fair", "flex_lora", "fed_avg_bbt", "fed_bpt"}
NO_BOUND = (
    NO_LINK | PLACES | {"agnostic_fed_avg", "fed_nova"}
)  # what is sent is no change, or not only
TOKENS = NO_LINK | {"bdpl", "fed_prompt_search"}  # what is deployed has no gradient for Ditto
REFUSED = {
    "ef21": NO_MEMORY | NO_MEAN | {"agnostic_fed_avg"},
    "fed back": NO_MEMORY,
    "cast": NO_LINK,
    "quantize": NO_LINK,
    "krum": NO_RULE,
    "secure": NO_BOUND | NO_MEAN,
    "private": NO_MEAN | NO_LINK | {"het_lora", "fed_avg_bbt", "fed_nova", "fed_k_seed_pro"} | FAIR,
    "clip": NO_BOUND,
    "bounded": NO_RULE | NO_BOUND,
    "fixed": NO_RULE | NO_BOUND,
    "trimmed": NO_RULE,
    "products, krum": set(ALGORITHMS) - FOLDED,
    "products, median": set(ALGORITHMS) - FOLDED,
}
REASON = r"cannot be used with this algorithm: \w+|needs a server that takes the products"


def federation(algorithm, world):
    """A round of four clients as a function, and where it starts."""
    model = world.toy_model()
    visits = [world.toy_clients().visit(k, data_rng(0, 0, k)) for k in range(LANES)]
    data = jax.tree.map(lambda *x: jnp.stack(x), *visits)
    batch = jax.tree.map(jnp.asarray, world.toy_arrays()[0])
    key, ids = jax.random.key(0), jnp.arange(LANES)

    def start(params):
        state = engine.init(algorithm, params)
        replica = engine.broadcast(algorithm, state)
        return state, fresh_states(algorithm, model, replica, data, key, ids)

    def round(number, both):
        state, states = both
        replica = engine.broadcast(algorithm, state)
        like = engine.value_like(algorithm, model, replica, visits[0])
        total = engine.init_total(algorithm, like, LANES)
        contexts = contexts_of(key, number, ids)
        total, states, _ = visit(algorithm, model, replica, total, states, data, contexts)
        state = engine.serve(algorithm, engine.finish(algorithm, total), state)
        return state._replace(replica=replica), states

    def loss(both):
        state, states = both
        own = jax.tree.map(lambda x: x[0], states)
        own_model, params = engine.deployed(algorithm, model, state, own)
        return world.toy_loss(params, own_model, batch, key)[0]

    return SimpleNamespace(start=start, round=round, loss=loss, params=world.toy_params())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_is_made_around_an_algorithm_or_says_why_not(wrapper):
    for name, case in CASES.items():
        if name not in REFUSED.get(wrapper, ()):
            WRAPPERS[wrapper](case)
            continue
        with pytest.raises(ValueError, match=REASON):
            WRAPPERS[wrapper](case)


@pytest.mark.parametrize(
    ("name", "wrapper", "reason"),
    [
        ("agnostic_fed_avg", "private", "the clients' weights are all that it adds to FedAvg"),
        ("agnostic_fed_avg", "krum", "the clients with the largest losses"),
        ("agnostic_fed_avg", "clip", "a bound would shrink a client's loss with its change"),
        ("q_fed_avg", "private", "its server divides by a sum over clients"),
        ("q_fed_avg", "bounded", "clients with a larger loss send larger values"),
        ("fed_nova", "private", "its server multiplies two means"),
        ("fed_k_seed_pro", "private", "it draws seeds by quotients of sums"),
        ("het_lora", "bounded", "clients send their factors, not a change of them"),
    ],
)
def test_a_wrapper_that_would_void_a_method_is_refused_with_the_reason(name, wrapper, reason):
    with pytest.raises(ValueError, match=f"cannot be used with this algorithm: {reason}"):
        WRAPPERS[wrapper](CASES[name])


def test_a_refusal_that_is_misspelt_refuses_nothing_and_is_an_error():
    mine = FED_AVG._replace(refuses={"memroy": "it has none"})
    with pytest.raises(ValueError, match="refuses={'memroy': ...} has no effect"):
        with_uplink(mine, cast("bfloat16"))
    assert all(isinstance(key, Around) for case in CASES.values() for key in case.algorithm.refuses)


def tower(name):
    """Everything that an algorithm takes, one around the other; and EF21 where it takes that."""
    case, taken = CASES[name], [w for w in WRAPPERS if name not in REFUSED.get(w, ())]
    ditto = case
    if name not in TOKENS:
        ditto = dataclasses.replace(case, algorithm=WRAPPERS["ditto"](case))
    link = chain(top_k(0.5), cast("bfloat16")) if "fed back" in taken else quantize(8)
    linked = with_uplink(ditto.algorithm, error_feedback(link) if "fed back" in taken else link)
    rules = [w for w in ("krum", "products, median") if w in taken]
    linked = dataclasses.replace(case, algorithm=linked)
    yield WRAPPERS[rules[0]](linked) if rules else linked.algorithm
    for last in {"ef21", "private", "secure"} & set(taken):
        yield WRAPPERS[last](ditto)


# FedAvg with another optimizer or another loss: what goes over FedAvg goes over these
ALIKE = {"fed_avg_m", "fed_prox", "fed_mezo", "fed_fwd", "ditto_fed_avg"}
ALIKE |= {f"fed_{kind}{form}" for kind in ("adam", "yogi", "adagrad") for form in ("", "_optax")}


ROLES = {"fed_bi_ot", "fed_pt", "offsite_tuning"}  # several models, many programs
TRACED = [
    pytest.param(name, marks=[pytest.mark.heavy] if name in ROLES else [])
    for name in sorted(set(CASES) - ALIKE - NO_LINK)
]


@pytest.mark.parametrize("name", TRACED)
def test_all_wrappers_go_over_an_algorithm(name):
    """Traced, not run: a round ends with what it began with, so that a second one can follow."""
    layout = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
    for algorithm in tower(name):
        play = federation(algorithm, CASES[name].world)
        before = jax.eval_shape(play.start, play.params)
        after = jax.eval_shape(play.round, jnp.int32(0), before)
        assert layout(after) == layout(before)
        assert jax.eval_shape(play.loss, after).shape == ()


def check_two_rounds(wrapper, name):
    """They end finite and elsewhere, and no worse than a few random directions may lead."""
    case = CASES[name]
    play = federation(WRAPPERS[wrapper](case), case.world)
    first = jax.jit(play.start)(play.params)
    round = jax.jit(play.round)
    last = round(jnp.int32(1), round(jnp.int32(0), first))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(last[0].shared))
    before, after = float(play.loss(first)), float(play.loss(last))
    # FwdLLM's server waits while its answers differ too much; BDPL's likeliest tokens may stay
    assert after != before or name in ("fwd_llm", "bdpl")
    assert after < 1.5 * before


@pytest.mark.parametrize(
    ("wrapper", "name"),
    [
        ("ef21", "fed_sa_lora"),
        ("fed back", "fed_nova"),
        ("krum", "ro_lora"),
        ("private", "ffa_lora"),
        ("products, median", "florist"),
    ],
)
def test_two_rounds(wrapper, name):
    check_two_rounds(wrapper, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrapper", "name"),
    [
        (w, name)
        for w in WRAPPERS
        for name in CASES
        if name not in REFUSED.get(w, ()) and (w, name in TOKENS) != ("ditto", True)
    ],
)
def test_two_rounds_of_everything(wrapper, name):
    check_two_rounds(wrapper, name)


FED_AVG = algorithms.fed_avg(toy_loss, SGD)
EF21 = algorithms.ef21(FED_AVG, sign(), population=6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_uplink(EF21, cast("bfloat16")), "EF21 has an uplink of its own"),
        (lambda: with_aggregate(EF21, krum(1)), "adds up the changes of every client's value"),
        (lambda: algorithms.ef21(EF21, sign(), population=6), "EF21 has an uplink of its own"),
        (
            lambda: algorithms.ef21(FED_AVG, error_feedback(sign()), population=6),
            "give it the compressor inside error_feedback",
        ),
        (lambda: with_aggregate(FED_AVG, stack()), "does not return one value"),
    ],
)
def test_wrappers_refuse_each_other_where_they_would_undo_each_other(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_local_factor_goes_around_fed_avg_only():
    """At the start of a run: whose parameters they are is not known before."""
    make = {name: getattr(algorithms, name) for name in ("flora", "fed_avg")}
    for name, factory in make.items():
        part = algorithms.local_part(
            lambda loss, f=factory: f(loss, SGD),
            toy_lora.toy_loss,
            client_tx=SGD,
            is_local=lambda path: path.endswith("/b"),
        )
        if name == "fed_avg":
            engine.init(part, toy_lora.toy_params())
            continue
        with pytest.raises(ValueError, match="both factors of every adapted layer"):
            engine.init(part, toy_lora.toy_params())


def test_a_value_unlike_what_is_shared_must_be_declared():
    """As in an algorithm of your own that uploads a part."""
    change = lambda value: {"change": value["change"]}
    client = FED_AVG.client._replace(
        update=lambda *args: (
            (visit := FED_AVG.client.update(*args))[0]._replace(value=change(visit[0].value)),
            *visit[1:],
        )
    )
    server = FED_AVG.server._replace(
        init=lambda shared: FED_AVG.server.init(change(shared)),
        update=lambda value, state, shared: (
            {**shared, "change": shared["change"] + value["change"]},
            state,
        ),
    )
    mine = FED_AVG._replace(client=client, server=server)
    for algorithm, accepted in ((mine, False), (mine._replace(value_like=change), True)):
        play = federation(algorithms.ef21(algorithm, sign(), population=6), toy)
        run = lambda play=play: jax.eval_shape(
            lambda p: play.round(jnp.int32(0), play.start(p)), play.params
        )
        if accepted:
            run()
            continue
        with pytest.raises(ValueError, match="declare their shape in value_like"):
            run()
