"""Who takes part in a round: samplers, and the layout of a cohort in chunks."""

from collections.abc import Callable, Sequence

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
                f"lower `cohort_size` to at most {population}"
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
                f"clients; lower `cohort_size` to at most {population}"
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


def in_chunks(client_ids: np.ndarray, num_steps: np.ndarray, widths: Sequence[int]) -> list:
    """The cohort in chunks of clients side by side, each as long as its longest visit.

    Where visits differ in length, the longest come first, and chunks have the widths
    that leave the fewest lanes waiting: one program is compiled for each width in use.

    Args:
      client_ids: `[cohort]` int.
      num_steps: `[cohort]` int, of each client's visit; need not be exact.
      widths: lanes that a chunk may have; the largest serves visits of equal length.

    Returns:
      Arrays of client ids, int32, as long as a width; -1 behind the last client for
      padding. One chunk of padding for an empty cohort.
    """
    order = np.argsort(-num_steps, kind="stable")
    if not len(order) or num_steps[order[0]] == num_steps[order[-1]]:
        widths, order = [max(widths)], np.arange(len(order))
    chunks = []
    for start, width in _cuts(num_steps[order], widths):
        ids = client_ids[order[start : start + width]]
        chunks.append(np.full(width, -1, np.int32))
        chunks[-1][: len(ids)] = ids
    return chunks


def widths_of(chunk_size: int, *, unit: int = 1) -> tuple[int, ...]:
    """The widths of chunks of at most `chunk_size` clients, in multiples of `unit`."""
    return tuple(
        sorted({unit * -(-chunk_size // (share * unit)) for share in (1, 4, 16)}, reverse=True)
    )


def _cuts(num_steps: np.ndarray, widths: Sequence[int]) -> list[tuple[int, int]]:
    """Starts and widths of chunks of least cost: lanes times steps, and a wide step for each."""
    steps, count, first = num_steps.tolist(), len(num_steps), max(widths)
    if not count:
        return [(0, first)]
    least, chosen = [0.0] * (count + 1), [0] * count
    for i in range(count - 1, -1, -1):
        costs = [first + w * steps[i] + least[min(count, i + w)] for w in widths]
        least[i] = min(costs)
        chosen[i] = widths[costs.index(least[i])]
    cuts, start = [], 0
    while start < count:
        cuts.append((start, chosen[start]))
        start += cuts[-1][1]
    return cuts
