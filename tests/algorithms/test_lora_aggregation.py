"""What LoRA aggregation computes, against dense products in float64.

The oracle trains every client's adapter at its true size: a client of rank r has
factors of r components and the scale alpha / r, no mask and no padding. Products,
means and errors are then numpy.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import algorithms
import fedjax_post as fp
from algorithms import ALGORITHMS
from fedjax_post.adapters import factors, products
from fedjax_post.adapters.lora import add_lora, lora_delta, merge_lora
from fedjax_post.core import engine, local, num_bytes, pack, wire
from fedjax_post.core.algorithm import ClientData, no_context
from fedjax_post.data.ranks import RankedClients
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.simulate.visit import contexts_of, fresh_states, visit
from fedjax_post.testing import toy_lora
from fedjax_post.testing.models import tiny_model

LORA = (
    *("ffa_lora", "ro_lora", "fed_sa_lora", "flora", "fed_ex_lora"),
    *("flex_lora", "het_lora", "fed_svd", "lora_fair", "florist"),
)
FIXED = {"flora": {"redraw": False}, "florist": {"redraw": False, "energy": 1.0}}
ALPHA, SGD = toy_lora.ALPHA, optax.sgd(0.05)
RANKS = {"equal": (2,), "unequal": (1, 2, 1)}


class Visit(NamedTuple):
    """What one client made of its visit, at its true rank; leaves float64, `[LAYERS, ...]`."""

    a: np.ndarray
    b: np.ndarray
    scale: float  # alpha / r
    share: float  # of the cohort's weight


def make(name, tx=SGD, **options):
    options = {**FIXED.get(name, {}), **options}
    return ALGORITHMS[name](toy_lora.toy_loss, tx, **options)


def start_at(rank=2, seed=5):
    """An adapter that has been trained before: neither factor is zero."""
    params = toy_lora.toy_params(rank)
    pair = params["lora"]["layers"]["mix"]
    b = 0.3 * np.random.default_rng(seed).normal(size=pair["b"].shape)
    return {"lora": {"layers": {"mix": {**pair, "b": jnp.asarray(b, jnp.float32)}}}}


def clients_of(ranks, **kwargs):
    clients = toy_lora.toy_clients(**kwargs)
    return clients if ranks == (0,) else RankedClients(clients, ranks)


def play(algorithm, params, clients, *, rounds=1, rank=2, **plan):
    """The last state, all records, and the dense change that would be deployed."""
    model = toy_lora.toy_model(rank)
    plan = fp.Plan(**{"chunk_size": 3, **plan})
    steps = list(fp.run(algorithm, model, clients, params=params, rounds=rounds, plan=plan))
    state = steps[-1][0]
    return state, [record for _, record in steps], change_of(algorithm, state, rank)


def change_of(algorithm, state, rank=2, client=None):
    """What is deployed, less the base: residual + A scale B, float64."""
    model, params = engine.deployed(algorithm, toy_lora.toy_model(rank), state, client)
    merged = merge_lora(model, params).variables["params"]["layers"]["mix"]["kernel"]
    base = toy_lora.toy_model(rank).variables["params"]["layers"]["mix"]["kernel"]
    return np.asarray(merged, np.float64) - np.asarray(base, np.float64)


def visits(params, clients, *, rank=2, round=0, only=("a", "b"), residual=None):
    """Every client's visit at its true size; `params` are in the federation's units."""
    pair = params["lora"]["layers"]["mix"]
    out = []
    for k in range(len(clients)):
        data = clients.visit(k, data_rng(0, round, k))
        own = int(data.rank) or rank
        scale = ALPHA / own
        model = toy_lora.toy_model(own)
        if residual is not None:
            kernel = jnp.asarray(residual, jnp.float32)
            model.variables["residual"] = {"layers": {"mix": {"kernel": kernel}}}
        held = {"a": pair["a"][..., :own], "b": pair["b"][:, :own] * (ALPHA / rank) / scale}
        moving = {name: held[name] for name in only}

        def loss(moving, model, batch, key, held=held):
            own_params = {"lora": {"layers": {"mix": {**held, **moving}}}}
            return toy_lora.toy_loss(own_params, model, batch, key)

        moved, _, _ = local.local_steps(loss, SGD, moving, model, data, no_context())
        end = {name: np.asarray(x, np.float64) for name, x in {**held, **moved}.items()}
        out.append(Visit(end["a"], end["b"], scale, float(data.num_tokens)))
    total = sum(v.share for v in out)
    return [v._replace(share=v.share / total) for v in out]


def mean_product(done):
    return sum(v.share * v.scale * v.a @ v.b for v in done)


def padded(done, rank=2):
    """Clients' factors with zeros beyond their ranks, alpha / r in units of alpha / R on B."""
    pad = lambda x, axis: np.pad(x, [(0, (rank - x.shape[axis]) * (i == axis)) for i in range(3)])
    unit = ALPHA / rank
    return [(v.share, pad(v.a, 2), pad(v.b * v.scale / unit, 1)) for v in done]


