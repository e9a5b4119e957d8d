"""Local steps: masked steps change nothing, steps are counted, extra arguments are passed on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_post.core import (
    ClientData,
    Context,
    continued_steps,
    local_steps,
    mean_over_steps,
    over_steps,
    scale_by_round,
)

START = jnp.asarray([1.0, -2.0])


def loss_fn(params, model, batch, key):
    loss = jnp.mean((params - batch) ** 2) + 0 * jax.random.normal(key)
    return loss, {"loss": loss}


def data(step_mask):
    batches = jnp.arange(8.0).reshape(4, 2)
    return ClientData(batches, jnp.asarray(step_mask), 2.0, 2.0, 0)


def context(round=0):
    return Context(jax.random.key(0), jnp.int32(round), jnp.int32(0))


def test_masked_steps_change_nothing_not_even_a_count():
    tx = optax.adam(0.1)
    masked = data([True, True, False, False])
    carry, steps, metrics = continued_steps(
        loss_fn, tx, (START, tx.init(START)), None, masked, context()
    )
    short = masked._replace(batches=masked.batches[:2], step_mask=masked.step_mask[:2])
    expected, _, short_metrics = continued_steps(
        loss_fn, tx, (START, tx.init(START)), None, short, context()
    )
    jax.tree.map(np.testing.assert_array_equal, carry, expected)
    assert int(carry[1][0].count) == 2
    assert float(steps) == 2
    np.testing.assert_allclose(metrics["loss"], short_metrics["loss"])


def test_no_step_is_no_change():
    params, steps, metrics = local_steps(
        loss_fn, optax.adam(0.1), START, None, data([False] * 4), context()
    )
    np.testing.assert_array_equal(params, START)
    assert float(steps) == float(metrics["loss"]) == 0


def test_a_schedule_counts_rounds_not_steps():
    tx = optax.chain(optax.sgd(1.0), scale_by_round(lambda round: 0.1 / (1 + round)))
    moved = lambda round: local_steps(
        loss_fn, tx, START, None, data([True] + [False] * 3), context(round)
    )
    first, third = (np.asarray(moved(r)[0] - START) for r in (0, 2))
    np.testing.assert_allclose(first, 3 * third, rtol=1e-5)


def test_a_mean_over_steps_leaves_masked_ones_out():
    first = data([True, True, False, False])
    mean = mean_over_steps(lambda batch, key: {"x": batch}, first, context())
    np.testing.assert_allclose(mean["x"], [1.0, 2.0])
    nothing = mean_over_steps(lambda batch, key: batch, data([False] * 4), context())
    np.testing.assert_array_equal(nothing, [0.0, 0.0])


def test_a_mean_over_steps_draws_what_local_steps_draws():
    noisy = lambda params, model, batch, key: (params.sum() * jax.random.normal(key), {})
    drawn = lambda batch, key: jax.grad(noisy, has_aux=True)(START, None, batch, key)[0]
    mean = mean_over_steps(drawn, data([True] * 4), context())
    moved, _, _ = local_steps(noisy, optax.sgd(1.0), START, None, data([True] * 4), context())
    np.testing.assert_allclose(START - 4 * mean, moved, rtol=1e-5)


def test_the_loop_ends_behind_the_last_step_taken_whatever_the_mask():
    seen = []

    def step(carry, batch, key):
        jax.debug.callback(lambda x: seen.append(float(x)), batch[0])
        return carry + batch[0], batch[1]

    masked = data([True, False, True, False])
    moved, total = over_steps(step, jnp.float32(1), masked, context())
    jax.effects_barrier()
    assert (float(moved), float(total)) == (5.0, 6.0)
    assert seen == [0.0, 2.0, 4.0]


def test_clients_of_unlike_masks_side_by_side_equal_each_alone():
    masks = np.array([[True] * 4, [True] + [False] * 3, [False] * 4])
    run = lambda mask: local_steps(loss_fn, optax.adam(0.1), START, None, data(mask), context())
    together = jax.vmap(run)(masks)
    for lane, mask in enumerate(masks):
        alone = run(mask)
        compare = lambda a, b, lane=lane: np.testing.assert_allclose(a[lane], b, rtol=1e-6)
        jax.tree.map(compare, together, alone)
