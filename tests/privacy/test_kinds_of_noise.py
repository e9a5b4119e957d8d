"""Noise of each kind, measured in what is drawn, against the numbers that its account assumes."""

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
from fedjax_post.core.algorithm import no_context
from fedjax_post.core.local import of_part
from fedjax_post.privacy.adaptive import Clipped, Marked, split_noise
from fedjax_post.simulate.cohort import cyclic, draw
from fedjax_post.testing import toy_clients, toy_loss, toy_model, toy_params

SIZE, NUM_CLIENTS = 6000, len(toy_clients())
SGD = optax.sgd(0.05)


def walk(params, model, batch, key):
    del model, key
    return -(batch["slope"] @ params).mean(), {}


def rounds_of(algorithm, slopes, rounds=1, start=0.0, **visit):
    """The shared variables after each round, when clients walk by the slopes that they have."""
    arrays = [{"slope": np.full((1, SIZE), slope, np.float32)} for slope in slopes]
    clients = fp.ArrayClients(arrays, batch_size=1, **(visit or {"local_steps": 1}))
    start = jnp.full(SIZE, start, jnp.float32)
    steps = fp.run(algorithm, None, clients, params=start, rounds=rounds)
    return [np.asarray(fp.deployed(algorithm, None, s)[1], np.float64) for s, _ in steps]


def assert_normal(drawn, deviation):
    low, high = scipy.stats.chi2.interval(1 - 1e-6, drawn.size)
    assert low < (drawn**2).sum() / deviation**2 < high
    assert abs(drawn.mean()) < 5 * deviation / math.sqrt(drawn.size)
    assert scipy.stats.kstest(drawn / deviation, "norm").pvalue > 1e-4


WALK = algorithms.fed_avg(walk, optax.sgd(1.0), weigh_fn=core.uniformly)


# --- a clip norm that follows a quantile


def adaptive(base=WALK, *, noise, clip=3.0, quantile=0.5, cohort_size=2.5, seed=1):
    return privacy.private(
        base, clip_norm=clip, noise_multiplier=noise, cohort_size=cohort_size, seed=seed,
        clip_quantile=quantile,
    )  # fmt: skip


@pytest.mark.heavy
def test_noise_of_values_and_of_the_count_are_one_gaussian():
    """Theorem 1 of arXiv:1905.03871: z^-2 is the sum of z_values^-2 and (2 s_count)^-2."""
    values = rounds_of(adaptive(noise=0.7), [0.0, 0.0])[0]
    server = adaptive(algorithms.fed_avg(toy_loss, SGD), noise=0.7).server
    shared = Clipped(jnp.zeros(1), jnp.float32(3.0))
    start, nobody = server.init(shared), Marked(jnp.zeros(1), jnp.float32(0.0))

    def norm_after(round):
        return server.update(nobody, start._replace(rounds=round), shared)[0].norm

    # The clip norm moves by exp(-0.2 (b - 1/2)), b the noised share of clients below it
    moved = np.asarray(jax.vmap(norm_after)(jnp.arange(SIZE)), np.float64)
    counts = np.log(moved / 3.0) / -0.2 * 2.5
    assert_normal(counts, 0.7)  # a twentieth of the cohort would be less than z
    measured = (values / 3.0 * 2.5).std()
    together = measured**-2 + (2 * np.std(counts)) ** -2
    assert together**-0.5 == pytest.approx(0.7, rel=0.03)
    assert_normal(values, 0.7 * (1 - 1 / 4) ** -0.5 * 3.0 / 2.5)


@pytest.mark.parametrize("cohort_size", [3, 100])
@pytest.mark.parametrize("noise", [0.5, 4.0])
def test_the_parts_of_the_noise_cost_what_the_whole_costs(noise, cohort_size):
    values, count = (float(x) for x in split_noise(noise, cohort_size))
    assert (values**-2 + (2 * count) ** -2) ** -0.5 == pytest.approx(noise, rel=1e-6)
    assert noise < values < 1.16 * noise
    assert count == pytest.approx(max(cohort_size / 20, noise))


