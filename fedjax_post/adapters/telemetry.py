"""Telemetry of adapters: the error of averaging factors, and the rank of a round's update.

It runs next to an algorithm's aggregate, see `core.telemetry`, and reports nothing if the
algorithm's values do not contain a client's factors. Factors are in the federation's units, so
that clients of any rank and alpha / r are comparable. No matrix of in x out is formed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from fedjax_post.adapters import products
from fedjax_post.adapters.factors import Factors, split
from fedjax_post.core import telemetry
from fedjax_post.core.aggregates import present
from fedjax_post.core.algorithm import Aggregate, PyTree


class FirstClients(NamedTuple):
    """The factors of the first clients with a positive weight, in slots."""

    factors: Factors  # leaves [slots, num_layers, ...]
    weights: jax.Array  # [slots], float32; 0 in empty slots
    filled: jax.Array  # (), int32


class Mean(NamedTuple):
    """Weighted sums over all clients so far."""

    after: Factors
    change: Factors
    weight: jax.Array  # (), float32


def adapter_telemetry(num_clients: int = 16) -> Aggregate:
    """Returns all telemetry of a federation of adapters.

    Args:
      num_clients: at least 1; `aggregation_error` uses the first clients of a round, up to
        this number.

    Raises:
      ValueError: if `num_clients` is not positive.
    """
    return telemetry.join(
        telemetry.change_statistics(), averaging_error(num_clients), effective_rank()
    )


def averaging_error(num_clients: int) -> Aggregate:
    """Returns a telemetry of the error that averaging the two factors separately would make.

    `aggregation_error` is |sum p_k A_k B_k - (sum p_k A_k)(sum p_k B_k)| over
    |sum p_k A_k B_k|, with Frobenius norms over all adapted matrices and p_k the weights over
    their sum. It is a property of the clients' factors, whatever the server does with them. It
    uses the first `num_clients` clients, keeps their adapters, and forms Gram matrices of size
    num_clients R.

    Raises:
      ValueError: if `num_clients` is not positive.
    """
    if num_clients < 1:
        raise ValueError(f"num_clients must be at least 1, got {num_clients}; see telemetry.none")

    def init(like, cohort_size):
        factors = _factors_of(like.after)
        if factors is None:
            return ()
        slots = min(num_clients, cohort_size)
        rows = lambda x: jnp.zeros((slots, *x.shape), jnp.float32)
        return FirstClients(jax.tree.map(rows, factors), jnp.zeros(slots), jnp.int32(0))

    def add(total, readings, weights):
        if not total:
            return ()
        factors = _factors_of(readings.after)
        assert factors is not None  # else `init` would have returned ()
        return _put(total, FirstClients(factors, weights, jnp.int32(0)), weights > 0)

    def merge(one, other):
        return _put(one, other, jnp.arange(len(other.weights)) < other.filled) if one else ()

    def finish(total):
        if not total:
            return {}
        error = products.aggregation_error(total.factors, total.weights)
        return {"aggregation_error": jnp.where(total.filled > 0, error, jnp.nan)}

    return Aggregate(init, add, merge, finish)


def effective_rank() -> Aggregate:
    """Returns a telemetry of the effective rank of the update that averaging factors makes.

    The effective rank of a matrix is exp(H), where H is the entropy of its singular values over
    their sum (Roy and Vetterli, EUSIPCO 2007). `effective_rank` is that of
    (mean A)(mean B) - A B, where A and B are the factors before the round, averaged over the
    adapted matrices of every layer that change. It is computed from thin QR factors of size 2 R.
    It is meaningful if all clients start from the same factors and the server averages their
    changes.
    """

    def init(like, cohort_size):
        del cohort_size
        after, change = _factors_of(like.after), _factors_of(like.change)
        if after is None or change is None:
            return ()
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), after)
        return Mean(zeros, zeros, jnp.zeros(()))

    def add(total, readings, weights):
        if not total:
            return ()
        share = lambda x: jnp.tensordot(weights, present(x, weights), 1)
        weigh = lambda tree: jax.tree.map(share, tree)
        after = weigh(_factors_of(readings.after))
        change = weigh(_factors_of(readings.change))
        return optax.tree.add(total, Mean(after, change, weights.sum()))

    def finish(total):
        if not total:
            return {}
        after, change = (optax.tree.scale(1 / total.weight, tree) for tree in total[:2])
        ranks = _ranks(after, optax.tree.sub(after, change))
        return {"effective_rank": ranks.sum() / (ranks > 0).sum()}

    return Aggregate(init, add, optax.tree.add, finish)


def _ranks(new: Factors, old: Factors) -> Float[Array, " matrices"]:
    """Returns the effective rank of A B - A' B' for every matrix and layer; 0 if it is zero."""
    # as (A - A') B + A' (B - B'), which loses no precision if the change is small
    left = jax.tree.map(lambda a, old_a: jnp.concatenate([a - old_a, old_a], 2), new.a, old.a)
    right = jax.tree.map(lambda b, old_b: jnp.concatenate([b, b - old_b], 1), new.b, old.b)
    left = jax.tree.leaves(left)
    triangles = _triangles(left + [x.mT for x in jax.tree.leaves(right)])
    cores = triangles[0] @ triangles[1].mT
    return products.over_layers(_effective_rank, cores)


def _triangles(stacks: list[Array]) -> Float[Array, "2 matrices P P"]:
    """Returns R of the QR factors of every `[num_layers, size, P]`, one loop per size."""
    width = stacks[0].shape[-1]
    sizes = sorted({x.shape[1] for x in stacks})
    found: dict[int, Array] = {}
    for size in sizes:
        same_size = [i for i, x in enumerate(stacks) if x.shape[1] == size]
        joined = jnp.concatenate([stacks[i] for i in same_size])
        factors = products.over_layers(lambda x: jnp.linalg.qr(x, mode="r"), joined)
        factors = jnp.pad(factors, ((0, 0), (0, width - factors.shape[1]), (0, 0)))
        ends = np.cumsum([len(stacks[i]) for i in same_size])[:-1].tolist()
        found |= dict(zip(same_size, jnp.split(factors, ends), strict=True))
    whole = jnp.concatenate([found[i] for i in range(len(stacks))])
    return whole.reshape(2, -1, width, width)


def _effective_rank(core: Array) -> Float[Array, ""]:
    """Returns exp of the entropy of the normalised singular values; 0 if all are zero."""
    values = jnp.linalg.svd(core, compute_uv=False)
    total = values.sum()
    shares = values / jnp.where(total > 0, total, 1)
    logs = jnp.log(jnp.where(shares > 0, shares, 1))
    return jnp.where(total > 0, jnp.exp(-(shares * logs).sum()), 0.0)


def _factors_of(tree: PyTree) -> Factors | None:
    """Returns both factors of every adapted matrix, or None if `tree` holds anything else."""
    if isinstance(tree, dict) and set(tree) == {"lora"} and _is_whole(tree["lora"]):
        tree = split(tree)
    if not isinstance(tree, Factors) or tree.a is None or tree.b is None:
        return None
    return tree


def _is_whole(node: PyTree) -> bool:
    """Returns whether a tree has both factors of every layer; clients may keep some locally."""
    if not isinstance(node, dict) or not node:
        return False
    if set(node) <= {"a", "b"}:
        return len(node) == 2 and all(x is not None for x in node.values())
    return all(map(_is_whole, node.values()))


def _put(first: FirstClients, new: FirstClients, live: jax.Array) -> FirstClients:
    """Returns `first` with the live clients of `new` in its free slots, as many as fit."""
    slots = len(first.weights)
    place = jnp.where(live, first.filled + jnp.cumsum(live) - 1, slots)
    put = lambda rows, x: rows.at[place].set(x, mode="drop")
    filled = jnp.minimum(first.filled + live.sum(dtype=jnp.int32), slots)
    return FirstClients(
        jax.tree.map(put, first.factors, new.factors), put(first.weights, new.weights), filled
    )
