"""The contract suite: every check on every algorithm."""

import inspect
import re
from functools import partial

import jax
import numpy as np
import optax
import pytest

from fedjax_post import algorithms
from fedjax_post.algorithms import ALGORITHMS
from fedjax_post.algorithms.references import central, local_only
from fedjax_post.algorithms.skeleton import skeleton
from fedjax_post.core import (
    Access,
    cast,
    chain,
    clip,
    engine,
    error_feedback,
    quantize,
    random_k,
    sign,
    top_k,
    trimmed_mean,
)
from fedjax_post.core.access import union
from fedjax_post.core.algorithm import no_context
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.testing import CHECKS, Case, toy_lora, toy_loss, toy_prompt, toy_roles, toy_service
from fedjax_post.testing.contract import EXPENSIVE

SGD = optax.sgd(0.05)
ROWS = {
    "fed_avg": lambda: Case(algorithms.fed_avg(toy_loss, SGD)),
    "fed_avg_m": lambda: Case(algorithms.fed_avg_m(toy_loss, SGD, momentum=0.5)),
    "fed_adam": lambda: Case(algorithms.fed_adam(toy_loss, SGD, server_lr=0.05)),
    "fed_yogi": lambda: Case(algorithms.fed_yogi(toy_loss, SGD, server_lr=0.05)),
    "fed_adagrad": lambda: Case(algorithms.fed_adagrad(toy_loss, SGD, server_lr=0.2)),
    "fed_adam_optax": lambda: Case(algorithms.fed_adam_optax(toy_loss, SGD, server_lr=0.05)),
    "fed_yogi_optax": lambda: Case(algorithms.fed_yogi_optax(toy_loss, SGD, server_lr=0.05)),
    "fed_adagrad_optax": lambda: Case(algorithms.fed_adagrad_optax(toy_loss, SGD, server_lr=0.2)),
    "fed_prox": lambda: Case(algorithms.fed_prox(toy_loss, SGD, mu=0.1)),
    "scaffold": lambda: Case(algorithms.scaffold(toy_loss, 0.05, participation=1.0)),
    "scaffold_option_1": lambda: Case(
        algorithms.scaffold_option_1(toy_loss, 0.05, participation=1.0)
    ),
    "fed_dyn": lambda: Case(algorithms.fed_dyn(toy_loss, SGD, alpha=0.5, participation=1.0)),
    "fed_nova": lambda: Case(algorithms.fed_nova(toy_loss, optax.sgd(0.05, 0.5))),
    "mime_lite": lambda: Case(algorithms.mime_lite(toy_loss, optax.sgd(0.02, 0.5))),
    "mime": lambda: Case(algorithms.mime(toy_loss, optax.sgd(0.02, 0.5))),
    "di_loco": lambda: Case(algorithms.di_loco(toy_loss, optax.adamw(0.02), momentum=0.5)),
    "ditto_fed_avg": lambda: Case(algorithms.ditto_fed_avg(toy_loss, SGD)),
    "fed_rep": lambda: Case(
        algorithms.fed_rep(toy_loss, SGD, local_pattern="^bias$"), gap_closed=0.5
    ),
    "apfl": lambda: Case(algorithms.apfl(toy_loss, SGD)),
    "q_fed_avg": lambda: Case(algorithms.q_fed_avg(toy_loss, 0.05, q=0.5)),
    "agnostic_fed_avg": lambda: Case(algorithms.agnostic_fed_avg(toy_loss, SGD)),
    "fed_mezo": lambda: Case(
        algorithms.fed_mezo(toy_loss, optax.sgd(0.01), num_directions=4), gap_closed=0.5
    ),
    "fed_fwd": lambda: Case(
        algorithms.fed_fwd(toy_loss, optax.sgd(0.01), num_directions=4), gap_closed=0.5
    ),
    "fwd_llm": lambda: Case(
        algorithms.fwd_llm(toy_loss, server_lr=0.05, max_variance=0.3), gap_closed=0.5
    ),
    "fed_k_seed": lambda: Case(algorithms.fed_k_seed(toy_loss, 0.01, num_seeds=64), gap_closed=0.5),
    "fed_k_seed_pro": lambda: Case(
        algorithms.fed_k_seed_pro(toy_loss, 0.01, num_seeds=64), gap_closed=0.5
    ),
    "de_com_fl": lambda: Case(algorithms.de_com_fl(toy_loss, 0.01, num_slopes=3), gap_closed=0.5),
    "fed_bpt": lambda: Case(
        algorithms.fed_bpt(toy_loss, search_dim=15, num_points=8, search_sigma=0.3), gap_closed=0.5
    ),
    "fed_avg_bbt": lambda: Case(
        algorithms.fed_avg_bbt(toy_loss, search_dim=15, num_points=8, search_sigma=0.3),
        gap_closed=0.5,
    ),
    "fed_bbpt": lambda: Case(
        algorithms.fed_bbpt(toy_loss, generator_rank=3, spsa_step=0.02), gap_closed=0.5
    ),
}
LORA_A = np.asarray(toy_lora.toy_params()["lora"]["layers"]["mix"]["a"])