@pytest.mark.parametrize("quantile", [0.2, 0.8])
def test_without_noise_the_clip_norm_settles_at_the_quantile(quantile):
    """Five clients whose values have norms 1 to 5: with q, at most q of them are below."""
    unit = 1 / math.sqrt(SIZE)
    algorithm = adaptive(noise=0.0, clip=2.5, quantile=quantile - 0.1, cohort_size=5)
    arrays = [{"slope": np.full((1, SIZE), k * unit, np.float32)} for k in range(1, 6)]
    clients = fp.ArrayClients(arrays, batch_size=1, local_steps=1)
    *_, (state, _) = fp.run(algorithm, None, clients, params=jnp.zeros(SIZE), rounds=50)
    assert abs(float(state.shared.norm) - quantile * 5) < 0.2 * quantile * 5


@pytest.mark.heavy
def test_a_huge_clip_norm_that_follows_a_quantile_is_averaging():
    plain = play(algorithms.fed_avg(toy_loss, SGD, weigh_fn=core.uniformly), 2)
    made = adaptive(algorithms.fed_avg(toy_loss, SGD), noise=0.0, clip=1e4, cohort_size=NUM_CLIENTS)
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, play(made, 2).shared.inner, plain.shared)


@pytest.mark.parametrize("name", ["scaffold", "ditto_fed_avg"])
def test_a_clip_norm_that_follows_a_quantile_is_of_any_algorithm(name):
    base = {
        "scaffold": lambda: algorithms.scaffold(toy_loss, 0.05, participation=1.0),
        "ditto_fed_avg": lambda: algorithms.ditto_fed_avg(toy_loss, SGD),
    }[name]()
    made = adaptive(base, noise=1.0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(play(made).shared))


@pytest.mark.parametrize("link", [None, core.cast(jnp.bfloat16), core.quantize(4)])
def test_no_client_sends_more_than_the_bound_and_a_half(link):
    base = WALK if link is None else core.with_uplink(WALK, link)
    algorithm = adaptive(base, noise=1.0)
    own = core.clip(1.0) if link is None else core.chain(core.clip(1.0), link)
    value = Marked(jnp.full(SIZE, 1e20), jnp.float32(7.0))
    replica = Clipped(jnp.zeros(SIZE), jnp.float32(1.0))
    sent, ctx = algorithm.uplink, no_context()
    message, _ = sent.encode(value, replica, sent.init(value), ctx)
    found = sent.decode(message, value)
    assert float(jnp.linalg.norm(found.value)) <= own.bound(math.inf)
    assert float(found.below) == 0.5
    assert sent.bound(math.inf) == pytest.approx(math.hypot(own.bound(math.inf), 0.5))


def test_the_clip_norm_and_the_mark_are_billed():
    data = toy_clients().visit(0, np.random.default_rng(0))
    base = algorithms.fed_avg(toy_loss, SGD)
    cost = lambda made: core.wire_bytes(
        made, toy_model(), core.engine.init(made, toy_params()), data
    )
    plain, marked = cost(base), cost(adaptive(base, noise=1.0))
    assert (marked.up - plain.up, marked.down - plain.down) == (4, 4)


# --- noise that is correlated over rounds


@pytest.mark.heavy
def test_correlated_noise_is_that_of_a_banded_matrix():
    """C times the noise of all rounds is independent, for a C written out here."""
    toeplitz = pytest.importorskip("jax_privacy.matrix_factorization.toeplitz")
    rounds, bands = 6, 3
    made = privacy.private(
        WALK, clip_norm=2.0, noise_multiplier=1.5, cohort_size=4, seed=0,
        correlation=privacy.banded(rounds=rounds, bands=bands),
    )  # fmt: skip
    noise = np.diff([np.zeros(SIZE), *rounds_of(made, [0.0], rounds)], axis=0)
    coefficients = np.asarray(toeplitz.optimize_banded_toeplitz(rounds, bands), np.float64)
    matrix = sum(c * np.eye(rounds, k=-i) for i, c in enumerate(coefficients))
    matrix /= np.linalg.norm(matrix, axis=0)  # one client moves C x by its bound, if it rests
    white = matrix @ noise
    assert_normal(white.ravel(), 1.5 * 2.0 / 4)
    assert np.abs(np.corrcoef(white) - np.eye(rounds)).max() < 5 / math.sqrt(SIZE)
    # What it is for: the sum of all rounds has less noise than of independent rounds
    assert noise.sum(0).std() < 0.8 * math.sqrt(rounds) * 1.5 * 2.0 / 4


