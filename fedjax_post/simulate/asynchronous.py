"""Buffered asynchronous aggregation: the server steps whenever a buffer of updates is full.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (FedBuff),
AISTATS 2022, arXiv:2106.06639, Algorithm 1, with the polynomial staleness of Xie et al.,
"Asynchronous Federated Optimization", 2019, arXiv:1903.03934: the weight of an update that
began t server steps ago is multiplied by (1 + t)^-a.

The server keeps `concurrency` clients at work, each of which trains from the replica of the step
in which it began, and makes a step when `size` updates have arrived. Time is virtual: the clients
of a step follow from the speeds alone, before anything is computed. A buffer is computed when it
is full, in chunks of clients that began from the same replica. Therefore any algorithm runs
unchanged, with its uplink and client states, unless it declares that old values cannot be used
(`Around.STALE`). An algorithm's `participation` is `size` over the population. The device holds
one replica for each round in which a client at work began. A client's bytes are counted in the
round that uses its update.

Deviations: the mean is over the scaled weights, sum s w D / sum s w, whereas FedBuff divides by
the size of the buffer: its step is shorter by the buffer's mean of s, for which the server step
size can compensate. Only weights are scaled, so values need not be updates. A client contributes
at most once to a buffer. Clients that finish at the same time are all received before any new
client begins. With equal speeds, `size` equal to `concurrency` and exponent 0, this is the
synchronous algorithm with `uniform(size)`.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_post.core.algorithm import Algorithm, Around
from fedjax_post.core.compose import reason_against
from fedjax_post.data.clients import Clients
from fedjax_post.simulate.feed import chunk_data, lay_out
from fedjax_post.simulate.programs import Chunk, all_lanes
from fedjax_post.simulate.speeds import Speeds
from fedjax_post.simulate.step import Step


class Buffer(NamedTuple):
    """Settings of buffered asynchronous aggregation."""

    concurrency: int  # number of clients that train at the same time
    size: int  # number of updates in a server step
    staleness_exponent: float = 0.5  # a; 0 gives all updates their full weight


def check(buffer: Buffer, algorithm: Algorithm, population: int) -> None:
    """Checks that a buffer is possible, and that the algorithm can be asynchronous.

    Args:
      buffer: settings to check.
      algorithm: to be run with it.
      population: number of clients.

    Raises:
      ValueError: naming the number and its remedy, or the algorithm's reason.
    """
    check_size(buffer, population)
    if algorithm.aggregate.fixed and buffer.staleness_exponent > 0:
        raise ValueError(
            "this algorithm's aggregate gives every client the same weight, however stale; use "
            "staleness_exponent=0"
        )
    if reason := reason_against(algorithm, Around.STALE):
        raise ValueError(
            f"this algorithm cannot be asynchronous: {reason}; leave `buffer_size` out"
        )


def check_size(buffer: Buffer, population: int) -> None:
    """Raises ValueError for numbers out of range, naming them."""
    for name in ("concurrency", "size"):
        number = getattr(buffer, name)
        if not 1 <= number <= population:
            flag = "concurrency" if name == "concurrency" else "buffer_size"
            raise ValueError(f"{flag}={number} must be from 1 to the {population} clients")
    if not 0 <= buffer.staleness_exponent < np.inf:
        raise ValueError(
            f"staleness_exponent={buffer.staleness_exponent} must not be negative; 0 gives all "
            "updates their full weight"
        )


def steps(buffer: Buffer, speeds: Speeds, *, population: int, seed: int) -> Iterator[Step]:
    """Returns an endless iterator over the server's steps, a function of its arguments alone.

    Args:
      buffer: settings.
      speeds: of clients.
      population: number of clients.
      seed: of the order in which clients begin.
    """
    at_work: list[tuple[float, int, int, int]] = []  # (until, order, client id, round)
    held: list[tuple[int, int]] = []  # (client id, round) in the buffer
    now, last, order, round = 0.0, 0.0, 0, 0
    rng = np.random.default_rng((seed, 0, round))  # as `cohort.draw`
    while True:
        taken = {client_id for *_, client_id, _ in at_work} | {client_id for client_id, _ in held}
        num_free = min(buffer.concurrency - len(at_work), population - len(taken))
        for client_id in _draw(rng, population, taken, num_free):
            heapq.heappush(at_work, (now + speeds(client_id, round), order, client_id, round))
            order += 1
        now, arrived = at_work[0][0], []
        while at_work and at_work[0][0] == now:
            arrived.append(heapq.heappop(at_work)[2:])
        while arrived:
            held.append(arrived.pop(0))
            if len(held) == buffer.size:
                begun = [round for *_, round in at_work] + [round for _, round in arrived]
                yield _step(round, held, begun, virtual_seconds=now - last)
                held, last, round = [], now, round + 1
                rng = np.random.default_rng((seed, 0, round))


def chunks(
    clients: Clients,
    found: Iterable[Step],
    *,
    buffer: Buffer,
    widths: Sequence[int],
    seed: int,
    local: Callable[[int], slice] = all_lanes,
) -> Iterator[tuple[Step, int, Chunk]]:
    """Returns an iterator over (step, number of lanes, chunk), for every chunk of every step.

    The clients of a chunk began in the same round. The number of lanes is that of a whole step;
    it is the same for all steps, and large enough for any.

    Args:
      clients: the population.
      found: the steps.
      buffer: settings.
      widths: numbers of lanes that a chunk may have.
      seed: of the order of clients' data.
      local: maps the number of lanes of a chunk to those whose data are prepared.
    """
    cover = lambda count: min([w for w in widths if w >= count], default=max(widths))
    waste = max((n + cover(n) - 1) / n for n in range(1, max(widths) + 1))
    num_lanes = int(np.ceil(waste * buffer.size))
    for step in found:
        for round, ids in step.began:
            narrow = [w for w in widths if w <= cover(len(ids))]
            discount = np.float32((1 + step.round - round) ** -buffer.staleness_exponent)
            for row, longest in lay_out(clients, ids, narrow):
                mine = row[local(len(row))]
                data = chunk_data(clients, mine, seed, round, longest=longest)
                yield step, num_lanes, Chunk(np.int32(round), row, data, discount)


def _step(round: int, held: list, begun: list[int], *, virtual_seconds: float) -> Step:
    staleness = [round - start for _, start in held]
    starts = sorted({start for _, start in held})
    ids_of = lambda start: np.sort([i for i, s in held if s == start])
    return Step(
        round,
        began=tuple((start, ids_of(start)) for start in starts),
        awaited=frozenset(begun),
        numbers={
            "virtual_seconds": virtual_seconds,
            "staleness_mean": float(np.mean(staleness)),
            "staleness_max": max(staleness),
        },
    )


def _draw(rng: np.random.Generator, population: int, taken: set[int], count: int) -> list[int]:
    """Returns `count` ids drawn uniformly from those that are not taken, in ascending order."""
    ids = np.sort(rng.choice(population - len(taken), count, replace=False))
    for client_id in sorted(taken):
        ids = ids + (ids >= client_id)
    return ids.tolist()
