"""CMA-ES: a search that learns the shape of its own steps, as pure functions.

Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv:1604.00772, Figure 6 with positive
weights: cumulative step-size adaptation, rank-one and rank-mu updates of the covariance.

    search = init(mean, 0.5)
    for key in jax.random.split(key, 100):
        points = ask(search, key, 12)
        search = tell(search, points, jax.vmap(fn)(points))

Points are sorted by fitness, nothing else is made of it. The constants are the tutorial's
Table 1, but for two that follow Hansen's own code, pycma 4.5: the learning rate of the step
path (+3 for +5 in its denominator), and that of the rank-one update, which shrinks below
six points. So does h_sigma, the rule by which the covariance waits: |p_sigma|^2 / n below
2 + 4 / (n + 1), where the tutorial has |p_sigma| below (1.4 + 2 / (n + 1)) E|N(0, I)|, both
over 1 - (1 - c_sigma)^(2 g) or its root. Without its negative weights, pycma gives the same
states.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Search(NamedTuple):
    """A normal distribution N(mean, sigma^2 cov) over d numbers, and the memory of its moves."""

    mean: jax.Array  # [d], the best guess
    sigma: jax.Array  # (), overall length of a step
    cov: jax.Array  # [d, d]
    path_sigma: jax.Array  # [d], smoothed moves of the mean, of unit covariance
    path_cov: jax.Array  # [d], smoothed moves of the mean
    root: jax.Array  # [d, d], the symmetric root of `cov` when last decomposed
    unroot: jax.Array  # [d, d], its inverse
    generation: jax.Array  # (), int32: calls of `tell` so far
    decomposed: jax.Array  # (), int32: the generation of the two roots


class Rates(NamedTuple):
    """Constants of one generation, by the number of its points and of dimensions."""

    effective: jax.Array  # mu_eff: how many points the new mean is a mean of
    path_sigma: jax.Array  # c_sigma
    damping: jax.Array  # d_sigma
    path_cov: jax.Array  # c_c
    rank_one: jax.Array  # c_1
    rank_mu: jax.Array  # c_mu


def init(mean: jax.Array, sigma: jax.Array | float) -> Search:
    """A search around `mean`, `[d]`, with steps of length `sigma` in each coordinate.

    Keeps to the dtype of `mean`. Holds 3 d^2 numbers: 3 MB in float32 for d = 500.
    """
    return around(mean, sigma, jnp.eye(mean.size, dtype=mean.dtype))


def around(mean: jax.Array, sigma: jax.Array | float, cov: jax.Array) -> Search:
    """A search that begins from a distribution, with no memory of moves."""
    zero, start = jnp.zeros_like(mean), jnp.zeros((), jnp.int32)
    sigma = jnp.asarray(sigma, mean.dtype)
    return Search(mean, sigma, cov, zero, zero, *roots(cov), start, start)


def ask(search: Search, key: jax.Array, num_points: int) -> jax.Array:
    """Points to try, `[num_points, d]`, drawn from the search's distribution.

    By the symmetric root of the covariance, so that where axes are of one length the points
    do not depend on which axes a decomposition happened to choose.
    """
    z = jax.random.normal(key, (num_points, search.mean.size), search.mean.dtype)
    with jax.default_matmul_precision("highest"):
        steps = z @ search.root
    return search.mean[None] + search.sigma * steps


def tell(
    search: Search, points: jax.Array, fitness: jax.Array, *, learn_cov: bool = True
) -> Search:
    """The search after it was told how good points are.

    The covariance is decomposed anew as often as makes a difference, which is once in many
    generations when there are many dimensions: under vmap too, as long as the generations
    of all lanes are the same number.

    Args:
      search: the search so far.
      points: `[n, d]`, from `ask` or from elsewhere.
      fitness: `[n]`, less is better; a point whose fitness is not finite was not there.
      learn_cov: adapt the covariance; without, only the mean and sigma are.

    Returns:
      The next search; with no finite fitness at all, a shrinking one in its place.
    """
    with jax.default_matmul_precision("highest"):
        there = jnp.isfinite(fitness)
        weights = recombination(there.sum(), fitness.size).astype(search.mean.dtype)
        order = jnp.argsort(jnp.where(there, fitness, jnp.inf))
        moves = jnp.where(there[:, None], points - search.mean[None], 0)[order] / search.sigma
        rates = rates_of(weights, there.sum(), search.mean.size)
        move = weights @ moves
        search = _with_path(search, move, rates)
        moved = search._replace(mean=search.mean + search.sigma * move)
        if learn_cov:
            moved = _with_cov(moved, moves, weights, rates)
            few = rates_of(recombination(fitness.size, fitness.size), fitness.size, move.size)
            moved = _decomposed(moved, 0.1 / (few.rank_one + few.rank_mu) / move.size)
    change = jnp.linalg.norm(search.path_sigma) / _expected_norm(move.size) - 1
    change = jnp.clip(rates.path_sigma / rates.damping * change, -1, 1)
    return moved._replace(sigma=search.sigma * jnp.exp(change))


def recombination(count: jax.Array | int, size: int) -> jax.Array:
    """Weights of sorted points, `[size]`, of which `count` are there: eq. 49 to 53.

    The better half of those that are there has positive weights, which sum to one.
    """
    ranks = jnp.arange(1, size + 1)
    raw = jnp.log((count + 1) / 2) - jnp.log(ranks)
    alone = (ranks == 1) & (count == 1)  # a single point is its own better half
    raw = jnp.where(alone, 1.0, jnp.where(ranks <= count, jnp.maximum(raw, 0), 0))
    return raw / jnp.maximum(raw.sum(), jnp.finfo(raw.dtype).tiny)


def rates_of(weights: jax.Array, count: jax.Array | int, dim: int) -> Rates:
    """The constants for these weights of `count` points: eq. 55 to 58."""
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
    """The symmetric root of a covariance `[d, d]`, and its inverse.

    Rounding may leave an eigenvalue that is not positive; none counts for less than the
    smallest that could be told from it.
    """
    values, basis = jnp.linalg.eigh(cov)
    scale = jnp.sqrt(jnp.maximum(values, jnp.finfo(cov.dtype).eps * values[-1]))
    with jax.default_matmul_precision("highest"):
        return (basis * scale[None]) @ basis.T, (basis / scale[None]) @ basis.T


def _with_path(search: Search, move: jax.Array, rates: Rates) -> Search:
    """Adds a move to the path that the step length follows: eq. 43."""
    c = rates.path_sigma
    unit = jnp.sqrt(c * (2 - c) * rates.effective) * (search.unroot @ move)
    path = (1 - c) * search.path_sigma + unit
    return search._replace(path_sigma=path, generation=search.generation + 1)


def _with_cov(search: Search, moves: jax.Array, weights: jax.Array, rates: Rates) -> Search:
    """Adds the moves to the covariance, the mean one by its path: eq. 45 to 47."""
    c, dim = rates.path_cov, search.mean.size
    grown = 1 - (1 - rates.path_sigma) ** (2 * search.generation)
    length = (search.path_sigma**2).sum() / grown / dim
    short = length < 2 + 4 / (dim + 1)  # h_sigma: while sigma is far too small, C has to wait
    path = (1 - c) * search.path_cov
    path = path + short * jnp.sqrt(c * (2 - c) * rates.effective) * (weights @ moves)
    keep = 1 - rates.rank_one * jnp.where(short, 1, 1 - c * (2 - c)) - rates.rank_mu
    cov = keep * search.cov + rates.rank_one * jnp.outer(path, path)
    cov = cov + rates.rank_mu * (moves.T * weights[None]) @ moves
    return search._replace(cov=cov, path_cov=path)


def _decomposed(search: Search, gap: jax.Array) -> Search:
    """Decomposes the covariance if that was last done `gap` generations ago: appendix B.2."""
    renew = lambda: (*roots(search.cov), search.generation)
    keep = lambda: (search.root, search.unroot, search.decomposed)
    due = search.generation >= search.decomposed + gap
    root, unroot, decomposed = jax.lax.cond(due, renew, keep)
    return search._replace(root=root, unroot=unroot, decomposed=decomposed)


def _expected_norm(dim: int) -> float:
    """E |N(0, I)| in `dim` dimensions."""
    return math.sqrt(2) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))