def mean_factors(done, rank=2):
    values = padded(done, rank)
    return sum(s * a for s, a, _ in values), sum(s * b for s, _, b in values)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def assert_far(found, expected):
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() > 1e-3


@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("name", ["fed_ex_lora", "flora", "florist"])
def test_folding_methods_deploy_the_mean_of_products(name, ranks):
    clients = clients_of(ranks)
    params = toy_lora.toy_params() if name != "fed_ex_lora" else start_at()
    done = visits(params, clients)
    _, _, found = play(make(name), params, clients)
    assert_close(found, mean_product(done))
    # what the law excludes: one alpha / R for all ranks, weights on both factors, FedIT's mean
    if len(ranks) > 1:
        assert_far(found, sum(v.share * ALPHA / 2 * v.a @ v.b for v in done))
    assert_far(found, sum(v.share**2 * v.scale * v.a @ v.b for v in done))
    a, b = mean_factors(done)
    assert_far(found, ALPHA / 2 * a @ b)


@pytest.mark.parametrize("ranks", [(5,), (1, 3, 2)])
def test_flex_lora_deploys_the_mean_of_products_where_nothing_is_cut(ranks):
    clients, params = clients_of(ranks), start_at(5)
    _, _, found = play(make("flex_lora"), params, clients, rank=5)
    assert_close(found, mean_product(visits(params, clients, rank=5)))


def test_flex_lora_hands_each_rank_its_best():
    clients, params = clients_of((1, 2, 1)), start_at()
    state, _, found = play(make("flex_lora"), params, clients)
    u, s, v = np.linalg.svd(mean_product(visits(params, clients)), full_matrices=False)
    assert_close(found, u[..., :2] * s[:, None, :2] @ v[:, :2])
    for rank in (1, 2):
        model = toy_lora.toy_model()
        own = factors.for_rank(model, rank)
        held = factors.narrow(state.shared, model, own)
        scale = own.variables["lora_scale"]["layers"]["mix"]["scale"]
        assert_close(scale[:, :rank], ALPHA / rank)
        product = held.a["layers"]["mix"] * scale[:, None] @ held.b["layers"]["mix"]
        assert_close(product, u[..., :rank] * s[:, None, :rank] @ v[:, :rank])


@pytest.mark.parametrize("name", ["flora", "florist"])
def test_second_rounds_start_afresh_on_the_folded_base(name):
    clients, params = clients_of((1, 2, 1)), toy_lora.toy_params()
    first = mean_product(visits(params, clients))
    second = mean_product(visits(params, clients, round=1, residual=first))
    _, _, found = play(make(name), params, clients, rounds=2)
    assert_close(found, first + second)


def test_fed_ex_lora_keeps_training_the_means_on_the_folded_base():
    clients, params = clients_of((2,)), start_at()
    state, _, after_one = play(make("fed_ex_lora"), params, clients)
    residual = after_one - change_of(
        algorithms.het_lora(toy_lora.toy_loss, SGD),
        engine.State(state.shared.factors, state.shared.factors, ()),
    )
    a, b = mean_factors(visits(params, clients))
    assert_close(residual, mean_product(visits(params, clients)) - ALPHA / 2 * a @ b)
    means = factors.join(state.shared.factors)
    second = mean_product(visits(means, clients, round=1, residual=residual))
    _, _, found = play(make("fed_ex_lora"), params, clients, rounds=2)
    assert_close(found, residual + second)


