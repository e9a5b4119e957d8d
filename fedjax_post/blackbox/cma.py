"""CMA-ES: a search that adapts the covariance of its steps, as pure functions.

Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv:1604.00772, Figure 6 with positive
weights: cumulative step-size adaptation, rank-one and rank-mu updates of the covariance.

    search = init(mean, 0.5)
    for key in jax.random.split(key, 100):
        points = ask(search, key, 12)
        search = tell(search, points, jax.vmap(fn)(points))

Fitness is used only to sort the points. The constants are those of the tutorial's Table 1,
with three exceptions that follow Hansen's own code, pycma 4.5:

- The learning rate of the step path has +3 in its denominator in place of +5.
- The learning rate of the rank-one update shrinks with fewer than six points.
- h_sigma, the condition for the update of the covariance path, is |p_sigma|^2 / n below
  2 + 4 / (n + 1), where the tutorial has |p_sigma| below (1.4 + 2 / (n + 1)) E|N(0, I)|. The left
  side is divided by 1 - (1 - c_sigma)^(2 g), in the tutorial by its root.

pycma without its negative weights gives the same states.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Search(NamedTuple):
    """A normal distribution N(mean, sigma^2 cov) over d numbers, and its evolution paths."""

    mean: jax.Array  # [d], the best guess
    sigma: jax.Array  # (), overall length of a step
    cov: jax.Array  # [d, d]
    path_sigma: jax.Array  # [d], smoothed moves of the mean, of unit covariance
    path_cov: jax.Array  # [d], smoothed moves of the mean
    root: jax.Array  # [d, d], the symmetric root of `cov` at its last decomposition
    unroot: jax.Array  # [d, d], its inverse
    generation: jax.Array  # (), int32: calls of `tell` so far
    decomposed: jax.Array  # (), int32: the generation in which the two roots were computed


class Rates(NamedTuple):
    """Constants of one generation, which depend on the numbers of points and of dimensions."""

    effective: jax.Array  # mu_eff: effective number of points in the new mean
    path_sigma: jax.Array  # c_sigma
    damping: jax.Array  # d_sigma
    path_cov: jax.Array  # c_c
    rank_one: jax.Array  # c_1
    rank_mu: jax.Array  # c_mu


def init(mean: jax.Array, sigma: jax.Array | float) -> Search:
    """Returns a search around `mean`, `[d]`, with steps of length `sigma` in each coordinate.

    The dtype is that of `mean`. A search holds 3 d^2 numbers: 3 MB in float32 for d = 500.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_post.blackbox import cma
    >>> @jax.jit
    ... def step(search, key):
    ...     points = cma.ask(search, key, 12)
    ...     return cma.tell(search, points, (points**2).sum(1))
    >>> search = cma.init(jnp.ones(3), 0.5)
    >>> for key in jax.random.split(jax.random.key(0), 60):
    ...     search = step(search, key)
    >>> bool(abs(search.mean).max() < 0.01)
    True
    """
    return init_from(mean, sigma, jnp.eye(mean.size, dtype=mean.dtype))


def init_from(mean: jax.Array, sigma: jax.Array | float, cov: jax.Array) -> Search:
    """Returns a search that starts from a given distribution, with empty evolution paths.

    Args:
      mean: `[d]`, the initial mean.
      sigma: (), the overall step length, positive.
      cov: `[d, d]`, the initial covariance, symmetric and positive definite.
    """
    zero, start = jnp.zeros_like(mean), jnp.zeros((), jnp.int32)
    sigma = jnp.asarray(sigma, mean.dtype)
    return Search(mean, sigma, cov, zero, zero, *roots(cov), start, start)


def ask(search: Search, key: jax.Array, num_points: int) -> jax.Array:
    """Returns points to evaluate, `[num_points, d]`, drawn from the search's distribution.

    The draw uses the symmetric root of the covariance, so that the points do not depend on the
    axes that a decomposition chooses if several axes have the same length.

    Args:
      search: the search so far.
      key: a PRNG key.
      num_points: n, the points of this generation.
    """
    z = jax.random.normal(key, (num_points, search.mean.size), search.mean.dtype)
    with jax.default_matmul_precision("highest"):
        steps = z @ search.root
    return search.mean[None] + search.sigma * steps


def tell(
    search: Search, points: jax.Array, fitness: jax.Array, *, learn_cov: bool = True
) -> Search:
    """Returns the search updated with the fitness of points.

    The covariance is decomposed only as often as its changes require, with many dimensions once
    in many generations. This also saves work under vmap if all lanes are in the same generation.

    Args:
      search: the search so far.
      points: `[n, d]`, from `ask` or from elsewhere.
      fitness: `[n]`, less is better; a point whose fitness is not finite is ignored.
      learn_cov: whether to adapt the covariance too; otherwise only the mean and sigma.

    Returns:
      The next search. If no fitness is finite, its mean is unchanged and sigma shrinks.
    """
    with jax.default_matmul_precision("highest"):
        is_valid = jnp.isfinite(fitness)
        weights = recombination(is_valid.sum(), fitness.size).astype(search.mean.dtype)
        order = jnp.argsort(jnp.where(is_valid, fitness, jnp.inf))
        moves = jnp.where(is_valid[:, None], points - search.mean[None], 0)[order] / search.sigma
        rates = rates_of(weights, is_valid.sum(), search.mean.size)
        move = weights @ moves
        search = _update_path(search, move, rates)
        moved = search._replace(mean=search.mean + search.sigma * move)
        if learn_cov:
            moved = _update_cov(moved, moves, weights, rates)
            few = rates_of(recombination(fitness.size, fitness.size), fitness.size, move.size)
            moved = _decompose(moved, 0.1 / (few.rank_one + few.rank_mu) / move.size)
    change = jnp.linalg.norm(search.path_sigma) / _expected_norm(move.size) - 1
    change = jnp.clip(rates.path_sigma / rates.damping * change, -1, 1)
    return moved._replace(sigma=search.sigma * jnp.exp(change))


def recombination(count: jax.Array | int, size: int) -> jax.Array:
    """Returns the weights of `size` sorted points, of which the first `count` are valid.

    Eq. 49 to 53. The better half of the valid points has positive weights, which sum to one.
    """
    ranks = jnp.arange(1, size + 1)
    raw = jnp.log((count + 1) / 2) - jnp.log(ranks)
    is_single = (ranks == 1) & (count == 1)  # a single point is its own better half
    raw = jnp.where(is_single, 1.0, jnp.where(ranks <= count, jnp.maximum(raw, 0), 0))
    return raw / jnp.maximum(raw.sum(), jnp.finfo(raw.dtype).tiny)


def rates_of(weights: jax.Array, count: jax.Array | int, dim: int) -> Rates:
    """Returns the constants of a generation: eq. 55 to 58.

    Args:
      weights: `[n]`, the recombination weights.
      count: the number of valid points.
      dim: d, the number of dimensions.
    """
    mu = 1 / jnp.maximum((weights**2).sum(), 1 / weights.size)
    rank_one = 2 / ((dim + 1.3) ** 2 + mu) * jnp.minimum(1, count / 6)
    rank_mu = 2 * (0.25 + mu + 1 / mu - 2) / ((dim + 2) ** 2 + mu)
    path_sigma = (mu + 2) / (dim + mu + 3)
    return Rates(
        effective=mu,
        path_sigma=path_sigma,
        damping=1 + 2 * jnp.maximum(0, jnp.sqrt((mu - 1) / (dim + 1)) - 1) + path_sigma,
        path_cov=(4 + mu / dim) / (dim + 4 + 2 * mu / dim),
        rank_one=rank_one,
        rank_mu=jnp.minimum(1 - rank_one, rank_mu),
    )


def roots(cov: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the symmetric root of a covariance `[d, d]`, and the inverse of that root.

    Rounding may make an eigenvalue zero or negative. All eigenvalues are therefore raised to at
    least the largest one times the machine epsilon.
    """
    values, basis = jnp.linalg.eigh(cov)
    scale = jnp.sqrt(jnp.maximum(values, jnp.finfo(cov.dtype).eps * values[-1]))
    with jax.default_matmul_precision("highest"):
        return (basis * scale[None]) @ basis.T, (basis / scale[None]) @ basis.T


