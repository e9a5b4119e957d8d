"""Feeds: chunks of client data for the coming rounds, prepared in advance on a thread."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any, TypeVar

import jax
import numpy as np

from fedjax_post.core.algorithm import ClientData
from fedjax_post.data.batches import pool
from fedjax_post.data.clients import Clients, in_lanes
from fedjax_post.simulate.cohort import Sampler, data_rng, draw, in_chunks
from fedjax_post.simulate.programs import Chunk, all_lanes
from fedjax_post.simulate.step import Step

T = TypeVar("T")


def chunks(
    clients: Clients,
    steps: Iterable[Step],
    *,
    widths: Sequence[int],
    seed: int,
    local: Callable[[int], slice] = all_lanes,
) -> Iterator[tuple[Step, int, Chunk]]:
    """Returns an iterator over (step, number of lanes, chunk), for every chunk of every step.

    A client's data depend only on the seed, the round and the client.

    Args:
      clients: the population.
      steps: of the server, each with one cohort.
      widths: numbers of lanes that a chunk may have.
      seed: of the order of clients' data.
      local: maps the number of lanes of a chunk to those whose data are prepared.
    """
    for step in steps:
        ((round, cohort),) = step.began
        rows = lay_out(clients, cohort, widths)
        num_lanes = -(-sum(len(ids) for ids, _ in rows) // max(widths)) * max(widths)
        first = 0
        for ids, longest in rows:
            mine = ids[local(len(ids))]
            data = chunk_data(clients, mine, seed, round, longest=longest)
            seats = {"first": np.int32(first), "cohort": np.int32(len(cohort))}
            yield step, num_lanes, Chunk(np.int32(round), ids, data, **seats)
            first += int((ids >= 0).sum())


def pooled(
    clients: Clients,
    steps: Iterable[Step],
    *,
    widths: Sequence[int],
    seed: int,
    local: Callable[[int], slice] = all_lanes,
) -> Iterator[tuple[Step, int, Chunk]]:
    """Returns the batches of `chunks`, joined into those of a single client 0, for `central`.

    Args:
      clients: the population.
      steps: of the server, each with one cohort.
      widths: not used.
      seed: of the order of clients' data.
      local: not used.
    """
    del widths, local
    for step in steps:
        ((round, cohort),) = step.began
        data = pool([clients.visit(i, data_rng(seed, round, i)) for i in cohort.tolist()])
        data = jax.tree.map(lambda x: np.asarray(x)[None], data)
        yield step, 1, Chunk(np.int32(round), np.zeros(1, np.int32), data)


def chunks_by_seed(
    clients: Clients,
    rounds: Iterable[int],
    *,
    sampler: Sampler,
    width: int,
    seeds: Sequence[int],
) -> Iterator[list[Chunk]]:
    """Returns an iterator over the chunks of each round for several seeds, leaves `[seeds, ...]`.

    If cohorts differ in size, the smaller ones are padded with chunks without clients.

    Args:
      clients: the population.
      rounds: to be fed.
      sampler: of cohorts.
      width: number of lanes of every chunk.
      seeds: of cohorts and of the order of clients' data.
    """
    for round in rounds:
        rows, sizes = [], []
        for seed in seeds:
            cohort = draw(sampler, len(clients), seed=seed, round=round)
            rows.append(in_chunks(cohort, np.zeros(len(cohort), np.int64), (width,)))
            sizes.append(np.int32(len(cohort)))
        padding = np.full(width, -1, np.int32)
        yield [
            jax.tree.map(
                lambda *x: np.stack(x),
                *(
                    Chunk(
                        np.int32(round),
                        ids,
                        chunk_data(clients, ids, seed, round),
                        first=np.int32(i * width),
                        cohort=size,
                    )
                    for seed, ids, size in zip(seeds, together, sizes, strict=True)
                ),
            )
            for i, together in enumerate(zip_longest(*rows, fillvalue=padding))
        ]


def prefetch(items: Iterator[T], *, depth: int = 2) -> Iterator[T]:
    """Returns an iterator over the same items, which makes up to `depth` in advance on a thread."""
    end: Any = object()
    with ThreadPoolExecutor(1) as thread:
        ahead = deque(thread.submit(next, items, end) for _ in range(depth))
        try:
            while (item := ahead.popleft().result()) is not end:
                ahead.append(thread.submit(next, items, end))
                yield item
        finally:
            thread.shutdown(wait=True, cancel_futures=True)


def lay_out(
    clients: Clients, client_ids: np.ndarray, widths: Sequence[int]
) -> list[tuple[np.ndarray, int | None]]:
    """Returns the chunks of `in_chunks`, each with the number of steps of its longest visit.

    Args:
      clients: the population.
      client_ids: `[cohort]` int.
      widths: numbers of lanes that a chunk may have.

    Returns:
      Pairs (client ids, steps); steps are None for a chunk of padding alone.
    """
    num_steps = {i: clients.num_steps(i) for i in client_ids.tolist()}
    rows = in_chunks(client_ids, np.array(list(num_steps.values()), np.int64), widths)
    longest = lambda ids: max((num_steps[i] for i in ids.tolist() if i >= 0), default=None)
    return [(ids, longest(ids)) for ids in rows]


def chunk_data(
    clients: Clients, ids: np.ndarray, seed: int, round: int, *, longest: int | None = None
) -> ClientData:
    """Returns the visits of a chunk's clients, each in its data order of the round.

    Args:
      clients: the population.
      ids: `[lanes]` int, -1 for padding.
      seed: of the run.
      round: in which the visits began.
      longest: number of steps to pad to, see `in_lanes`.
    """
    return in_lanes(clients, ids, lambda i: data_rng(seed, round, i), longest=longest)