def test_flora_folds_an_adapter_that_it_is_given():
    params = start_at()
    state = engine.init(make("flora"), params)
    expected = lora_delta(toy_lora.toy_model(), params)["layers"]["mix"]["kernel"]
    assert_close(change_of(make("flora"), state), expected)


def test_flora_draws_a_fresh_start_for_each_visit():
    clients = clients_of((2,))
    changes = [play(make("flora", redraw=flag), toy_lora.toy_params(), clients)[2]
               for flag in (True, False)]  # fmt: skip
    assert_far(*changes)
    drawn = factors.redraw(factors.split(toy_lora.toy_params()), jax.random.key(0))
    a = np.asarray(drawn.a["layers"]["mix"])
    assert 0.7 * toy_lora.INPUTS**-0.5 < np.abs(a).max() <= toy_lora.INPUTS**-0.5


@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("name", ["ffa_lora", "fed_svd", "ro_lora"])
def test_averaging_over_a_common_factor_has_no_error(name, ranks):
    """The change of the product is the mean of the clients' changes, in either turn."""
    clients, params, change = clients_of(ranks), start_at(), None
    algorithm = make(name)
    for round in range(2):
        before = (
            change if round else lora_delta(toy_lora.toy_model(), params)["layers"]["mix"]["kernel"]
        )
        state, _, change = play(algorithm, start_at(), clients, rounds=round + 1)
        only = "a" if name == "ro_lora" and round == 1 else "b"
        done = visits(params, clients, round=round, only=only)
        pair = {k: np.asarray(v, np.float64) for k, v in params["lora"]["layers"]["mix"].items()}
        steps = [
            v.share * (v.scale * v.a @ v.b
                       - ALPHA / 2 * pair["a"][..., : v.a.shape[-1]] @ pair["b"][:, : v.b.shape[1]])
            for v in done
        ]  # fmt: skip
        assert_close(change - before, sum(steps))
        if name != "fed_svd":
            still = "b" if only == "a" else "a"
            kept = factors.join(state.shared)["lora"]["layers"]["mix"][still]
            np.testing.assert_array_equal(kept, params["lora"]["layers"]["mix"][still])
        params = factors.join(state.shared)


def test_fed_it_errs_by_the_covariance_of_the_factors():
    clients, params = clients_of((2,)), start_at()
    done = visits(params, clients)
    a, b = mean_factors(done)
    error = sum(v.share * (v.a - a) @ (v.b - b) for v in done)
    _, _, found = play(algorithms.fed_avg(toy_lora.toy_loss, SGD), params, clients)
    assert_close(mean_product(done) - found, ALPHA / 2 * error)
    assert_far(mean_product(done), found)
    values = factors.Factors(*(np.stack(x) for x in zip(*((v.a, v.b) for v in done), strict=True)))
    told = products.aggregation_error(
        jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), values),
        jnp.array([v.share for v in done], jnp.float32),
    )
    expected = np.linalg.norm(ALPHA / 2 * error) / np.linalg.norm(mean_product(done))
    np.testing.assert_allclose(told, expected, rtol=1e-4)


@pytest.mark.parametrize("name", LORA)
def test_one_client_is_plain_training(name):
    clients, params = clients_of((2,), num_clients=1), toy_lora.toy_params()
    only = ("b",) if name in ("ffa_lora", "fed_svd", "ro_lora") else ("a", "b")
    expected = mean_product(visits(params, clients, only=only))
    algorithm = make(name)
    if name == "fed_sa_lora":
        assert_close(personal_changes(algorithm, params, clients)[0], expected)
    else:
        assert_close(play(algorithm, params, clients, chunk_size=1)[2], expected)


def test_het_lora_without_its_terms_is_fed_it():
    clients, params = clients_of((0,)), start_at()
    plain = play(algorithms.fed_avg(toy_lora.toy_loss, SGD), params, clients, rounds=2)[2]
    assert_close(
        play(make("het_lora", sparsity_weights=False), params, clients, rounds=2)[2], plain
    )
    assert_far(play(make("het_lora"), params, clients, rounds=2)[2], plain)


