"""`Plan`: how a run is carried out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.core.algorithm import Aggregate
from fedjax_post.simulate import feed
from fedjax_post.simulate.asynchronous import Buffer
from fedjax_post.simulate.cohort import Sampler, full
from fedjax_post.simulate.programs import Programs, device
from fedjax_post.simulate.recording import Recording
from fedjax_post.simulate.speeds import Speeds


class Plan(NamedTuple):
    """How a run is carried out.

    Only `sampler`, `seed`, `feed` and `buffer` (with `speeds`) affect the result. The other
    fields change it only by the order of floating-point sums.
    """

    sampler: Sampler = full()  # draws the clients of a round
    seed: int = 0  # of cohorts, data order and every client's key
    chunk_size: int | None = None  # clients computed together; None: the cohort, at most 32
    # (algorithm, telemetry if any, keep_messages= if recorded) -> programs
    executor: Callable[..., Programs] = device
    telemetry: Aggregate | None = None  # from `core.telemetry`, for the records; None: nothing
    feed: Callable = feed.chunks
    speeds: Speeds | None = None  # of clients, for `virtual_seconds` in the records
    buffer: Buffer | None = None  # asynchronous: a step whenever it is full; without sampler
    directory: str | Path | None = None  # of records and checkpoints; None saves neither
    recording: Recording | None = None  # of messages, into the directory; None: nothing
    resume: bool = False  # whether to continue the run in `directory`
    checkpoint_every: int | None = None  # rounds; None: at most a fiftieth of the time
    # Texts by name that must be equal when a run is resumed, in addition to those of `identify`,
    # such as an algorithm's hyper-parameters, which `identify` cannot see.
    identity: Mapping[str, Any] = {}
    may_differ: tuple[str, ...] = ()  # entries of the identity that a resumed run may change