def test_columns_of_clients_that_rest_are_orthogonal():
    """So that a client that takes part k times moves C x by at most the root of k bounds."""
    pytest.importorskip("jax_privacy")
    rounds, bands = 7, 3
    made = privacy.banded(rounds=rounds, bands=bands)
    memory, rows = made.init(jax.ShapeDtypeStruct((rounds,), jnp.float32)), []
    for t in range(rounds):
        row, memory = made.next(jnp.eye(rounds)[t], memory)
        rows.append(np.asarray(row, np.float64))
    matrix = np.linalg.inv(rows)
    gram = matrix.T @ matrix
    np.testing.assert_allclose(np.diag(gram), 1, atol=1e-5)
    apart = np.abs(np.subtract.outer(range(rounds), range(rounds))) >= bands
    np.testing.assert_allclose(gram[apart], 0, atol=1e-5)


def test_one_band_is_independent_noise():
    given = {"clip_norm": 0.1, "noise_multiplier": 1.0, "cohort_size": 4, "seed": 0}
    base = algorithms.fed_avg(toy_loss, SGD)
    plain = play(privacy.private(base, **given))
    one = play(privacy.private(base, **given, correlation=privacy.banded(rounds=3, bands=1)))
    jax.tree.map(np.testing.assert_array_equal, plain.shared, one.shared)


@pytest.mark.heavy
def test_correlated_noise_goes_on_after_a_restart(tmp_path):
    pytest.importorskip("jax_privacy")
    made = privacy.private(
        algorithms.fed_avg(toy_loss, SGD), clip_norm=0.1, noise_multiplier=1.0, cohort_size=4,
        seed=0, correlation=privacy.banded(rounds=4, bands=2),
    )  # fmt: skip
    straight = play(made, 4)
    play(made, 2, directory=tmp_path)
    resumed = play(made, 4, directory=tmp_path, resume=True)
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)


def test_clients_of_a_cyclic_sampler_rest_between_visits():
    sampler, seen = cyclic(2.5, groups=3), {}
    sizes = []
    for round in range(300):
        cohort = draw(sampler, 11, seed=0, round=round)
        sizes.append(len(cohort))
        for client_id in cohort.tolist():
            assert round - seen.get(client_id, -3) >= 3
            seen[client_id] = round
    assert len(seen) == 11
    assert abs(np.mean(sizes) - 2.5) < 5 * math.sqrt(2.5 / 300)


# --- local privacy


@pytest.mark.heavy
def test_noise_of_an_upload_has_its_deviation_and_is_each_clients_own():
    made = privacy.private_uploads(WALK, clip_norm=2.0, noise_multiplier=3.0)
    one = rounds_of(made, [0.0])[0]
    assert_normal(one, 3.0 * 2.0)
    assert_normal(rounds_of(made, [0.0] * 4)[0], 3.0 * 2.0 / 2)  # of a mean over four
    again = np.diff([np.zeros(SIZE), *rounds_of(made, [0.0], 2)], axis=0)
    assert abs(np.corrcoef(again)[0, 1]) < 5 / math.sqrt(SIZE)


def test_what_a_link_forgets_is_noised_first():
    """Error feedback after the noise is post-processing: what it keeps is private already."""
    base = core.with_uplink(WALK, core.error_feedback(core.top_k(0.5)))
    made = privacy.private_uploads(base, clip_norm=2.0, noise_multiplier=3.0)
    sent = rounds_of(made, [0.0])[0]
    assert (sent != 0).sum() == SIZE // 2
    assert np.abs(sent[sent != 0]).min() > 3.0  # the larger half of normal numbers


def test_without_noise_and_clip_uploads_are_weighed_equally():
    plain = play(algorithms.fed_avg(toy_loss, SGD, weigh_fn=core.uniformly)).shared
    made = privacy.private_uploads(
        algorithms.fed_avg(toy_loss, SGD), clip_norm=1e6, noise_multiplier=0.0
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), play(made).shared, plain)


def test_no_upload_moves_by_more_than_twice_the_clip_norm():
    made = privacy.private_uploads(WALK, clip_norm=2.0, noise_multiplier=0.0)
    one, other = rounds_of(made, [1e20])[0], rounds_of(made, [-1e20])[0]
    assert np.linalg.norm(one - other) == pytest.approx(4.0, rel=1e-4)


# --- private rows