def test_het_lora_weighs_by_the_norm_of_the_product():
    clients, params = clients_of((1, 2, 1)), start_at()
    done = visits(params, clients)
    norms = np.array([v.share * np.linalg.norm(v.scale * v.a @ v.b) for v in done])
    done = [v._replace(share=s) for v, s in zip(done, norms / norms.sum(), strict=True)]
    a, b = mean_factors(done)
    state, _, found = play(make("het_lora"), params, clients)
    assert_close(found, ALPHA / 2 * a @ b)
    assert_close(state.shared.a["layers"]["mix"], a)


def visit_once(algorithm, params, rank):
    """The upload and the next state of client 0 of a population of rank 4."""
    model, replica = toy_lora.toy_model(4), factors.split(params)
    data = clients_of((rank,)).visit(0, data_rng(0, 0, 0))
    limit = algorithm.client.init(model, replica, jax.random.key(0))
    upload, limit, _ = algorithm.client.update(model, replica, limit, data, no_context())
    return upload, int(limit)


@pytest.mark.parametrize(("rank", "kept"), [(4, 2), (3, 1)])
def test_het_lora_prunes_the_tail_that_a_visit_made_smaller(rank, kept):
    """The pull on the tail, and the pruning that it leads to; without either all is kept."""
    tx, params = optax.sgd(0.01), start_at(4)
    upload, limit = visit_once(make("het_lora", tx, prune_to=0.5, prune_penalty=30.0), params, rank)
    assert limit == kept
    live = (np.asarray(upload.value.a["layers"]["mix"]) != 0).any((0, 1))
    np.testing.assert_array_equal(live, np.arange(4) < kept)
    assert visit_once(make("het_lora", tx), params, rank)[1] == rank
    fresh = toy_lora.toy_params(4)
    upload, limit = visit_once(make("het_lora", tx, prune_to=0.5, prune_penalty=1.0), fresh, rank)
    assert limit == rank, "an adapter that is zero was pruned"
    assert np.isfinite(upload.value.b["layers"]["mix"]).all()


def test_het_lora_sends_less_to_a_client_that_has_pruned():
    algorithm = make("het_lora", optax.sgd(0.01), prune_to=0.5, prune_penalty=30.0)
    _, records, _ = play(algorithm, start_at(4), clients_of((4,)), rank=4, rounds=2)
    assert records[0]["bytes_down"] == 6 * num_bytes(cut(start_at(4), 4))
    assert records[1]["bytes_down"] < records[0]["bytes_down"]


def personal_changes(algorithm, params, clients, rounds=1):
    """The dense change of each client's own model."""
    state = engine.init(algorithm, params)
    model, count = toy_lora.toy_model(), len(clients)
    ids, key = jnp.arange(count), jax.random.key(0)
    states = None
    for round in range(rounds):
        data = [clients.visit(k, data_rng(0, round, k)) for k in range(count)]
        data = jax.tree.map(lambda *x: jnp.stack(x), *data)
        replica = engine.broadcast(algorithm, state)
        if states is None:
            states = fresh_states(algorithm, model, replica, data, key, ids)
        like = engine.value_like(algorithm, model, replica, jax.tree.map(lambda x: x[0], data))
        total, states, _ = visit(
            algorithm, model, replica, engine.init_total(algorithm, like, count), states, data,
            contexts_of(key, jnp.int32(round), ids),
        )  # fmt: skip
        state = engine.serve(algorithm, engine.finish(algorithm, total), state)
    own = [jax.tree.map(lambda x, k=k: x[k], states) for k in range(count)]
    return [change_of(algorithm, state._replace(replica=replica), client=c) for c in own]


def test_fed_sa_lora_shares_a_and_leaves_b_at_home():
    clients, params = clients_of((1, 2, 1)), toy_lora.toy_params()
    algorithm = make("fed_sa_lora")
    done = visits(params, clients)
    state, _, shared_change = play(algorithm, params, clients)
    start = np.asarray(params["lora"]["layers"]["mix"]["a"], np.float64)
    moves = [a - start * (np.abs(a) > 0) for _, a, _ in padded(done)]
    mean_a = start + sum(v.share * move for v, move in zip(done, moves, strict=True))
    assert_close(state.shared.a["layers"]["mix"], mean_a)
    assert_close(shared_change, 0)
    found = personal_changes(algorithm, params, clients)
    for change, (_, _, b) in zip(found, padded(done), strict=True):
        assert_close(change, ALPHA / 2 * mean_a @ b)
    assert_far(found[0], found[1])


