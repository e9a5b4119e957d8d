"""Laws of noise: what it covers, its distribution, and the algorithms that allow it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from playing import play

import fedjax_post as fp
from fedjax_post import algorithms, core, privacy
from fedjax_post.core import engine, uniformly
from fedjax_post.core.algorithm import no_context
from fedjax_post.simulate.host import host
from fedjax_post.simulate.sweep import Grid, run_of, sweep
from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params

NUM_CLIENTS = len(toy_clients())
SGD = optax.sgd(0.05)
BASES = {
    "fed_avg": lambda: algorithms.fed_avg(toy_loss, SGD),
    "fed_adam": lambda: algorithms.fed_adam(toy_loss, SGD),
    "scaffold": lambda: algorithms.scaffold(toy_loss, 0.05, participation=1.0),
    "ditto": lambda: algorithms.ditto_fed_avg(toy_loss, SGD),
}


def guarded(name="fed_avg", *, clip=1e6, noise=0.0, cohort_size=NUM_CLIENTS, link=None, seed=0):
    base = BASES[name]()
    if link is not None:
        base = core.with_uplink(base, link)
    return privacy.private(
        base, clip_norm=clip, noise_multiplier=noise, cohort_size=cohort_size, seed=seed
    )


def assert_close(one, other, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), one, other)


@pytest.mark.heavy
def test_without_noise_and_clip_it_is_averaging_with_equal_weights():
    plain = play(algorithms.fed_avg(toy_loss, SGD, weigh_fn=uniformly))
    assert_close(play(guarded()).shared, plain.shared, rtol=1e-5)


@pytest.mark.parametrize("name", BASES)
def test_all_that_is_noised_is_the_mean_and_once(name):
    """The state with noise z is a function of the state without, whoever the algorithm is."""
    algorithm, plain = guarded(name, noise=2.0), guarded(name)
    state = engine.init(plain, toy_params())
    value = jax.tree.map(lambda x: 0.1 + jnp.zeros(x.shape), plain.value_like(state.shared))
    noisy_state = engine.init(algorithm, toy_params())
    drawn = noise_of(value)
    total = lambda x: engine.Total(x, jnp.float32(1))
    expected = engine.serve(plain, total(optax.tree.add(value, drawn)), state)
    found = engine.serve(algorithm, total(value), noisy_state)
    assert_close(found.shared, expected.shared, rtol=1e-5)
    assert found.server.rounds == 1


def noise_of(like, rounds=0):
    """What a server adds to a mean of zeros, seen through a server that keeps the value."""
    seen = privacy.private(
        algorithms.fed_avg(toy_loss, SGD)._replace(server=core.keep_latest()),
        clip_norm=1e6, noise_multiplier=2.0, cohort_size=NUM_CLIENTS, seed=0,
    )  # fmt: skip
    zeros = jax.tree.map(jnp.zeros_like, like)
    state = seen.server.init(zeros)._replace(rounds=jnp.int32(rounds))
    return seen.server.update(zeros, state, zeros)[0]


def test_noise_is_drawn_anew_for_each_leaf_and_round():
    like = {"b": jnp.zeros(2000), "c": jnp.zeros(2000)}
    rounds = [noise_of(like, rounds=n) for n in range(3)]
    flat = np.stack([np.ravel(x) for tree in rounds for x in jax.tree.leaves(tree)])
    correlation = np.corrcoef(flat) - np.eye(len(flat))
    assert np.abs(correlation).max() < 5 / math.sqrt(flat.shape[1])


SIZE = 6000
WIRES = {  # a link, and how far what decodes may exceed what is sent: the links' own tables
    "nothing": (None, 1.0),
    "bfloat16": (core.cast(jnp.bfloat16), 1 + 2**-7),
    "int4": (core.quantize(4), (1 + math.sqrt(128) / 7) * (1 + 2**-8 + 2**-16)),
    "a half of the entries": (core.random_k(0.5), 2 * (1 + 2**-8 + 2**-16)),
}


def measured(algorithm, slopes, executor=None):
    """What one round adds to zeros, when clients walk by the slopes that they have."""
    arrays = [{"slope": np.full((1, SIZE), slope, np.float32)} for slope in slopes]
    steps = fp.run(
        algorithm, None, fp.ArrayClients(arrays, batch_size=1, local_steps=1),
        params=jnp.zeros(SIZE), rounds=1,
        plan=fp.Plan() if executor is None else fp.Plan(executor=executor),
    )  # fmt: skip
    return np.asarray(fp.deployed(algorithm, None, list(steps)[-1][0])[1], np.float64)


def walk(params, model, batch, key):
    del model, key
    return -batch["slope"][0] @ params, {}


def assert_normal(drawn, deviation):
    """Independent normal numbers of this deviation: their squares, their mean and their form."""
    low, high = scipy.stats.chi2.interval(1 - 1e-6, drawn.size)
    assert low < (drawn**2).sum() / deviation**2 < high
    assert abs(drawn.mean()) < 5 * deviation / math.sqrt(drawn.size)
    assert scipy.stats.kstest(drawn / deviation, "norm").pvalue > 1e-4


@pytest.mark.parametrize("wire", WIRES)
def test_noise_has_the_deviation_of_mcmahans_algorithm_1(wire):
    """sigma = z S / (q W), S what one client may move the sum by, q W the expected cohort."""
    link, growth = WIRES[wire]
    base = algorithms.fed_avg(walk, optax.sgd(1.0))
    base = base if link is None else core.with_uplink(base, link)
    noisy = privacy.private(base, clip_norm=3.0, noise_multiplier=0.7, cohort_size=2.5, seed=1)
    assert_normal(measured(noisy, [0.0, 0.0]), 0.7 * 3.0 * growth / 2.5)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["scaffold", "ditto", "host"])
def test_noise_is_added_once_whoever_the_algorithm_is(name):
    base = {
        "scaffold": lambda: algorithms.scaffold(walk, 1.0, participation=1.0),
        "ditto": lambda: algorithms.ditto_fed_avg(walk, optax.sgd(1.0)),
        "host": lambda: algorithms.fed_avg(walk, optax.sgd(1.0)),
    }[name]()
    noisy = privacy.private(base, clip_norm=0.5, noise_multiplier=2.0, cohort_size=4, seed=2)
    executor = host if name == "host" else None
    assert_normal(measured(noisy, [0.0], executor), 2.0 * 0.5 / 4)


@pytest.mark.heavy
def test_the_account_is_of_the_noise_and_the_movement_that_are_measured():
    """dp_accounting, given what a run shows, charges what `epsilon_of` says."""
    import dp_accounting
    from dp_accounting import pld

    make = lambda noise: privacy.private(
        algorithms.fed_avg(walk, optax.sgd(1.0)),
        clip_norm=3.0, noise_multiplier=noise, cohort_size=2, seed=3,
    )  # fmt: skip
    noise = measured(make(1.5), [0.0, 0.0]).std()
    movement = np.linalg.norm(measured(make(0.0), [1e30, 0.0]))
    event = dp_accounting.PoissonSampledDpEvent(
        0.1, dp_accounting.GaussianDpEvent(noise / movement)
    )
    account = pld.PLDAccountant()
    account.compose(dp_accounting.SelfComposedDpEvent(event, 10))
    told = privacy.epsilon_of(
        1.5, privacy.accounts.poisson(cohort_size=2, population=20), delta=1e-5, rounds=10
    )
    # a deviation of 6000 numbers is known to a hundredth
    assert told == pytest.approx(account.get_epsilon(1e-5), rel=0.05)


LINKS = {
    "nothing": None,
    "cast": core.cast(jnp.bfloat16),
    "top_k": core.top_k(0.5),
    "quantize": core.quantize(4),
    "random_k, cast": core.chain(core.random_k(0.5), core.cast(jnp.bfloat16)),
}


@pytest.mark.parametrize("scale", [1e-3, 1e6, 1e38, math.nan])
@pytest.mark.parametrize("name", LINKS)
def test_no_client_moves_the_mean_by_more_than_the_bound(name, scale):
    algorithm = guarded(clip=0.3, link=LINKS[name], cohort_size=4)
    link, rng = algorithm.uplink, np.random.default_rng(0)
    like = jax.tree.map(jnp.asarray, {"a": np.zeros((8, 6), np.float32), "b": np.zeros(5, "f")})
    ctx = no_context()

    def sent(seed):
        value = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), like)
        own = ctx._replace(key=jax.random.key(seed))
        message, _ = link.encode(optax.tree.scale(scale, value), None, link.init(like), own)
        return link.decode(message, like)

    values = jax.tree.map(lambda *x: jnp.stack(x), *[sent(i) for i in range(5)])
    finite = jnp.stack([jnp.isfinite(v).reshape(5, -1).all(1) for v in jax.tree.leaves(values)])
    weights = finite.all(0) * jnp.arange(1.0, 6.0)  # as the engine has it, and unequal

    def mean(weights):
        total = algorithm.aggregate.init(like, 5)
        return algorithm.aggregate.finish(algorithm.aggregate.add(total, values, weights))

    limit = link.bound(math.inf) / 4
    for client in range(5):
        less = optax.tree.sub(mean(weights), mean(weights.at[client].set(0.0)))
        assert optax.tree.norm(less) <= limit * (1 + 1e-5)


def test_a_round_of_nobody_is_noised_too():
    """Else the cohort's size would show."""
    algorithm = guarded(noise=1.0, clip=1.0)
    nobody = lambda population, rng: np.zeros(0, np.int64)
    before, after = toy_params(), play(algorithm, 1, sampler=nobody, chunk_size=2).shared
    moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).min()), before, after)
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.heavy
@pytest.mark.parametrize("how", [{"chunk_size": 1}, {"chunk_size": 4}, {"executor": host}])
def test_how_a_run_is_carried_out_does_not_change_its_noise(how):
    algorithm = guarded(noise=1.0, clip=0.1)
    assert_close(play(algorithm, **how).shared, play(algorithm).shared, atol=1e-5)


