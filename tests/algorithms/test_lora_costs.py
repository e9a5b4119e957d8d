"""What LoRA aggregation costs: bytes, memory, and any order of clients; and a real decoder."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lora_oracle import (
    LORA,
    assert_close,
    clients_of,
    cut,
    make,
    play,
    start_at,
)

import fedjax_post as fp
from fedjax_post.adapters.lora import add_lora, merge_lora
from fedjax_post.algorithms import ALGORITHMS
from fedjax_post.core import engine, num_bytes, pack, wire
from fedjax_post.core.algorithm import ClientData
from fedjax_post.data.ranks import RankedClients
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.simulate.visit import contexts_of, fresh_states, visit
from fedjax_post.testing import toy_lora
from fedjax_post.testing.models import tiny_model
from tests.cohorts import by_round


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


# one of each kind: a factor frozen, one at home, folds into the base, products cut
DECODED = {"ffa_lora", "fed_sa_lora", "fed_ex_lora", "flex_lora"}


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in DECODED else pytest.mark.slow) for n in LORA[:6]],
)
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