def test_fed_svd_turns_a_and_leaves_the_product():
    clients, params = clients_of((2,)), toy_lora.toy_params()
    _, _, frozen = play(make("ffa_lora"), params, clients)
    state, _, turned = play(make("fed_svd"), params, clients)
    assert_close(turned, frozen)
    a = np.asarray(state.shared.a["layers"]["mix"])
    assert_close(a.swapaxes(1, 2) @ a, np.broadcast_to(np.eye(2), (toy_lora.LAYERS, 2, 2)))
    norms = np.linalg.norm(np.asarray(state.shared.b["layers"]["mix"]), axis=-1)
    assert_close(norms * ALPHA / 2, np.linalg.svd(frozen, compute_uv=False)[:, :2])
    given = np.asarray(params["lora"]["layers"]["mix"]["a"])
    assert_far(given.swapaxes(1, 2) @ given, np.eye(2)[None])


@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
def test_lora_fair_solves_for_the_correction(ranks):
    clients, params, penalty = clients_of(ranks), start_at(), 0.01
    done = visits(params, clients)
    a, b = mean_factors(done)
    target = mean_product(done) / (ALPHA / 2)
    ridge = a.swapaxes(1, 2) @ a + penalty * np.eye(2)
    expected = b + np.linalg.solve(ridge, a.swapaxes(1, 2) @ (target - a @ b))
    state, _, found = play(make("lora_fair", penalty=penalty), params, clients)
    assert_close(state.shared.a["layers"]["mix"], a)
    assert_close(state.shared.b["layers"]["mix"], expected)
    averaged = ALPHA / 2 * a @ b
    gap = lambda change: np.linalg.norm(mean_product(done) - change)
    assert gap(found) < 0.95 * gap(averaged)
    assert_close(play(make("lora_fair", penalty=float("inf")), params, clients)[2], averaged)


@pytest.mark.parametrize("tau", [0.5, 0.9, 0.999])
def test_florist_keeps_the_least_rank_of_enough_energy(tau):
    clients, params = clients_of((1, 2, 1)), toy_lora.toy_params()
    whole = mean_product(visits(params, clients))
    state, _, found = play(make("florist", energy=tau), params, clients)
    u, s, v = np.linalg.svd(whole, full_matrices=False)
    share = np.cumsum(s**2, 1) / (s**2).sum(1, keepdims=True)
    ranks = (share < tau).sum(1) + 1
    for layer, p in enumerate(ranks):
        assert_close(found[layer], u[layer, :, :p] * s[layer, :p] @ v[layer, :p])
        assert np.square(found[layer]).sum() >= (tau - 1e-5) * np.square(whole[layer]).sum()
    np.testing.assert_array_equal(state.shared.folded, [ranks.sum()])


@pytest.mark.parametrize("name", LORA)
def test_only_adapters_are_taken(name):
    with pytest.raises(ValueError, match="--adapter=lora"):
        engine.init(make(name), {"params": {"kernel": jnp.zeros((2, 2))}})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("het_lora", {"prune_to": 0.0}),
        ("het_lora", {"prune_penalty": -1.0}),
        ("lora_fair", {"penalty": 0.0}),
        ("florist", {"energy": 1.5}),
    ],
)
def test_hyper_parameters_are_checked(name, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must"):
        make(name, **options)


@pytest.mark.parametrize("name", LORA)
def test_nothing_dense_is_mapped_over_clients(name):
    """Base and residual stay one matrix for all: no array is [clients, .., in, out]."""
    algorithm, count = make(name), 3
    clients, model = clients_of((1, 2)), toy_lora.toy_model()
    state = engine.init(algorithm, start_at())
    replica = engine.broadcast(algorithm, state)
    data = [clients.visit(k, data_rng(0, 0, k)) for k in range(count)]
    data: ClientData = jax.tree.map(lambda *x: jnp.stack(x), *data)
    ids = jnp.arange(count)

    def chunk(model, replica, data):
        like = engine.value_like(algorithm, model, replica, jax.tree.map(lambda x: x[0], data))
        states = fresh_states(algorithm, model, replica, data, jax.random.key(0), ids)
        total = engine.init_total(algorithm, like, count)
        contexts = contexts_of(jax.random.key(0), jnp.int32(0), ids)
        return visit(algorithm, model, replica, total, states, data, contexts)

    text = str(jax.make_jaxpr(chunk)(model, replica, data))
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"\[(\d+(?:,\d+)+)\]", text)}
    dense = {toy_lora.INPUTS, toy_lora.OUTPUTS}
    assert [s for s in shapes if dense <= set(s)], "the products are nowhere"
    assert [s for s in shapes if count in s and dense <= set(s)] == []


