"""Laws of secure sums in the simulator: the plain mean, whoever drops out, and nothing single."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import fedjax_post as fp
from fedjax_post import algorithms, core, privacy
from fedjax_post.core import engine
from fedjax_post.privacy.secure import secure_sum
from fedjax_post.simulate import asynchronous
from fedjax_post.simulate.host import host
from fedjax_post.simulate.sweep import Grid, run_of, sweep
from fedjax_post.simulate.visit import contexts_of
from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params

SIZE, COUNT = 20, 7
RNG = np.random.default_rng(0)
SLOPES = RNG.normal(size=(COUNT, SIZE)).astype(np.float32) * 0.1


def walk(params, model, batch, key):
    """Whose gradient is what the client has: its value is known before the run."""
    del model, key
    return -batch["slope"][0] @ params, {}


def walkers(slopes=SLOPES):
    """Clients that walk by their slopes; client k has k + 1 examples, its weight."""
    arrays = [{"slope": np.stack([slope] * (k + 1))} for k, slope in enumerate(slopes)]
    return fp.ArrayClients(arrays, batch_size=len(slopes), local_steps=1)


def walking(link=None, weigh_fn=core.by_examples):
    base = algorithms.fed_avg(walk, optax.sgd(1.0), weigh_fn=weigh_fn)
    return core.with_uplink(base, core.clip(4.0) if link is None else link)


def secured(base=None, **changes):
    given = {"threshold": 4, "max_clients": COUNT, "max_weight": float(COUNT), "seed": 0}
    return secure_sum(walking() if base is None else base, **(given | changes))


def play(algorithm, slopes=SLOPES, rounds=1, **plan):
    steps = fp.run(
        algorithm, None, walkers(slopes), params=jnp.zeros(slopes.shape[1]), rounds=rounds,
        plan=fp.Plan(**plan),
    )  # fmt: skip
    return list(steps)[-1]


def mean_of(slopes, there):
    weights = np.arange(1.0, len(slopes) + 1)[there]
    return (weights[:, None] * slopes[there].astype(np.float64)).sum(0) / weights.sum()


EVERYBODY = list(range(COUNT))


def test_the_server_learns_the_plain_mean():
    state, record = play(secured())
    step = 8 * 4.0 / 2**24  # a power of two from the largest weight, the clip, the bits
    tolerance = COUNT / 2 * step / sum(range(1, COUNT + 1)) + 1e-8
    assert np.abs(state.shared - mean_of(SLOPES, EVERYBODY)).max() <= tolerance
    assert record["dropped"] == []
    # and the same as the algorithm without the masks
    np.testing.assert_allclose(state.shared, play(walking())[0].shared, atol=1e-6)


@pytest.mark.parametrize("gone", [[0], [2, 6], [1, 3, 5]])
def test_a_client_that_drops_out_after_the_masks_are_made_leaves_no_trace(gone):
    slopes = SLOPES.copy()
    slopes[gone, 0] = np.nan
    state, record = play(secured(), slopes)
    there = [k for k in EVERYBODY if k not in gone]
    np.testing.assert_allclose(state.shared, mean_of(SLOPES, there), atol=1e-6)
    assert sorted(record["dropped"]) == gone


def test_below_the_threshold_nothing_changes():
    slopes = SLOPES.copy()
    slopes[:4] = np.inf
    algorithm = secured(core.with_uplink(
        algorithms.fed_adam(walk, optax.sgd(1.0)), core.clip(4.0)))  # fmt: skip
    before = engine.init(algorithm, jnp.zeros(SIZE))
    after, record = play(algorithm, slopes)
    assert len(record["dropped"]) == 4
    jax.tree.map(np.testing.assert_array_equal, (after.shared, after.server),
                 (before.shared, before.server))  # fmt: skip
    # one more, and it opens
    assert np.abs(play(secured(threshold=3), slopes)[0].shared).max() > 0


def test_more_clients_than_there_is_room_for_change_nothing():
    assert not play(secured(max_clients=6, threshold=4))[0].shared.any()


@pytest.mark.parametrize(
    "plan",
    [
        {"chunk_size": 1},
        {"chunk_size": 3},
        {"sampler": lambda population, rng: np.arange(population)[::-1]},
        {"sampler": lambda population, rng: rng.permutation(population), "chunk_size": 2},
    ],
    ids=["one by one", "chunks of three", "backwards", "shuffled"],
)
def test_how_a_run_is_carried_out_changes_no_bit(plan):
    np.testing.assert_array_equal(play(secured(), **plan)[0].shared, play(secured())[0].shared)


@pytest.mark.heavy
def test_the_host_executor_computes_the_same():
    """Up to the rounding of floats before they are codes, and after."""
    one, other = (play(secured(), **plan)[0].shared for plan in ({}, {"executor": host}))
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.heavy
def test_devices_change_no_bit():
    code = (
        "from tests.privacy.secure.test_sums import *;"
        "from fedjax_post.simulate.mesh import make_mesh, on_mesh;"
        "two = play(secured(), executor=on_mesh(make_mesh('clients:2')))[0].shared;"
        "np.testing.assert_array_equal(two, play(secured())[0].shared)"
    )
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    env = os.environ | {"XLA_FLAGS": flags, "NPROC": "8", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def uploads_of(algorithm, slopes, round=0):
    """What every client of one round sends."""
    clients = walkers(slopes)
    data = [clients.visit(k, np.random.default_rng(0)) for k in range(len(slopes))]
    data = jax.tree.map(lambda *x: jnp.stack(x), *data)
    ids = jnp.arange(len(slopes))
    contexts = contexts_of(jax.random.key(0), round, ids)
    visit = partial(engine.visit_client, algorithm, None, jnp.zeros(slopes.shape[1]))
    state = engine.ClientState((), ())
    return jax.jit(jax.vmap(lambda d, c: visit(state, d, c)[0]))(data, contexts)


def chi_square(words):
    """The p-value of the words' bytes being uniform."""
    counts = np.bincount(np.asarray(words, "<u4").view(np.uint8), minlength=256)
    return scipy.stats.chisquare(counts).pvalue