def rows_private(clip=1.0, noise=0.0, **given):
    loss = privacy.private_rows(walk, clip_norm=clip, noise_multiplier=noise, **given)
    return algorithms.fed_avg(loss, optax.sgd(1.0), weigh_fn=core.uniformly)


def visit_of(slopes, algorithm, batch_size, **visit):
    arrays = [{"slope": np.asarray(slopes, np.float32)}]
    clients = fp.ArrayClients(arrays, batch_size=batch_size, **visit)
    params = jnp.zeros(np.shape(slopes)[1])
    *_, (state, _) = fp.run(algorithm, None, clients, params=params, rounds=1)
    return np.asarray(fp.deployed(algorithm, None, state)[1], np.float64)


@pytest.mark.parametrize("at_once", [None, 1, 2])
def test_every_row_is_clipped_on_its_own(at_once):
    slopes = [[3.0, 0.0], [0.0, 0.5], [-400.0, 300.0]]
    found = visit_of(slopes, rows_private(clip=1.0, at_once=at_once), 3, local_steps=1)
    expected = np.sum([[1.0, 0.0], [0.0, 0.5], [-0.8, 0.6]], axis=0) / 3
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.heavy
def test_noise_on_gradients_has_the_deviation_of_abadis_algorithm_1():
    zeros = np.zeros((4, SIZE))
    assert_normal(visit_of(zeros, rows_private(2.0, 1.5), 4, local_steps=1), 1.5 * 2.0 / 4)
    # three steps in one visit draw anew
    drawn = visit_of(zeros, rows_private(2.0, 1.5), 4, local_steps=3)
    assert_normal(drawn, math.sqrt(3) * 1.5 * 2.0 / 4)


def test_clients_draw_their_own_noise_on_gradients():
    assert_normal(rounds_of(rows_private(2.0, 1.5), [0.0] * 4)[0], 1.5 * 2.0 / math.sqrt(4))


def test_rows_without_noise_and_clip_train_as_usual():
    plain = algorithms.fed_avg(walk, optax.sgd(1.0), weigh_fn=core.uniformly)
    slopes = np.random.default_rng(0).normal(size=(5, 3))
    found = visit_of(slopes, rows_private(clip=1e6), 2, local_epochs=2)
    np.testing.assert_allclose(found, visit_of(slopes, plain, 2, local_epochs=2), rtol=1e-5)


def test_rows_of_a_factor_alone_may_be_private():
    """FFA-LoRA trains B: only the gradient of B is clipped and noised."""
    part = of_part(
        privacy.private_rows(walk, clip_norm=1.0, noise_multiplier=0.0),
        lambda b: jnp.concatenate([jnp.zeros(1), b]),
    )
    made = algorithms.fed_avg(part, optax.sgd(1.0), weigh_fn=core.uniformly)
    arrays = [{"slope": np.array([[1e6, 3.0]], np.float32)}]
    clients = fp.ArrayClients(arrays, batch_size=1, local_steps=1)
    *_, (state, _) = fp.run(made, None, clients, params=jnp.zeros(1), rounds=1)
    assert float(state.shared[0]) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda loss: algorithms.q_fed_avg(loss, 0.05),
        lambda loss: algorithms.fed_mezo(loss, SGD),
        lambda loss: algorithms.mime_lite(loss, SGD),
        lambda loss: algorithms.scaffold_option_1(loss, 0.05, participation=1.0),
    ],
)
def test_a_loss_with_private_rows_cannot_be_used_around_its_gradient(make):
    loss = privacy.private_rows(toy_loss, clip_norm=1.0, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="evaluates the loss outside local gradient steps"):
        play(make(loss), 1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: adaptive(noise=1.0, quantile=1.0), r"clip_quantile must be in \(0, 1\), got 1"),
        (lambda: privacy.banded(rounds=3, bands=4), "bands=4 must be from 1 to the number of r"),
        (lambda: privacy.private_uploads(WALK, clip_norm=0, noise_multiplier=1), "clip_norm must"),
        (lambda: rows_private(clip=math.inf), "clip_norm must be positive and finite, got inf"),
        (lambda: rows_private(noise=-1.0), "noise_multiplier must be finite and not negative"),
        (lambda: cyclic(0, groups=2), "must be positive, got 0 and 2"),
        (lambda: draw(cyclic(4, groups=3), 11, seed=0, round=0), "lower `cohort_size` to at most"),
    ],
)
def test_numbers_out_of_range_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
