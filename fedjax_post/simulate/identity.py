"""What makes two runs the same: settings, data, weights and who takes part, as short texts.

A run that is resumed is the same one if all of these are equal. What changes how a result is
computed and not what it is (chunk sizes, executors, devices) is left out, and so is the number
of rounds.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core.algorithm import PyTree
from fedjax_post.data.clients import Clients, fingerprint_of
from fedjax_post.simulate.visits import steps

if TYPE_CHECKING:
    from fedjax_post.simulate.run import Plan

_ROUNDS = 3  # whose cohorts stand for the sampler


def identify(model: PyTree, clients: Clients, *, params: PyTree, plan: "Plan") -> dict[str, Any]:
    """The identity of a run.

    Args:
      model: the frozen model, as given to `run`.
      clients: the population; its method `fingerprint` is asked, where it has one.
      params: where training starts.
      plan: of the run. What `plan.identity` names is taken from there, in place of the entry
        of that name here or beside these.

    Returns:
      By name: `seed`, `clients` (their number), `data` (a hash of their rows), `model` and
      `params` (hashes of all arrays), `cohorts` (a hash of who takes part in the first
      rounds), `feed`, and `buffer` of an asynchronous run.
    """
    parts: dict[str, Callable[[], Any]] = {
        "seed": lambda: plan.seed,
        "clients": lambda: len(clients),
        "data": lambda: fingerprint_of(clients),
        "model": lambda: array_hash(model),
        "params": lambda: array_hash(params),
        "cohorts": lambda: _cohorts(plan, len(clients)),
        "feed": lambda: getattr(plan.feed, "__name__", "own"),
    }
    if (buffer := plan.buffer) is not None:
        parts["buffer"] = lambda: list(buffer)
    given: Mapping[str, Any] = plan.identity
    return {name: make() for name, make in parts.items() if name not in given} | dict(given)


def array_hash(tree: PyTree) -> str:
    """A hash of the arrays of a tree: dtypes, shapes and every bit, 32 bits for each array.

    It is a sum over the elements, in whole numbers, worked out where the arrays are: the same
    for every device and every layout, and different if any one element is. What is no array
    counts by its type alone, unless it is a number or a text.
    """
    leaves = jax.tree.leaves(tree)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array | np.ndarray)]
    sums = iter(jax.device_get([_sum(x) for x in arrays]))
    told = []
    for leaf in leaves:
        if isinstance(leaf, jax.Array | np.ndarray):
            told.append(f"{leaf.dtype}{leaf.shape}{next(sums)}")
        else:
            plain = isinstance(leaf, str | int | float | complex | np.generic)
            told.append(f"{type(leaf).__qualname__}{leaf if plain else ''}")
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


@jax.jit
def _sum(x: jax.Array) -> jax.Array:
    """The sum modulo 2^32 of the elements' bits, each mixed with its place."""
    bits, place = _bits(x), jnp.uint32(0)
    for axis, size in enumerate(bits.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    # Odd factors and shifts are invertible, so that a change of any one element changes the sum.
    mixed = (bits ^ (place * np.uint32(2654435761))) * np.uint32(2246822519)
    return jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32)


def _bits(x: jax.Array) -> jax.Array:
    """The elements of an array as uint32; those of more bits as several."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == bool or (jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize < 4):
        return x.astype(jnp.int32).astype(jnp.uint32)  # those of less than a byte too
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag])
    form = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, form).astype(jnp.uint32)


def _cohorts(plan: "Plan", population: int) -> str:
    """A hash of who is visited in the first rounds, by sampler or by speeds."""
    told = hashlib.sha256()
    for step in steps(plan, population, range(_ROUNDS)):
        for round, ids in step.began:
            named = ids if plan.buffer is None else [round, *ids]
            told.update(np.asarray(named, "<i8").tobytes() + b";")
    return told.hexdigest()[:16]
