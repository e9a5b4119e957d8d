"""The identity of a run: its settings, data, weights and cohorts, as short texts.

A run may be resumed only if its identity is unchanged. Settings that affect how a result is
computed but not the result itself (chunk sizes, executors, devices) are left out, and so is the
number of rounds.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core.algorithm import PyTree
from fedjax_post.data.clients import Clients, fingerprint_of
from fedjax_post.simulate.plan import Plan
from fedjax_post.simulate.visits import steps

_ROUNDS = 3  # number of first rounds whose cohorts represent the sampler


def identify(model: PyTree, clients: Clients, *, params: PyTree, plan: Plan) -> dict[str, Any]:
    """Returns the identity of a run, by name.

    Args:
      model: the frozen model, as given to `run`.
      clients: the population; its method `fingerprint` is used if it has one.
      params: initial parameters.
      plan: of the run. Entries of `plan.identity` are added, and replace those of equal name.

    Returns:
      A mapping with `seed`, `clients` (their number), `data` (a hash of their rows), `model` and
      `params` (hashes of all arrays, and of the architectures of models), `cohorts` (a hash of the
      cohorts of the first rounds), `feed`, and `buffer` of an asynchronous run.
    """
    parts: dict[str, Callable[[], Any]] = {
        "seed": lambda: plan.seed,
        "clients": lambda: len(clients),
        "data": lambda: fingerprint_of(clients),
        "model": lambda: array_hash((model, _configs(model))),
        "params": lambda: array_hash(params),
        "cohorts": lambda: _cohorts(plan, len(clients)),
        "feed": lambda: getattr(plan.feed, "__name__", "own"),
    }
    if (buffer := plan.buffer) is not None:
        parts["buffer"] = lambda: list(buffer)
    given: Mapping[str, Any] = plan.identity
    return {name: make() for name, make in parts.items() if name not in given} | dict(given)


def _configs(model: PyTree) -> list[str]:
    """Returns what the configs of language models say; they are static, so no leaves of a tree.

    Left out are the file that they were read from, and what changes memory and time alone.
    """
    has_config = lambda node: dataclasses.is_dataclass(getattr(node, "config", None))
    nodes = jax.tree.leaves(model, is_leaf=has_config)
    found = [dataclasses.asdict(node.config) for node in nodes if has_config(node)]
    return [repr({**config, "source": "", "remat": False}) for config in found]


def array_hash(tree: PyTree) -> str:
    """Returns a hash of the arrays of a tree: dtypes, shapes and every bit.

    Each array contributes a 32-bit integer sum over its elements, computed on the device that
    holds the array. It is the same for every device and layout, and differs if any single element
    does. Other leaves contribute their type, and numbers and texts also their value.
    """
    leaves = jax.tree.leaves(tree)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array | np.ndarray)]
    sums = iter(jax.device_get([_sum(x) for x in arrays]))
    lines = []
    for leaf in leaves:
        if isinstance(leaf, jax.Array | np.ndarray):
            lines.append(f"{leaf.dtype}{leaf.shape}{next(sums)}")
        else:
            plain = isinstance(leaf, str | int | float | complex | np.generic)
            lines.append(f"{type(leaf).__qualname__}{leaf if plain else ''}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@jax.jit
def _sum(x: jax.Array) -> jax.Array:
    """Returns the sum modulo 2^32 of the elements' bits, each mixed with its position."""
    bits, place = _bits(x), jnp.uint32(0)
    for axis, size in enumerate(bits.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    # Odd factors and shifts are invertible, so that a change of any one element changes the sum.
    mixed = (bits ^ (place * np.uint32(2654435761))) * np.uint32(2246822519)
    return jnp.sum(mixed ^ (mixed >> 15), dtype=jnp.uint32)


def _bits(x: jax.Array) -> jax.Array:
    """Returns the elements of an array as uint32; wider elements become several."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == bool or (jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize < 4):
        return x.astype(jnp.int32).astype(jnp.uint32)  # also for types of less than a byte
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag])
    form = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, form).astype(jnp.uint32)


def _cohorts(plan: Plan, population: int) -> str:
    """Returns a hash of the clients visited in the first rounds, by sampler or by speeds."""
    found = hashlib.sha256()
    for step in steps(plan, population, range(_ROUNDS)):
        for round, ids in step.began:
            named = ids if plan.buffer is None else [round, *ids]
            found.update(np.asarray(named, "<i8").tobytes() + b";")
    return found.hexdigest()[:16]