@pytest.mark.parametrize("name", ["flora", "flex_lora", "het_lora", "ro_lora"])
def test_order_and_chunks_do_not_matter_with_unequal_ranks(name):
    """The contract's laws, where lanes of unequal ranks and empty lanes stand side by side."""
    clients, params = clients_of((1, 2, 2)), start_at()
    backwards = lambda population, rng: np.arange(population)[::-1]
    one, other = (
        play(make(name), params, clients, rounds=2, **plan)[1:]
        for plan in ({"chunk_size": 6}, {"chunk_size": 4, "sampler": backwards})
    )
    assert_close(one[1], other[1])
    for key in ("bytes_up", "bytes_down"):
        assert [record[key] for record in one[0]] == [record[key] for record in other[0]]


# --- bytes -----------------------------------------------------------------------------


def cut(params, rank, name=None):
    """The message of a client of some rank, as arrays of its true size."""
    pair = params["lora"]["layers"]["mix"]
    held = {"a": pair["a"][..., :rank], "b": pair["b"][:, :rank]}
    return held if name is None else {name: held[name]}


@pytest.mark.parametrize(
    ("name", "down", "up"),
    [
        ("ffa_lora", "b", "b"),
        ("fed_sa_lora", "a", "a"),
        ("fed_svd", None, "b"),
        ("flex_lora", None, None),
        ("het_lora", None, None),
        ("lora_fair", None, None),
    ],
)
def test_a_client_is_billed_the_components_of_its_rank(name, down, up):
    params = start_at()
    _, (record,), _ = play(make(name), params, clients_of((1, 2, 1)))
    sizes = [1, 2, 1, 1, 2, 1]
    weight = 4
    assert record["bytes_down"] == sum(len(pack(cut(params, r, down))) for r in sizes)
    assert record["bytes_up"] == sum(len(pack(cut(params, r, up))) + weight for r in sizes)


@pytest.mark.parametrize("name", sorted(set(LORA) - {"flora", "florist", "fed_ex_lora", "ro_lora"}))
def test_full_ranks_are_billed_as_the_messages_shapes(name):
    algorithm, clients, params = make(name), clients_of((0,)), start_at()
    _, (record,), _ = play(algorithm, params, clients)
    per_client = fp.simulate.wire_bytes_of(algorithm, toy_lora.toy_model(), clients, params)
    assert record["bytes_down"] == 6 * per_client.down
    assert record["bytes_up"] == 6 * per_client.up


def by_round(cohorts):
    """A sampler that returns the given cohorts, in order; the first is asked for twice."""
    asked = iter([cohorts[0], *cohorts])
    return lambda population, rng: np.array(next(asked))


ALL = list(range(6))
COHORTS = [ALL[:5], ALL[:5], ALL]  # client 5 comes late


def test_ro_lora_bills_the_factor_that_moved_or_both():
    params, sizes = start_at(), [1, 2, 1, 1, 2, 1]
    _, records, _ = play(make("ro_lora"), params, clients_of((1, 2, 1)), rounds=3,
                         sampler=by_round(COHORTS))  # fmt: skip
    bill = lambda ranks, name=None: sum(len(pack(cut(params, r, name))) for r in ranks)
    both, last = bill(sizes[:5]), bill(sizes[5:])
    assert [r["bytes_down"] for r in records] == [
        both,
        bill(sizes[:5], "b"),
        bill(sizes[:5], "a") + last,
    ]
    assert [r["bytes_up"] - 4 * r["cohort"] for r in records] == [
        bill(sizes[:5], "b"),
        bill(sizes[:5], "a"),
        bill(sizes, "b"),
    ]