def test_single_uploads_are_uniform_and_unmasked_ones_are_not():
    slopes = RNG.normal(size=(3, 20_000)).astype(np.float32) * 0.01
    sent = uploads_of(secured(threshold=2), slopes)
    for codes in sent.codes:
        assert 1e-4 < chi_square(codes) < 1 - 1e-4
    assert chi_square(sent.codes[0] + sent.codes[1]) > 1e-4  # two of three are masked still
    plain = sent.codes.sum(0, dtype=jnp.uint32)  # of all, only their own masks are left
    assert chi_square(plain) > 1e-4
    opened = play(secured(threshold=2), slopes)[0].shared
    assert chi_square((opened * 2**24).astype(jnp.int32).astype(jnp.uint32)) < 1e-12


def test_masks_are_new_in_every_round_and_differ_between_clients():
    one, other = (uploads_of(secured(), SLOPES, round=r).codes for r in (0, 1))
    assert (one != other).mean() > 0.99
    same = uploads_of(secured(), np.zeros_like(SLOPES)).codes
    assert len(np.unique(same)) == same.size


@pytest.mark.heavy
def test_rounds_of_any_cohort_open():
    """Poisson cohorts: sizes differ, and so do the lanes of padding."""
    algorithm = secured(threshold=2)
    plan = {"sampler": fp.poisson(4), "chunk_size": 3, "rounds": 4}
    plain, masked = (play(a, **plan)[0].shared for a in (walking(), algorithm))
    np.testing.assert_allclose(masked, plain, atol=1e-6)


@pytest.mark.heavy
def test_a_sweep_masks_every_run():
    plan = fp.Plan(chunk_size=2)
    make = lambda rate: secure_sum(
        core.with_uplink(algorithms.fed_avg(toy_loss, optax.sgd(rate)), core.clip(1.0)),
        threshold=2, max_clients=6, max_weight=16.0, seed=0,
    )  # fmt: skip
    given = {"params": toy_params(), "rounds": 1, "plan": plan}
    grid = Grid({"rate": [0.01, 0.1]}, seeds=(0, 1))
    swept = list(sweep(make, toy_model(), toy_clients(), grid=grid, **given))[-1][0]
    alone = list(fp.run(make(0.1), toy_model(), toy_clients(), **given))[-1][0]
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=1e-6), run_of(swept, 0, 1).shared, alone.shared
    )


