"""Laws of generation: golden continuations, cache equals no cache, padding changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.adapters.lora import add_lora
from fedjax_post.hub.load import load_model
from fedjax_post.model.generate import generate
from fedjax_post.testing.models import tiny_model

PROMPT = jnp.array([[3, 7, 1, 9, 4]])


def greedy(model, params, prompts, mask=None, num=8, eos=99):
    mask = jnp.ones(prompts.shape, bool) if mask is None else mask
    return generate(model, params, prompts, mask, max_new_tokens=num, eos_id=eos, pad_id=0)


@pytest.mark.parametrize("name", ["stories260K", "llama2xs-280K", "babyllama-tok105"])
def test_greedy_equals_golden(test_data, name):
    folder = test_data / "models" / name
    model, golden = load_model(folder), np.load(folder / "golden.npz")
    prompt, ids = golden["greedy_prompt"], golden["greedy_ids"]
    new = greedy(model, {}, jnp.asarray(prompt[None]), num=len(ids) - len(prompt))
    np.testing.assert_array_equal(new[0], ids[len(prompt) :])


def test_cache_equals_no_cache():
    model = tiny_model()
    tokens = np.zeros((1, 13), np.int32)
    tokens[:, :5] = PROMPT
    for i in range(5, 13):  # one shape, since later tokens are not seen
        tokens[0, i] = np.argmax(model.logits({}, tokens)[0, i - 1])
    np.testing.assert_array_equal(greedy(model, {}, PROMPT), tokens[:, 5:])


def test_cached_logits_equal_uncached_ones():
    model = tiny_model()
    logits, cache = model.prefill({}, PROMPT[:, :3], mask=jnp.ones((1, 3), bool), num_slots=7)
    whole = model.logits({}, PROMPT)
    np.testing.assert_allclose(logits, whole[:, 2], atol=1e-5)
    for i in (3, 4):
        logits, cache = model.step(
            {},
            PROMPT[:, i : i + 1],
            positions=jnp.array([[i]]),
            mask=jnp.ones((1, 1), bool),
            cache=cache,
        )
        np.testing.assert_allclose(logits, whole[:, i], atol=1e-5)


def test_left_padding_changes_nothing():
    model = tiny_model()
    alone = greedy(model, {}, PROMPT)
    padded = jnp.concatenate([jnp.full((1, 3), 5), PROMPT], axis=1)
    other = jnp.arange(8)[None]
    prompts = jnp.concatenate([padded, other])
    mask = jnp.arange(8)[None] >= jnp.array([[3], [0]])
    both = greedy(model, {}, prompts, mask)
    np.testing.assert_array_equal(both[:1], alone)
    np.testing.assert_array_equal(both[1:], greedy(model, {}, other))


def test_a_row_is_padded_after_its_end():
    model = tiny_model()
    free = np.asarray(greedy(model, {}, PROMPT, num=8))[0]
    end = int(free[2])
    first = int(np.flatnonzero(free == end)[0])
    stopped = np.asarray(greedy(model, {}, PROMPT, num=8, eos=(98, end)))[0]
    np.testing.assert_array_equal(stopped[: first + 1], free[: first + 1])
    assert (stopped[first + 1 :] == 0).all()


@pytest.mark.heavy
def test_each_row_may_have_its_own_adapter():
    model, params = add_lora(tiny_model(), jax.random.key(0), rank=2, alpha=4)
    rows = [jax.tree.map(lambda x, i=i: x + 0.2 * i, params) for i in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    prompts = jnp.stack([PROMPT, PROMPT + 2])
    together = jax.vmap(lambda p, t: greedy(model, p, t))(stacked, prompts)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(together[i], greedy(model, row, prompts[i]))


def test_a_row_of_padding_has_no_continuation():
    mask = jnp.array([[True] * 5, [False] * 5])
    both = np.asarray(greedy(tiny_model(), {}, jnp.concatenate([PROMPT, PROMPT]), mask))
    np.testing.assert_array_equal(both[:1], greedy(tiny_model(), {}, PROMPT))
    assert (both[1] == 0).all()


@pytest.mark.heavy
def test_mapped_calls_share_the_condition_of_their_loop():
    """Otherwise each step would write every cache twice; rows that end early stay as they are."""
    model, params = add_lora(tiny_model(), jax.random.key(0), rank=2, alpha=4)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x + 0.2]), params)
    one = greedy(model, params, PROMPT)
    end = int(one[0, 1])
    mapped = jax.vmap(lambda p: greedy(model, p, PROMPT, eos=end))
    loops = [
        e for e in equations(jax.make_jaxpr(mapped)(stacked).jaxpr) if e.primitive.name == "while"
    ]
    assert loops
    for loop in loops:
        assert [x.aval.shape for x in loop.params["cond_jaxpr"].jaxpr.outvars] == [()]
    for row, i in zip(mapped(stacked), range(2), strict=True):
        own = jax.tree.map(lambda x, i=i: x[i], stacked)
        np.testing.assert_array_equal(row, greedy(model, own, PROMPT, eos=end))


def equations(jaxpr):
    """All equations of a program, those of its parts included."""
    for equation in jaxpr.eqns:
        yield equation
        for part in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
            if is_program(part):
                yield from equations(getattr(part, "jaxpr", part))


def is_program(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


@pytest.mark.parametrize(("num", "words"), [(0, "at least 1, got 0"), (60, "context of 64")])
def test_lengths_are_checked(num, words):
    with pytest.raises(ValueError, match=words):
        greedy(tiny_model(), {}, PROMPT, num=num)