def _update_path(search: Search, move: jax.Array, rates: Rates) -> Search:
    """Returns the search with a move added to the path of the step length: eq. 43."""
    c = rates.path_sigma
    unit = jnp.sqrt(c * (2 - c) * rates.effective) * (search.unroot @ move)
    path = (1 - c) * search.path_sigma + unit
    return search._replace(path_sigma=path, generation=search.generation + 1)


def _update_cov(search: Search, moves: jax.Array, weights: jax.Array, rates: Rates) -> Search:
    """Returns the search with its covariance and covariance path updated: eq. 45 to 47."""
    c, dim = rates.path_cov, search.mean.size
    grown = 1 - (1 - rates.path_sigma) ** (2 * search.generation)
    length = (search.path_sigma**2).sum() / grown / dim
    short = length < 2 + 4 / (dim + 1)  # h_sigma: False while sigma is far too small
    path = (1 - c) * search.path_cov
    path = path + short * jnp.sqrt(c * (2 - c) * rates.effective) * (weights @ moves)
    keep = 1 - rates.rank_one * jnp.where(short, 1, 1 - c * (2 - c)) - rates.rank_mu
    cov = keep * search.cov + rates.rank_one * jnp.outer(path, path)
    cov = cov + rates.rank_mu * (moves.T * weights[None]) @ moves
    return search._replace(cov=cov, path_cov=path)


def _decompose(search: Search, gap: jax.Array) -> Search:
    """Decomposes the covariance if `gap` generations passed since the last time: appendix B.2."""
    renew = lambda: (*roots(search.cov), search.generation)
    keep = lambda: (search.root, search.unroot, search.decomposed)
    due = search.generation >= search.decomposed + gap
    root, unroot, decomposed = jax.lax.cond(due, renew, keep)
    return search._replace(root=root, unroot=unroot, decomposed=decomposed)


def _expected_norm(dim: int) -> float:
    """Returns E |N(0, I)| in `dim` dimensions."""
    return math.sqrt(2) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))