@pytest.mark.parametrize("name", ["flora", "florist", "fed_ex_lora"])
def test_late_clients_are_billed_what_they_missed(name):
    """Stacks of every round since the last visit, or the dense sum where that is less."""
    params = toy_lora.toy_params()
    algorithm = make(name, **({"energy": 0.5} if name == "florist" else {}))
    play_one = lambda rounds: play(algorithm, params, clients_of((1,)), rounds=rounds,
                                   sampler=by_round(COHORTS))  # fmt: skip
    counts = [np.asarray(play_one(n)[0].shared.folded) for n in (1, 2)]
    component = 4 * (toy_lora.INPUTS + toy_lora.OUTPUTS)
    means = num_bytes(cut(params, 2)) if name == "fed_ex_lora" else 0
    dense = 4 * toy_lora.LAYERS * toy_lora.INPUTS * toy_lora.OUTPUTS + means
    first = 2 * toy_lora.LAYERS * bool(means)
    due = lambda num: min(int(num) * component, dense)
    records = play_one(3)[1]
    assert [r["bytes_down"] for r in records] == [
        5 * due(first),
        5 * due(counts[0][0] - first),
        5 * due(counts[1][0] - counts[0][0]) + due(counts[1][0]),
    ]
    up = num_bytes(cut(params, 1)) + 4
    assert [r["bytes_up"] for r in records] == [5 * up, 5 * up, 6 * up]
    if name == "flora":
        assert counts[0][0] == 5 * toy_lora.LAYERS  # the stack of five clients of rank 1
    if name == "fed_ex_lora":
        assert counts[0][0] == (5 + 2 + 2) * toy_lora.LAYERS  # start, stack and means


def test_a_link_that_changes_the_layout_is_billed_by_its_message():
    algorithm = make("ffa_lora")._replace(uplink=fp.core.cast("bfloat16"))
    _, (record,), _ = play(algorithm, start_at(), clients_of((1,)))
    message = num_bytes(cut(start_at(), 2, "b")) // 2  # all components, of 2 bytes
    assert record["bytes_up"] == 6 * (message + 4)
    assert record["bytes_down"] == 6 * num_bytes(cut(start_at(), 1, "b"))


def test_pieces_add_up_beyond_32_bits():
    counts = wire.pieces((2**31, jnp.int32(3)), (5, jnp.int32(2)), (5, jnp.int32(1)))
    assert wire.total_bytes(counts) == 3 * 2**31 + 15


# --- a real decoder ---------------------------------------------------------------------


@pytest.mark.parametrize("name", LORA[:6])
def test_a_decoder_is_trained_and_deployed(name):
    """One round on two clients of unequal ranks; what is deployed equals its merged weights."""
    model, params = add_lora(tiny_model(), jax.random.key(0), rank=2, alpha=4.0)
    rng = np.random.default_rng(0)
    arrays = [
        {"tokens": rng.integers(1, 32, size=(4, 6)).astype(np.int32),
         "loss_mask": np.ones((4, 6), bool)}
        for _ in range(2)
    ]  # fmt: skip
    clients = RankedClients(fp.ArrayClients(arrays, batch_size=4, local_steps=4), (1, 2))
    algorithm = ALGORITHMS[name](sft_loss, optax.adam(0.02))
    steps = fp.run(algorithm, model, clients, params=params, rounds=2)
    (_, first), (state, second) = list(steps)
    assert second["loss"] < first["loss"]
    served, held = fp.deployed(algorithm, model, state)
    tokens = jnp.asarray(arrays[0]["tokens"])
    merged = merge_lora(served, held)
    np.testing.assert_allclose(served.logits(held, tokens), merged.logits({}, tokens), atol=2e-4)
    if name != "fed_sa_lora":
        assert np.abs(merged.logits({}, tokens) - model.logits(params, tokens)).max() > 1e-3
