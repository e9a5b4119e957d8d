"""Samplers of the clients of a round, and the layout of a cohort in chunks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# (population, rng) -> distinct client ids, int64
Draw = Callable[[int, np.random.Generator], np.ndarray]


class ByRound(NamedTuple):
    """A sampler that draws differently in each round."""

    of: Callable[[int], Draw]  # round, from 0 -> how its cohort is drawn


Sampler = Draw | ByRound


def full() -> Draw:
    """Returns a sampler of all clients in every round."""
    return lambda population, rng: np.arange(population)


def uniform(size: int) -> Draw:
    """Returns a sampler of `size` clients per round, drawn uniformly without replacement.

    Raises:
      ValueError: if `size` is not positive; at a draw, if it exceeds the population.

    >>> draw(uniform(3), 10, seed=0, round=0).shape
    (3,)
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


def poisson(expected: float) -> Draw:
    """Returns a sampler that takes each client independently, `expected` of them on average.

    Raises:
      ValueError: if `expected` is not positive; at a draw, if it exceeds the population.
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


def cyclic(expected: float, groups: int) -> ByRound:
    """Returns a sampler that draws from one group of clients after another, as Poisson does.

    Group g holds the clients whose id is g modulo `groups`, and has its turn in every round that
    is g modulo `groups`. So `groups` rounds or more lie between two visits of a client.

    Raises:
      ValueError: if a number is not positive; at a draw, if `expected` exceeds the population
        over `groups`.

    >>> sampler = cyclic(2, groups=3)
    >>> [draw(sampler, 6, seed=0, round=round).tolist() for round in range(4)]
    [[0, 3], [1, 4], [2, 5], [0, 3]]
    """
    if expected <= 0 or groups < 1:
        raise ValueError(
            f"expected cohort size and groups must be positive, got {expected} and {groups}"
        )

    def sample_in(round):
        def sample(population, rng):
            if expected * groups > population:
                raise ValueError(
                    f"cohort size {expected} in {groups} groups exceeds the population of "
                    f"{population} clients; lower `cohort_size` to at most {population // groups}"
                )
            group = np.arange(round % groups, population, groups)
            size = rng.binomial(len(group), expected * groups / population)
            return np.sort(rng.choice(group, size, replace=False))

        return sample

    return ByRound(sample_in)


def draw(sampler: Sampler, population: int, *, seed: int, round: int) -> np.ndarray:
    """Returns the cohort of one round, ids `[cohort]` int64; it depends on seed and round alone.

    Args:
      sampler: such as `uniform(16)`.
      population: number of clients.
      seed: of the run.
      round: from 0.
    """
    if isinstance(sampler, ByRound):
        sampler = sampler.of(round)
    return sampler(population, np.random.default_rng((seed, 0, round)))


def data_rng(seed: int, round: int, client_id: int) -> np.random.Generator:
    """Returns the random generator of a client's data order in one round.

    Args:
      seed: of the run.
      round: from 0.
      client_id: from 0.
    """
    return np.random.default_rng((seed, 1, round, client_id))


def in_chunks(client_ids: np.ndarray, num_steps: np.ndarray, widths: Sequence[int]) -> list:
    """Returns the cohort in chunks of clients that are computed together.

    A chunk takes as many steps as its longest visit. Where visits differ in length, the longest
    come first, and widths are chosen so that few lanes wait. One program is compiled for each
    width in use.

    Args:
      client_ids: `[cohort]` int.
      num_steps: `[cohort]` int, of each client's visit; need not be exact.
      widths: numbers of lanes that a chunk may have; the largest is used for visits of equal
        length.

    Returns:
      Arrays of client ids, int32, each as long as one of the widths, padded with -1 at the end.
      For an empty cohort, one chunk of padding.
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
    """Returns `chunk_size`, a quarter and a sixteenth of it, rounded up to multiples of `unit`."""
    return tuple(
        sorted({unit * -(-chunk_size // (share * unit)) for share in (1, 4, 16)}, reverse=True)
    )


def _cuts(num_steps: np.ndarray, widths: Sequence[int]) -> list[tuple[int, int]]:
    """Returns starts and widths of the chunks of least cost.

    A chunk costs its lanes times its steps, plus one step of the widest chunk as overhead.
    """
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
