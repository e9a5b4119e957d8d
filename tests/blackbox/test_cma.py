"""CMA-ES against pycma, state for state, and on functions with known minima."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.blackbox import cma

sphere = lambda x: (x**2).sum(-1)
ellipsoid = lambda x: x**2 @ 10.0 ** (6 * jnp.arange(x.shape[-1]) / (x.shape[-1] - 1))
rosenbrock = lambda x: (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(-1)
tell = jax.jit(cma.tell, static_argnames="learn_cov")
FUNCTIONS = {"sphere": sphere, "ellipsoid": ellipsoid, "rosenbrock": rosenbrock}


def pycma(mean, sigma, num_points):
    """Hansen's own code, without its negative weights, beginning from C = I exactly."""
    published = pytest.importorskip("cma", reason="pip install -e '.[test]' brings pycma")
    options = {"popsize": num_points, "CMA_active": False, "verbose": -9, "seed": 1}
    options |= {"CMA_mirrors": 0, "tolfun": 0, "tolx": 0, "tolfunhist": 0, "tolflatfitness": 1e9}
    es = published.CMAEvolutionStrategy(np.asarray(mean), sigma, options)
    dim = len(mean)
    es.sm.C, es.sm.B, es.sm.D = np.eye(dim), np.eye(dim), np.ones(dim)
    return es


@pytest.mark.parametrize(
    ("name", "dim", "num_points"),
    [("ellipsoid", 10, 10), ("rosenbrock", 5, 8), ("sphere", 30, 5), ("ellipsoid", 60, 6)],
)
def test_states_are_those_of_pycma(name, dim, num_points):
    """Told the same points, both hold the same distribution; from 30 on it is decomposed lazily."""
    rng = np.random.default_rng(0)
    with jax.enable_x64():
        mean = rng.normal(size=dim)
        es, search = pycma(mean, 0.7, num_points), cma.init(jnp.asarray(mean), 0.7)
        decomposed = []
        for key in jax.random.split(jax.random.key(0), 25):
            es.ask()  # decomposes, when it is due
            points = cma.ask(search, key, num_points)
            fitness = FUNCTIONS[name](points)
            es.tell(list(np.asarray(points)), list(np.asarray(fitness)), check_points=False)
            search = tell(search, points, fitness)
            decomposed.append(int(search.decomposed))
            found = (search.mean, search.sigma, search.cov, search.path_sigma, search.path_cov)
            wanted = (es.mean, es.sigma, es.sm.C, es.adapt_sigma.ps, es.pc)
            for ours, theirs in zip(found, wanted, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)
    assert (len(set(decomposed)) < 25) == (dim >= 30)


@partial(jax.jit, static_argnames=("name", "num_points", "generations"))
def minimise(name, mean, key, *, sigma, num_points, generations):
    def generation(search, key):
        points = cma.ask(search, key, num_points)
        fitness = FUNCTIONS[name](points)
        return cma.tell(search, points, fitness), fitness.min()

    return jax.lax.scan(generation, cma.init(mean, sigma), jax.random.split(key, generations))[1]


@pytest.mark.heavy
@pytest.mark.parametrize(("name", "goal"), [("sphere", 1e-6), ("ellipsoid", 1e-4)])
def test_it_needs_no_more_evaluations_than_pycma(name, goal):
    """Within a factor of 1.5, the median over seeds, in float32 as it is used."""
    dim, num_points = 10, 10
    mean = jnp.full(dim, 1.0)
    keys = jax.random.split(jax.random.key(0), 5)
    run = lambda key: minimise(name, mean, key, sigma=0.5, num_points=num_points, generations=600)
    best = np.minimum.accumulate(np.asarray(jax.vmap(run)(keys)), 1)
    assert (best[:, -1] <= goal).all()
    ours = np.median((best > goal).sum(1)) * num_points
    needed = []
    for seed in range(1, 6):
        es = pycma(mean, 0.5, num_points)
        es.opts["seed"] = seed
        np.random.seed(seed)
        while es.best.f is None or es.best.f > goal:
            points = es.ask()
            es.tell(points, [float(np.asarray(FUNCTIONS_NUMPY[name](p))) for p in points])
        needed.append(es.countevals)
    assert ours <= 1.5 * np.median(needed)


