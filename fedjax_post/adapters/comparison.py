"""Lengths and distances of clients' products A B that rounding errors cannot falsify.

The components of a product may cancel: A = [a, -a] and B = [b; b + e] give -a e, and with
factors of size 1e3 float32 preserves at best the sign of an e of 1e-3. A hostile client can
choose such factors, so that Gram matrices of its factors, or another order of summation, give
a different product. `orthonormal` is therefore applied once, before any comparison: afterwards
the product is well defined and its length is that of its second factor. Distances are computed
from differences of dense products, a block of rows at a time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_post.adapters.factors import Factors
from fedjax_post.adapters.products import over_layers, unzip
from fedjax_post.core.norms import norm
from fedjax_post.core.robust import UNIT

BLOCK = 2**22  # entries of dense products that are in memory at once


def orthonormal(values: Factors) -> Factors:
    """Returns factors of the same products, where A has orthonormal columns.

    The lengths are in B. If large components of a product cancel, rounding decides here, once,
    what the product is. The nonzero components come first, as many as A has nonzero columns. An
    entry of B that exceeds float32 is inf.

    Args:
      values: leaves `[clients, layers, ...]`, finite.
    """

    def matrix(a, b):
        live = (a != 0).any(0)
        first = jnp.argsort(~live, stable=True)
        scales = [jnp.clip(jnp.abs(x).max(), 2.0**-100, 2.0**100) for x in (a, b)]
        q, r = jnp.linalg.qr(a[:, first] / scales[0])
        half = jnp.sqrt(scales[0]) * jnp.sqrt(scales[1])
        b = r @ (b[first] / scales[1]) * half * half
        short = a.shape[1] - q.shape[1]  # if R exceeds the number of rows
        q, b = jnp.pad(q, ((0, 0), (0, short))), jnp.pad(b, ((0, short), (0, 0)))
        is_live = jnp.arange(a.shape[1]) < live.sum()
        return jnp.where(is_live[None], q, 0), jnp.where(is_live[:, None], b, 0)

    def leaf(a, b):
        flat = lambda x: x.astype(jnp.float32).reshape(-1, *x.shape[2:])
        with jax.default_matmul_precision("highest"):
            pair = over_layers(matrix, flat(a), flat(b))
        return tuple(new.reshape(x.shape) for new, x in zip(pair, (a, b), strict=True))

    return Factors(*unzip(jax.tree.map(leaf, *values), values.a))


def distances(values: Factors) -> jax.Array:
    """Returns |A_i B_i - A_j B_j| over all layers, `[clients, clients]`, in `UNIT`s.

    The differences are taken of the dense products, so that no precision is lost.
    """
    return distances_to(values, lambda products: products, len(jax.tree.leaves(values)[0]))


def distances_to(values: Factors, points_of: Callable, num_points: int) -> jax.Array:
    """Returns the distances `[points, clients]` of all products to some points, in `UNIT`s.

    Args:
      values: leaves `[clients, layers, ...]`, with products that are finite in float32.
      points_of: a function from products `[clients, entries]` to points `[points, entries]`; it
        is applied to blocks of entries.
      num_points: how many points it returns.
    """
    add = jax.vmap(jax.vmap(lambda one, other: norm(jnp.stack([one, other]))))
    total = jnp.zeros((num_points, len(jax.tree.leaves(values)[0])))

    def block(total, a, b):
        products = jnp.einsum("kir,kro->kio", a, b / UNIT).reshape(len(b), -1)
        apart = lambda point: jax.vmap(norm)(products - point[None])
        return add(total, jax.lax.map(apart, points_of(products)))

    def layer(total, pair):
        a, b = pair
        rows = max(1, min(a.shape[1], BLOCK // (b.shape[0] * b.shape[2])))
        a = jnp.pad(a, ((0, 0), (0, -a.shape[1] % rows), (0, 0)))
        blocks = a.reshape(a.shape[0], -1, rows, a.shape[2]).swapaxes(0, 1)
        return jax.lax.scan(lambda total, a: (block(total, a, b), None), total, blocks)[0], None

    with jax.default_matmul_precision("highest"):
        for a, b in zip(jax.tree.leaves(values.a), jax.tree.leaves(values.b), strict=True):
            total = jax.lax.scan(layer, total, (a.swapaxes(0, 1), b.swapaxes(0, 1)))[0]
    return total
