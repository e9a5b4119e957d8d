"""Telemetry: summarises the messages of a round in a few numbers.

A telemetry is an aggregate of `Reading`s that runs next to the algorithm's own aggregate and
returns scalars for the record of the round, NaN where they are not defined. It reads the decoded
values that the server sees, a chunk at a time, in memory that does not grow with the cohort. It
belongs to the simulator: no client and no server sees it, and it is not billed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax.tree

from fedjax_post.core.aggregates import present
from fedjax_post.core.algorithm import Aggregate, PyTree


class Moments(NamedTuple):
    """Sums over the clients so far that have a positive weight."""

    change: PyTree  # of weight times change
    direction: PyTree  # of the changes scaled to norm 1
    square: jax.Array  # (), of weight times squared norm
    weight: jax.Array  # ()
    norm: jax.Array  # ()
    clients: jax.Array  # (), their number
    moved: jax.Array  # (), clients whose change is not zero


def change_statistics() -> Aggregate:
    """Returns a telemetry of how large, and how similar, the clients' changes D_k are.

    It reports nothing if the algorithm's `read` gives no change. With shares p_k (weights over
    their sum) of the n clients of positive weight, and M = sum p_k D_k:

    | name | value |
    | --- | --- |
    | client_drift | sum p_k |D_k - M|^2 / |M|^2: 0 if all agree |
    | client_norm | mean of |D_k|, every client with the same weight |
    | client_cosine | mean cosine over pairs, (|sum D_k / |D_k||^2 - n) / (n (n - 1)) |

    A client whose change is zero has no direction and is left out of the cosine. Needs memory
    for two changes.
    """

    def init(like, cohort_size):
        del cohort_size
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), _floats(like.change))
        number = jnp.zeros(())
        return Moments(zeros, zeros, number, number, number, number, number) if zeros else ()

    def add(total, readings, weights):
        if not total:
            return ()
        changes = [present(x, weights).astype(jnp.float32) for x in _floats(readings.change)]
        squares = sum((x.reshape(len(weights), -1) ** 2).sum(1) for x in changes)
        norms = jnp.sqrt(squares)
        per_norm = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)
        weigh = lambda w: [jnp.tensordot(w, x, 1) for x in changes]
        new = Moments(
            change=weigh(weights),
            direction=weigh(per_norm),
            square=jnp.dot(weights, squares),
            weight=weights.sum(),
            norm=norms.sum(),
            clients=(weights > 0).sum(dtype=jnp.float32),
            moved=(norms > 0).sum(dtype=jnp.float32),
        )
        return optax.tree.add(total, new)

    def finish(total):
        if not total:
            return {}
        square = lambda tree: optax.tree.norm(tree, squared=True)
        mean = square(total.change) / total.weight**2
        pairs = total.moved * (total.moved - 1)
        return {
            # the mean of squares minus the square of the mean, which rounding may make negative
            "client_drift": jnp.maximum(total.square / total.weight - mean, 0) / mean,
            "client_norm": total.norm / total.clients,
            "client_cosine": (square(total.direction) - total.moved) / pairs,
        }

    return Aggregate(init, add, optax.tree.add, finish)


def join(*telemetries: Aggregate) -> Aggregate:
    """Returns one telemetry that runs all of `telemetries` and merges their numbers."""

    def finish(totals):
        parts = [t.finish(total) for t, total in zip(telemetries, totals, strict=True)]
        return {name: value for part in parts for name, value in part.items()}

    return Aggregate(
        init=lambda like, size: tuple(t.init(like, size) for t in telemetries),
        add=lambda totals, readings, weights: tuple(
            t.add(total, readings, weights) for t, total in zip(telemetries, totals, strict=True)
        ),
        merge=lambda one, other: tuple(
            t.merge(a, b) for t, a, b in zip(telemetries, one, other, strict=True)
        ),
        finish=finish,
    )


def none() -> Aggregate:
    """Returns a telemetry that reads nothing and costs nothing."""
    return join()


def _floats(tree: PyTree) -> list[jax.Array]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