FUNCTIONS_NUMPY = {
    "sphere": lambda x: (x**2).sum(),
    "ellipsoid": lambda x: (10.0 ** (6 * np.arange(x.size) / (x.size - 1)) * x**2).sum(),
}


def test_it_finds_the_bottom_of_a_bent_valley():
    best = minimise(
        "rosenbrock", jnp.zeros(6), jax.random.key(1), sigma=0.5, num_points=10, generations=600
    )
    assert np.min(best) < 1e-6


def test_the_shape_that_it_learns_is_the_inverse_of_the_curvature():
    """On an ellipsoid the steps become long where it is flat, by the root of the ratio."""
    dim = 5
    search = cma.init(jnp.ones(dim), 0.5)
    curvature = jnp.asarray([1.0, 10.0, 100.0, 1000.0, 1e4])
    for key in jax.random.split(jax.random.key(0), 150):
        points = cma.ask(search, key, 10)
        search = tell(search, points, (curvature[None] * points**2).sum(-1))
    spread = np.sqrt(np.diag(search.cov) * curvature)
    assert spread.max() / spread.min() < 4  # 100 before it learned


@pytest.mark.heavy
def test_a_point_without_a_finite_fitness_was_not_there():
    search, rng = cma.init(jnp.zeros(4), 1.0), np.random.default_rng(0)
    points = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)
    fitness = sphere(points)
    holes = jnp.insert(fitness, 2, jnp.nan), jnp.insert(points, 2, jnp.nan, axis=0)
    first = tell(search, points, fitness)
    second = tell(search, holes[1], holes[0])
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    nothing = tell(search, points, jnp.full(6, jnp.nan))
    assert all(bool(jnp.isfinite(x).all()) for x in nothing)
    np.testing.assert_array_equal(nothing.mean, search.mean)


def test_one_or_two_points_move_the_mean_to_the_better_one():
    search = cma.init(jnp.zeros(3), 1.0)
    points = jnp.asarray([[1.0, 2.0, 3.0], [0.5, 0.5, 0.5]])
    for count in (1, 2):
        told = tell(search, points[:count], sphere(points[:count]))
        np.testing.assert_allclose(told.mean, points[count - 1], rtol=1e-6)


def test_without_learning_its_shape_the_steps_stay_round():
    search, points = cma.init(jnp.zeros(3), 1.0), jax.random.normal(jax.random.key(0), (6, 3))
    round_, learned = (
        tell(search, points, ellipsoid(points), learn_cov=learn) for learn in (False, True)
    )
    np.testing.assert_array_equal(round_.cov, np.eye(3))
    np.testing.assert_array_equal(round_.mean, learned.mean)
    np.testing.assert_array_equal(round_.sigma, learned.sigma)
    assert np.abs(learned.cov - np.eye(3)).max() > 0.1


def test_in_float32_its_axes_stay_positive():
    """Far beyond what the numbers can hold: a curvature of 1e12 between axes."""
    curvature = jnp.asarray([1.0, 1e6, 1e12])
    search = cma.init(jnp.ones(3), 0.5)
    for key in jax.random.split(jax.random.key(0), 300):
        points = cma.ask(search, key, 8)
        search = tell(search, points, (curvature[None] * points**2).sum(-1))
    assert all(bool(jnp.isfinite(x).all()) for x in search)
    assert float(jnp.linalg.eigvalsh(search.root).min()) > 0


def test_rounding_does_not_change_the_points_where_axes_are_alike():
    """After one generation most axes are of one length, and any basis of them would do."""
    search = cma.init(jnp.zeros(12), 1.0)
    points = jax.random.normal(jax.random.key(0), (5, 12))
    told = tell(search, points, sphere(points))
    cov = told.cov * (1 + 1e-7 * jax.random.normal(jax.random.key(1), (12, 12)))
    other = cma.init_from(told.mean, told.sigma, (cov + cov.T) / 2)
    ask = lambda search: cma.ask(search, jax.random.key(2), 6)
    np.testing.assert_allclose(ask(told), ask(other), atol=1e-5)
