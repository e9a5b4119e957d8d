"""Models of several clients scored side by side: the same as one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.adapters.lora import add_lora
from fedjax_post.data.table import gather
from fedjax_post.evaluate.choices import find_choices
from fedjax_post.evaluate.clients import ClientTable, Line, measure_each, num_lanes
from fedjax_post.evaluate.heldout import HeldOut
from fedjax_post.evaluate.scores import Outcomes, counted_by, measure, summarize
from fedjax_post.evaluate.stacked import Stacked, apply, in_batches
from fedjax_post.evaluate.widths import choose_widths
from fedjax_post.testing.models import tiny_model

ROWS = [np.array([4, 0, 2]), np.array([], int), np.array([1])]


def decode(ids):
    return " ".join(str(i) for i in ids)


@pytest.fixture(scope="module")
def lora():
    """A model, and the adapters of three clients."""
    model, params = add_lora(tiny_model(), jax.random.key(0), rank=2, alpha=4.0)
    key = jax.random.key(1)
    draw = lambda x: 0.3 * jax.random.normal(jax.random.fold_in(key, x.size), (3, *x.shape))
    return model, jax.tree.map(draw, params)


def deploy(model, params):
    return model, params


def total_nats(model, params, tokens, mask):
    return model.total_loss(params, tokens, mask).nats[None]


@pytest.mark.heavy
@pytest.mark.parametrize("are_pairs", [True, False])
def test_side_by_side_equals_one_after_the_other(lora, make, are_pairs):
    """Every kind of score, of labelled rows that may also be preference pairs; one row is cut."""
    model, states = lora
    prompts, labels = [[5, 6], [3], [8, 2, 4], [2, 2], [3, 9]], [[7], [9, 4]]
    sides = [[(prompt, labels[(i + k) % 2]) for i, prompt in enumerate(prompts)] for k in (0, 1)]
    table, rejected = (make(side, cut=[2]) for side in sides)
    texts = tuple(map(decode, labels))
    choices = find_choices((table,), eos_id=1, decode_fn=decode, encode_fn=list, labels=texts)
    heldout = HeldOut(table, np.arange(5), decode, eos_id=1, exact_match=True, batch_size=6)
    heldout = heldout._replace(rejected=rejected if are_pairs else None, choices=choices)
    together = measure_each(Stacked(deploy, model, states), heldout, ROWS)
    assert not len(together[1].losses.nats)
    for client in (0, 2):
        own = jax.tree.map(lambda x, c=client: x[c], states)
        alone = measure(model, own, heldout._replace(rows=ROWS[client]))
        found = together[client]
        np.testing.assert_allclose(found.losses.nats, alone.losses.nats, rtol=1e-5)
        assert found.losses.num_tokens.tolist() == alone.losses.num_tokens.tolist()
        assert set(found.shares) == set(alone.shares) >= {"exact_match", "accuracy"}
        assert ("preference" in found.shares) == are_pairs
        for name, share in alone.shares.items():
            np.testing.assert_array_equal(found.shares[name], share)


def test_the_base_is_not_mapped(lora, table):
    """No value of the compiled program has the shape of the clients' copies of a weight."""
    model, states = lora
    arrays = (jnp.asarray(x) for x in gather(table, np.arange(3)))
    side_by_side = lambda model, states, *arrays: apply(
        total_nats, Stacked(deploy, model, states), {}, *arrays
    )
    program = str(jax.make_jaxpr(side_by_side)(model, states, *arrays))
    matrices = [x for x in jax.tree.leaves(model.variables) if x.ndim == 3]  # one for each layer
    shapes = [x.shape[1:] for x in jax.tree.leaves(states)]
    shown = lambda shape: f"f32[{','.join(map(str, (3, *shape)))}]" in program
    assert all(map(shown, shapes))
    assert not any(shown(x.shape) for x in matrices)


@pytest.mark.parametrize("owner", [[0, 2, 0, 0, 2], [1, 1, 1, 1], [2], []])
def test_every_row_is_in_one_batch_in_its_clients_part(owner):
    owner = np.array(owner, int)
    sizes = 20 + 30 * np.arange(len(owner))[::-1]  # the last row is the shortest
    models = Stacked(deploy, None, np.zeros((3, 1)))
    batches = list(in_batches(models, owner, batch_size=6, sizes=sizes))
    assert len(batches) == -(-np.bincount(owner, minlength=1).max() // 2)
    seen = [[i for batch in batches for i in batch.places[2 * c : 2 * c + 2] if i >= 0]
            for c in range(3)]  # fmt: skip
    assert seen == [np.flatnonzero(owner == c)[::-1].tolist() for c in range(3)]


def test_batches_are_narrow_where_that_saves_more_than_it_takes_to_compile():
    sizes = np.array([90, 7, 33, 16, 70, 17])
    weights = lambda count: jax.ShapeDtypeStruct((count,), np.int8)
    of = lambda count: list(in_batches(weights(count), np.zeros(6, int), 2, sizes=sizes))
    small, large = of(1000), of(2_500_000_000)
    assert [batch.width for batch in small] == [90, 90, 90]
    assert [batch.width for batch in large] == [48, 48, 90]  # 120 tokens have to be saved
    for batches in (small, large):
        assert [sizes[batch.places].tolist() for batch in batches] == [[7, 16], [17, 33], [70, 90]]


def test_a_width_pays_for_itself_over_all_batches_that_are_no_wider():
    longest = [12, 100, 20, 40, 15]
    assert choose_widths(longest, size=8, worth=0) == [16, 100, 24, 48, 16]
    assert choose_widths(longest, size=8, worth=8 * 52 * 4) == [48, 100, 48, 48, 48]
    assert choose_widths(longest, size=8, worth=8 * 52 * 4 + 1) == [24, 100, 24, 100, 24]
    assert choose_widths([], size=8, worth=0) == []


def test_clients_without_rows_are_not_computed(lora, table):
    heldout = HeldOut(table, np.arange(5), decode, eos_id=1, exact_match=False)
    none = [np.array([], int)] * 3
    found = measure_each(Stacked(None, *lora), heldout, none)  # nothing is deployed
    assert [len(outcomes.losses.nats) for outcomes in found] == [0, 0, 0]


def test_the_mean_by_examples_is_the_share_over_all_rows():
    """If every row belongs to one client; the mean by clients is not."""
    right = np.array([1, 1, 0, 1, 0, 1, 1, np.nan, np.nan])  # two rows are left out of the score
    places = [np.array([2, 4, 7, 8]), np.array([0, 1, 3, 5, 6]), np.array([], int)]
    outcomes = Outcomes(None, {"exact_match": right})
    lines = [
        Line(str(k), k, len(own), summarize(outcomes, own), counted_by(outcomes, own))
        for k, own in enumerate(places)
        if len(own)
    ]
    spread = ClientTable("own", 3, tuple(lines)).summary()["scores"]["exact_match"]
    assert (spread["clients"], spread["unscored"]) == (2, 1)
    assert spread["mean_by_examples"] == pytest.approx(np.nanmean(right))
    assert spread["mean_by_clients"] == 0.5


@pytest.mark.parametrize(
    ("sizes", "most", "lanes"),
    [([4], 8, 1), ([4] * 8, 8, 8), ([4] * 9, 8, 5), ([1] * 33, 64, 17), ([50, 20], 8, 1),
     ([15] * 6, 8, 2), ([0, 0], 8, 2)],
)  # fmt: skip
def test_clients_are_scored_in_equal_parts_that_fill_a_batch(sizes, most, lanes):
    assert num_lanes(sizes, batch_size=32, at_most=most) == lanes