@pytest.mark.heavy
def test_seeds_and_rounds_draw_differently_and_one_seed_alike():
    one, again, other = (play(guarded(noise=1.0, seed=s), 1).shared for s in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    gap = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), one, other)
    assert min(jax.tree.leaves(gap)) > 0


@pytest.mark.heavy
def test_a_resumed_run_goes_on_with_its_noise(tmp_path):
    algorithm = guarded("scaffold", noise=1.0, clip=0.1)
    straight = play(algorithm, 5)
    play(algorithm, 2, directory=tmp_path)
    resumed = play(algorithm, 5, directory=tmp_path, resume=True)
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)


@pytest.mark.heavy
def test_noise_may_be_swept():
    make = lambda noise: guarded(noise=noise, clip=0.1)
    steps = sweep(
        make, toy_model(), toy_clients(), grid=Grid({"noise": [0.0, 1.0]}),
        params=toy_params(), rounds=2,
    )  # fmt: skip
    state = list(steps)[-1][0]
    for i, noise in enumerate([0.0, 1.0]):
        alone = play(guarded(noise=noise, clip=0.1), 2)
        assert_close(run_of(state, 0, i).shared, alone.shared, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: guarded(clip=0.0), "clip_norm must be positive and finite, got 0"),
        (lambda: guarded(clip=math.inf), "clip_norm must be positive and finite, got inf"),
        (lambda: guarded(clip=math.nan), "clip_norm must be positive and finite, got nan"),
        (lambda: guarded(noise=-1.0), "noise_multiplier must be finite and not negative, got -1"),
        (lambda: guarded(noise=math.inf), "noise_multiplier must be finite and not negative"),
        (lambda: guarded(link=core.clip(1.0)), "leave clip out of the links"),
        (lambda: guarded(link=core.error_feedback(core.sign())), "leave error_feedback and ef21"),
        (lambda: core.with_aggregate(guarded(), core.krum(1)), "its noise covers a fixed mean"),
        (lambda: core.with_uplink(guarded(), core.sign()), "its noise covers the links"),
    ],
)
def test_what_no_noise_covers_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_values_with_integers_are_refused():
    like = {"a": jnp.zeros(3), "b": jnp.zeros(2, jnp.int32)}
    with pytest.raises(ValueError, match="it sends values of type int32"):
        guarded().uplink.init(like)


def test_late_clients_are_refused():
    plan = {"buffer": fp.simulate.asynchronous.Buffer(2, 3, 0.0)}
    with pytest.raises(ValueError, match="its privacy accounting assumes"):
        play(guarded(), **plan)
