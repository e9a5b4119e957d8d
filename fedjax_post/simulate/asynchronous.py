"""Buffered asynchronous aggregation: clients at their own speed, a step when a buffer is full.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation" (FedBuff),
AISTATS 2022, arXiv:2106.06639, Algorithm 1, with the polynomial staleness of Xie et al.,
"Asynchronous Federated Optimization", 2019, arXiv:1903.03934: an update that began t server
steps ago counts (1 + t)^-a of its weight.

The server keeps `concurrency` clients at work, each from the replica of the step that it
began in, and steps when `size` updates have come. Time is virtual: what a step needs is
known from the speeds alone, before anything is computed. A buffer is computed when
it is full, a chunk of clients for each replica that they began from, so that any
algorithm runs unchanged, its wire and its client states included, unless it says that
old values will not do (`Around.STALE`). An algorithm's `participation` is
`size` over the population. The device holds one replica for each round that somebody at
work began in; a client's bytes are counted in the round that takes its update.

Deviations: the mean is over the scaled weights, sum s w D / sum s w, where FedBuff divides by
the size of the buffer: what it finds is shorter by the buffer's mean of s, which a server
step size makes up for. Weights are all that is scaled, so that values need not be updates.
A client contributes once to a buffer. Clients that finish at the same moment are all
received before anybody begins anew, and with equal speeds, `size` equal to `concurrency`
and exponent 0 this is the synchronous algorithm over `uniform(size)`.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_post.core.algorithm import Algorithm, Around
from fedjax_post.core.compose import reason_against
from fedjax_post.data.clients import Clients
from fedjax_post.simulate.feed import laid_out, side_by_side
from fedjax_post.simulate.programs import Chunk, all_lanes
from fedjax_post.simulate.speeds import Speeds
from fedjax_post.simulate.visits import Step


class Buffer(NamedTuple):
    """How a server steps without waiting for everybody."""

    concurrency: int  # clients at work at once
    size: int  # updates behind a step
    staleness_exponent: float = 0.5  # a; 0 counts all alike


def check(buffer: Buffer, algorithm: Algorithm, population: int) -> None:
    """Refuses a buffer that cannot be, or that the algorithm has no use for.

    Raises:
      ValueError: naming the number and its remedy, or the algorithm's reason.
    """
    check_size(buffer, population)
    if algorithm.aggregate.fixed and buffer.staleness_exponent > 0:
        raise ValueError(
            "this algorithm's aggregate counts every client alike, however stale; use "
            "staleness_exponent=0"
        )
    if reason := reason_against(algorithm, Around.STALE):
        raise ValueError(
            f"this algorithm cannot be asynchronous: {reason}; leave `buffer_size` out"
        )


def check_size(buffer: Buffer, population: int) -> None:
    """Refuses numbers that are out of range, naming them."""
    for name in ("concurrency", "size"):
        number = getattr(buffer, name)
        if not 1 <= number <= population:
            flag = "concurrency" if name == "concurrency" else "buffer_size"
            raise ValueError(f"--{flag}={number} must be from 1 to the {population} clients")
    if not 0 <= buffer.staleness_exponent < np.inf:
        raise ValueError(
            f"staleness_exponent={buffer.staleness_exponent} must not be negative; 0 counts "
            "all updates alike"
        )


def steps(buffer: Buffer, speeds: Speeds, *, population: int, seed: int) -> Iterator[Step]:
    """The server's steps from the first on, without end; a function of its arguments alone."""
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
    """Every chunk of every step, each of clients that began alike, with a number of lanes.

    That number is the same for all steps, and enough for any.
    """
    cover = lambda count: min([w for w in widths if w >= count], default=max(widths))
    waste = max((n + cover(n) - 1) / n for n in range(1, max(widths) + 1))
    num_lanes = int(np.ceil(waste * buffer.size))
    for step in found:
        for round, ids in step.began:
            narrow = [w for w in widths if w <= cover(len(ids))]
            discount = np.float32((1 + step.round - round) ** -buffer.staleness_exponent)
            for row, longest in laid_out(clients, ids, narrow):
                mine = row[local(len(row))]
                data = side_by_side(clients, mine, seed, round, longest=longest)
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
    """`count` ids that are not taken, uniformly, in ascending order."""
    ids = np.sort(rng.choice(population - len(taken), count, replace=False))
    for client_id in sorted(taken):
        ids = ids + (ids >= client_id)
    return ids.tolist()