def lora(factory, learning_rate=0.05, **expected):
    """A case over adapters."""
    algorithm = factory(toy_lora.toy_loss, optax.sgd(learning_rate))
    return Case(algorithm, world=toy_lora, **expected)


ROWS |= {
    "ffa_lora": lambda: lora(algorithms.ffa_lora, best_loss=toy_lora.toy_best_loss(LORA_A)),
    "ro_lora": lambda: lora(algorithms.ro_lora),
    "fed_sa_lora": lambda: lora(algorithms.fed_sa_lora, personal=True),
    "fed_dpa": lambda: lora(algorithms.fed_dpa, personal=True),
    "fed_dpa_f": lambda: lora(partial(algorithms.fed_dpa_f, tune_after=20), personal=True),
    "flora": lambda: lora(algorithms.flora),
    "fed_ex_lora": lambda: lora(algorithms.fed_ex_lora),
    "flex_lora": lambda: lora(algorithms.flex_lora, 0.02),
    "het_lora": lambda: lora(algorithms.het_lora),
    "fed_svd": lambda: lora(algorithms.fed_svd, best_loss=toy_lora.toy_best_loss(LORA_A)),
    "lora_fair": lambda: lora(algorithms.lora_fair),
    "florist": lambda: lora(algorithms.florist),
}
ENDS = {"world": toy_roles.EMULATED, "gap_closed": 0.3}
ROWS |= {
    "offsite_tuning": lambda: Case(algorithms.offsite_tuning(toy_roles.toy_loss, SGD), **ENDS),
    "fed_bi_ot": lambda: Case(algorithms.fed_bi_ot(toy_roles.toy_loss, SGD), **ENDS),
    "fed_pt": lambda: Case(
        algorithms.fed_pt(toy_roles.toy_loss, SGD), world=toy_roles.STEERED, gap_closed=0.3
    ),
}


def prompt(factory, **expected):
    """A case over prompts of tokens."""
    return Case(factory(toy_prompt.toy_loss), world=toy_prompt, **{"gap_closed": 0.75} | expected)


def service(factory, **expected):
    """A case of a model whose host trains it."""
    given = {"dropped": FRAME["dropped"], "num_clients": toy_service.NUM_CLIENTS}
    return Case(factory(toy_service.toy_loss, **given), world=toy_service, **expected)


WORDS = np.arange(toy_prompt.VOCAB)
FRAME = {"separator": toy_prompt.BREAK, "dropped": np.array([toy_prompt.BOS, toy_prompt.EOS])}
ROWS |= {
    "bdpl": lambda: prompt(
        partial(algorithms.bdpl, client_tx=optax.adam(0.1), candidates=WORDS, num_samples=8)
    ),
    "fed_dtpt": lambda: prompt(partial(algorithms.fed_dtpt, candidates=WORDS, num_edits=8)),
    "fed_prompt_search": lambda: prompt(
        partial(algorithms.fed_prompt_search, candidates=WORDS, num_edits=8)
    ),
    "in_context": lambda: prompt(
        partial(algorithms.in_context, **FRAME, num_shots=2, num_sets=3, shots_length=9),
        gap_closed=0.3,
        personal=True,
    ),
    "host_tuning": lambda: service(algorithms.host_tuning, gap_closed=1.0),
    "synthetic_tuning": lambda: service(algorithms.synthetic_tuning, gap_closed=0.5),
    "manual_prompt": lambda: prompt(algorithms.manual_prompt, gap_closed=0.0),
}
CASES = {name: make() for name, make in ROWS.items()}
SPARSE = error_feedback(chain(top_k(0.5), cast("bfloat16")))
FEW_BITS = error_feedback(chain(random_k(0.5, scaled=False), quantize(4)))
CASES |= {
    "skeleton": Case(skeleton(toy_loss, SGD)),  # not registered
    "fed_avg, adam clients": Case(algorithms.fed_avg(toy_loss, optax.adam(0.02))),
    "fed_avg, clip": Case(algorithms.fed_avg(toy_loss, SGD)._replace(uplink=clip(1.0))),
    "fed_avg, few bits": Case(algorithms.fed_avg(toy_loss, SGD)._replace(uplink=FEW_BITS)),
    "scaffold, trimmed": Case(
        algorithms.scaffold(toy_loss, 0.05, participation=1.0)._replace(aggregate=trimmed_mean(0.2))
    ),
    "fed_avg, ef21": Case(
        algorithms.ef21(algorithms.fed_avg(toy_loss, SGD), sign(), population=6), gap_closed=0.8
    ),
    "fed_avg, sparse": Case(algorithms.fed_avg(toy_loss, SGD)._replace(uplink=SPARSE)),
    "scaffold, sparse": Case(
        algorithms.scaffold(toy_loss, 0.05, participation=1.0)._replace(uplink=SPARSE),
        gap_closed=0.8,
    ),
}