def test_bytes_are_those_of_uploads_keys_and_shares():
    plain, masked = (play(a)[1] for a in (walking(), secured()))
    # a code for each float, one for the weight, and three numbers of the seat
    assert masked["bytes_up"] - plain["bytes_up"] == COUNT * (4 + 12 + 64 + 6 * 86 + COUNT * 37)
    assert masked["bytes_down"] - plain["bytes_down"] == COUNT * (COUNT * 68 + 6 * 86 + 1)


@pytest.mark.parametrize("weigh_fn", [core.uniformly, core.by_examples])
def test_with_equal_weights_under_privacy_it_is_the_fixed_mean(weigh_fn):
    private = privacy.private(
        walking(core.plain(), weigh_fn), clip_norm=0.2, noise_multiplier=0.0, cohort_size=5, seed=0
    )
    np.testing.assert_allclose(play(secured(private))[0].shared, play(private)[0].shared, atol=1e-6)


@pytest.mark.heavy
def test_noise_of_clients_has_the_deviation_that_is_accounted():
    """z times the bound, in the sum of `threshold` clients; more clients add more."""
    zeros = np.zeros((4, 5000), np.float32)
    private = privacy.private(
        walking(core.plain()), clip_norm=0.5, noise_multiplier=0.0, cohort_size=4, seed=0
    )
    shares = {"max_clients": 4, "noise_multiplier": 1.5}
    for threshold, growth in ((4, 1.0), (2, 2.0)):
        drawn = play(secured(private, threshold=threshold, **shares), zeros)[0].shared
        squares = (np.asarray(drawn, np.float64) ** 2).sum() / growth / (1.5 * 0.5 / 4) ** 2
        low, high = scipy.stats.chi2.interval(1 - 1e-6, drawn.size)
        assert low < squares < high


def bfloat16():
    return walking(core.chain(core.clip(1.0), core.cast(jnp.bfloat16)))


REFUSED = [
    (lambda: secured(threshold=1), "threshold=1 must be from 2 to max_clients=7: a sum of one"),
    (lambda: secured(threshold=8), "threshold=8 must be from 2 to max_clients=7"),
    (lambda: secured(max_weight=0.0), "max_weight must be positive"),
    (lambda: secured(bits=30), "bits must be from 1 to 24, got 30"),
    (lambda: secured(noise_multiplier=-1.0), "noise_multiplier must be finite and not negative"),
    (lambda: secured(noise_multiplier=1.0), "needs an aggregate that counts every client alike"),
    (lambda: secured(bfloat16()), "the sum of their messages does not decode"),
    (lambda: secured(walking(core.top_k(0.1))), "the sum of their messages does not decode"),
    (lambda: secured(walking(core.plain())), "needs a bound on what a client sends"),
    (lambda: secured(walking(core.error_feedback(core.clip(1.0)))), "leave error_feedback out"),
    (
        lambda: secured(core.with_aggregate(walking(), core.coordinate_median())),
        "its server needs single uploads",
    ),
    (lambda: core.with_aggregate(secured(), core.krum(1)), "its uploads are masked"),
    (lambda: core.with_uplink(secured(), core.cast(jnp.bfloat16)), "its uploads are masked"),
    (
        lambda: privacy.private(
            secured(), clip_norm=1.0, noise_multiplier=1.0, cohort_size=2, seed=0
        ),
        "its uploads are masked",
    ),
    (lambda: secured(secured()), "its uploads are masked"),
    (
        lambda: play(secured(), buffer=asynchronous.Buffer(3, 2, 0.0)),
        "its masks are those of the clients of one round",
    ),
]


@pytest.mark.parametrize(("make", "said"), REFUSED)
def test_what_needs_single_uploads_or_could_overflow_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_values_that_are_not_numbers_are_refused():
    whole = walking()
    whole = whole._replace(
        client=whole.client._replace(
            update=lambda *visit: (core.Upload(jnp.zeros(3, jnp.int32), jnp.float32(1)), (), {})
        ),
        value_like=lambda shared: jax.ShapeDtypeStruct((3,), jnp.int32),
    )
    with pytest.raises(ValueError, match="it sends values of type int32"):
        play(secured(whole))


def test_codes_that_are_too_coarse_for_noise_are_refused():
    private = privacy.private(
        walking(core.plain()), clip_norm=0.5, noise_multiplier=0.0, cohort_size=4, seed=0
    )
    with pytest.raises(ValueError, match="codes of 4 bits are too coarse for noise on 20 entries"):
        play(secured(private, bits=4, noise_multiplier=1.0))
