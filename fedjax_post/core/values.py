"""What passes between the parts of an algorithm: contexts, a client's data, uploads, metrics."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
Metrics = dict[str, jax.Array]

# Metrics that count what left a client: summed over calls, steps and clients, never averaged
SUMMED = ("queries", "tokens_sent", "labels_sent", "places_sent")


def mean_of(total: Metrics, count: Any) -> Metrics:
    """Returns the mean metrics of `count` calls from their sum; those in `SUMMED` stay sums."""
    scaled = jax.tree.map(lambda x: 1 / count * x, total)
    return scaled | sums_of(total)


def sums_of(metrics: Metrics) -> Metrics:
    """Returns the metrics that are sums, which are added up and never averaged."""
    return {name: metrics[name] for name in SUMMED if name in metrics}


class Context(NamedTuple):
    """Where a client stands: scalars; arrays of `[clients]` once mapped."""

    key: jax.Array  # folded from (run seed, round, client id)
    round: jax.Array  # (), int32, from 0
    client_id: jax.Array  # (), int32; -1 marks a padding lane
    place: Any = np.int32(0)  # (), int32: which client of the round it is, from 0
    cohort: Any = np.int32(1)  # (), int32: number of clients of the round


def no_context() -> Context:
    """Returns a context for working out shapes."""
    return Context(jax.random.key(0), jnp.int32(0), jnp.int32(0))


class ClientData(NamedTuple):
    """What one client trains on in one visit.

    Uneven clients are padded to `K_max` steps. A step whose mask is False changes nothing,
    not even an optimizer's count.
    """

    batches: PyTree  # leaves [K_max, B, ...]
    step_mask: Any  # [K_max], bool: True for the steps that are taken
    num_examples: Any  # (), float32: examples that the client holds (n_k of FedAvg)
    num_tokens: Any  # (), float32: tokens (or examples) that the losses of this visit count
    rank: Any  # (), int32: the client's LoRA rank; 0 where ranks do not differ
    num_read: Any = 0.0  # (), float32: tokens (or examples) read, without padding; for speed only
    step_size: Any = 0.0  # (), float32: those that one step has room for; to account for padding


# {bytes of a piece: how many of them}, see `core.wire.pieces`
Pieces = dict[int, Any]


class Bill(NamedTuple):
    """What one visit costs on the wire where that differs from the shapes of its messages.

    This is so where only a part of a message travels (masked components), or more than one
    message does (what a client missed).
    """

    down: Pieces
    up: Pieces  # replaced by the message's own size under a link that changes its layout


class Added(NamedTuple):
    """What one visit costs on the wire beside its messages, which are billed by shape."""

    down: Pieces
    up: Pieces


class Upload(NamedTuple):
    """What one client contributes to the aggregate, and its weight in it."""

    value: PyTree
    weight: jax.Array  # (), float32
    # for the simulator's account; () where the shapes of the messages are the cost
    bill: Bill | Added | tuple[()] = ()


class Reading(NamedTuple):
    """What telemetry reads in one client's value; None where the value does not contain it."""

    change: PyTree = None  # of what the client trains; the server is given the mean of these
    after: PyTree = None  # what the client trained, after its last step