def test_every_algorithm_has_a_row():
    assert set(ROWS) == set(ALGORITHMS)


# One case of each kind: together they have every trait that a dear check could trip over.
KINDS = (
    "fed_avg",  # nothing kept anywhere
    "fed_adam",  # a server with moments
    "scaffold",  # clients that keep a tree
    "fed_sa_lora",  # clients with models of their own
    "flora",  # folds into the base, late clients pay for what they missed
    "florist",  # the server needs the whole cohort's values
    "de_com_fl",  # forward passes, a replica that is brought up to date
    "fed_avg, few bits",  # links with states and keys
    "fed_avg, ef21",  # a fixed denominator
)


def traits(case):
    """What an algorithm has that a change of executor or of chunks, or a restart, could break."""
    algorithm, world = case.algorithm, case.world
    model, data = world.toy_model(), world.toy_clients().visit(0, data_rng(0, 0, 0))

    def look(params):
        state = engine.init(algorithm, params)
        replica = engine.broadcast(algorithm, state)
        client = engine.init_client(algorithm, model, replica, data, no_context())
        visited = engine.visit_client(algorithm, model, replica, client, data, no_context())
        totals = [algorithm.aggregate.init(visited[0], size) for size in (5, 6)]
        return state, client, visited[2].bill, algorithm.deploy(model, replica)[0], totals

    state, client, bill, deployed, totals = jax.eval_shape(look, world.toy_params())
    shapes = lambda tree: [x.shape for x in jax.tree.leaves(tree)]
    found = {
        "client state": shapes(client.local),
        "link state": shapes(client.uplink),
        "server state": shapes(state.server),
        "own replica": shapes(state.replica) != shapes(state.shared),
        "own bill": shapes(bill),
        "folds": "residual" in getattr(deployed, "variables", ()),
        "stacked cohort": shapes(totals[0]) != shapes(totals[1]),
        "fixed denominator": algorithm.aggregate.fixed,
        "personal": case.personal,
        "without gradients": Access.DIFFERENTIATE not in union(algorithm.access),
    }
    return {name for name, value in found.items() if value}


# what can go wrong with a language model's own loss: its derivatives, folds, and their absence
SPOKEN = ("scaffold", "flora", "de_com_fl")


def tier(case, check):
    kinds = SPOKEN if check == "trains_a_language_model" else KINDS
    if check in EXPENSIVE and case not in kinds:
        return [pytest.mark.slow]
    roles = case in {"fed_bi_ot", "fed_pt", "offsite_tuning"}  # several models, many programs
    searches = check == "learns" and case in {"bdpl", "fed_dtpt"}
    host = check == "host_agrees" and case != "fed_avg"
    return [pytest.mark.heavy] if roles or searches or host else []


@pytest.mark.parametrize(
    ("case", "check"),
    [
        pytest.param(case, check, marks=tier(case, check))
        for case in CASES
        for check in CHECKS
        # they look at no floats of the data
        if case not in ("manual_prompt", "host_tuning", "synthetic_tuning")
        or check != "drops_what_is_not_finite"
    ],
)
def test_contract(case, check):
    CHECKS[check](CASES[case])


def test_the_kinds_have_every_trait():
    of = {name: traits(case) for name, case in CASES.items()}
    assert set().union(*of.values()) == set().union(*(of[name] for name in KINDS))
    assert not of["fed_avg"]


@pytest.mark.parametrize("make", [central, local_only])
@pytest.mark.parametrize("name", ["keeps_structure", "resumes_exactly", "bytes_are_exact"])
def test_references_keep_the_contract_that_applies(make, name):
    CHECKS[name](Case(make(toy_loss, optax.adam(0.05))))


def test_the_skeleton_is_fed_avg_and_what_it_keeps():
    """keep = 0 is FedAvg to the bit; with it, a second round goes further."""
    fed_avg = CASES["fed_avg"].reference.shared
    without = Case(skeleton(toy_loss, SGD, keep=0.0), rounds=3).reference.shared
    jax.tree.map(np.testing.assert_array_equal, without, fed_avg)
    kept = CASES["skeleton"].reference.shared
    assert np.abs(kept["change"] - fed_avg["change"]).max() > 0.01


@pytest.mark.parametrize("factory", [*ALGORITHMS.values(), skeleton], ids=[*ALGORITHMS, "skeleton"])
def test_documented_arguments_are_the_signature(factory):
    doc = inspect.getdoc(factory)
    assert doc
    borrowed = re.search(r"arguments as in `(\w+)`", doc)
    source = inspect.getdoc(ALGORITHMS[borrowed[1]]) if borrowed else doc
    args = re.search(r"Args:\n(.*?)\n\n", source, re.S)[1]
    documented = re.findall(r"^  (\w+):", args, re.M)
    taken = list(inspect.signature(factory).parameters)
    assert taken == documented if not borrowed else set(taken) <= set(documented)
