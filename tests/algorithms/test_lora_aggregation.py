"""What LoRA aggregation computes, against dense products in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lora_oracle import (
    ALPHA,
    LORA,
    RANKS,
    SGD,
    assert_close,
    assert_far,
    change_of,
    clients_of,
    cut,
    make,
    mean_factors,
    mean_product,
    padded,
    play,
    start_at,
    visits,
)

from fedjax_post import algorithms
from fedjax_post.adapters import factors, products
from fedjax_post.adapters.lora import lora_delta
from fedjax_post.core import engine, num_bytes
from fedjax_post.core.algorithm import no_context
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.simulate.visit import contexts_of, fresh_states, visit
from fedjax_post.testing import toy_lora


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


@pytest.mark.heavy
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


@pytest.mark.heavy
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


@pytest.mark.heavy
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


@pytest.mark.heavy
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
    with pytest.raises(ValueError, match="adapter=lora"):
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


def test_florist_folds_products_whose_squares_float32_does_not_hold():
    """As after a step size of 1e-25; with energy 1 it folds all of the mean."""
    algorithm = make("florist", energy=1.0)
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 2, 6, 2)).astype(np.float32)
    b = (1e-25 * rng.normal(size=(3, 2, 2, 5))).astype(np.float32)
    values = factors.Factors({"mix": jnp.asarray(a)}, {"mix": jnp.asarray(b)})
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x[0]), values)
    residual = jax.tree.map(jnp.zeros_like, products.product_of(zeros))
    shared = algorithms.flora(toy_lora.toy_loss, SGD).init(toy_lora.toy_params())
    shared = shared._replace(start=zeros, residual=residual, folded=jnp.zeros(1, jnp.int32))
    folded, _ = algorithm.server.update((values, jnp.ones(3)), (), shared)
    expected = (a.astype(np.float64) @ b).mean(0)
    np.testing.assert_allclose(folded.residual["mix"] / 1e-25, expected / 1e-25, atol=1e-4)
    assert int(folded.folded[0]) == 2 * 5
