"""Who takes part in a round: samplers, and the layout of a cohort in chunks."""

from collections.abc import Callable

import numpy as np

# (population, rng) -> distinct client ids, int64
Sampler = Callable[[int, np.random.Generator], np.ndarray]


def full() -> Sampler:
    """Everybody, every round."""
    return lambda population, rng: np.arange(population)


def uniform(size: int) -> Sampler:
    """`size` clients a round, without replacement.

    Raises:
      ValueError: if `size` is not positive or, at a draw, exceeds the population.
    """
    if size < 1:
        raise ValueError(f"cohort size must be at least 1, got {size}")

    def sample(population, rng):
        if size > population:
            raise ValueError(
                f"cohort size {size} exceeds the population of {population} clients; "
                f"lower --cohort_size to at most {population}"
            )
        return np.sort(rng.choice(population, size, replace=False))

    return sample


def poisson(expected: float) -> Sampler:
    """Every client independently, with probability `expected` over the population.

    Raises:
      ValueError: if `expected` is not positive or, at a draw, exceeds the population.
    """
    if expected <= 0:
        raise ValueError(f"expected cohort size must be positive, got {expected}")

    def sample(population, rng):
        if expected > population:
            raise ValueError(
                f"expected cohort size {expected} exceeds the population of {population} "
                f"clients; lower --cohort_size to at most {population}"
            )
        size = rng.binomial(population, expected / population)
        return np.sort(rng.choice(population, size, replace=False))

    return sample


def draw(sampler: Sampler, population: int, *, seed: int, round: int) -> np.ndarray:
    """The cohort of one round: a function of the seed and the round alone."""
    return sampler(population, np.random.default_rng((seed, 0, round)))


def data_rng(seed: int, round: int, client_id: int) -> np.random.Generator:
    """Where a client's data order of one round comes from."""
    return np.random.default_rng((seed, 1, round, client_id))


def in_chunks(client_ids: np.ndarray, chunk_size: int) -> np.ndarray:
    """The cohort as rows of `chunk_size` ids, -1 for padding; one row of padding if empty."""
    num_chunks = max(1, -(-len(client_ids) // chunk_size))
    lanes = np.full(num_chunks * chunk_size, -1, np.int32)
    lanes[: len(client_ids)] = client_ids
    return lanes.reshape(num_chunks, chunk_size)
