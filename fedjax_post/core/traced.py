"""Whether values are known, or only their shapes: for models that answer from outside of jax."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_post.core.access import AccessError

PyTree = Any


def is_traced(*values: PyTree) -> bool:
    """Returns whether the values, or all computations here, are being traced by jax.

    Raises:
      AccessError: if they are mapped by `jax.vmap`, since calls to a host come one by one.
    """
    leaves = [x for x in jax.tree.leaves(values) if isinstance(x, jax.core.Tracer)]
    for leaf in leaves:
        _one_by_one(leaf)
    return bool(leaves) or isinstance(jnp.zeros(()), jax.core.Tracer)


@jax.custom_batching.custom_vmap
def _one_by_one(x: jax.Array) -> jax.Array:
    return x


@_one_by_one.def_vmap
def _refuse(axis_size, in_batched, x):
    del axis_size, in_batched, x
    raise AccessError(
        "a hosted model takes one call after another and cannot be mapped by jax.vmap; run "
        "with executor=host, and loop in the algorithm with jax.lax.map or jax.lax.scan"
    )
