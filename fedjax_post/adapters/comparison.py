"""Lengths and distances of clients' products A B that no rounding can falsify.

The components of a product may cancel: A = [a, -a] and B = [b; b + e] make -a e, and with
factors of size 1e3 float32 keeps of an e of 1e-3 the sign at best. A client can choose that, so
that Gram matrices of its factors, or another order of summation, show another product. Hence
`orthonormal`, once, before anything looks: from then on there is one product, whose length is
that of its second factor. Distances are differences of dense products, a block of rows at a time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_post.adapters.factors import Factors
from fedjax_post.adapters.products import over_layers, unzip
from fedjax_post.core.norms import norm
from fedjax_post.core.robust import UNIT

BLOCK = 2**22  # numbers of dense products that are held at once


def orthonormal(values: Factors) -> Factors:
    """The same products, A with orthonormal columns and all lengths in B.

    What a component weighs is what is left of it after rounding: a product of large
    components that cancel is the one that float32 makes of it here, and no other one later.
    As many components are live as there are nonzero columns in A, the first ones. An entry of
    B that exceeds float32 is inf.

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
        short = a.shape[1] - q.shape[1]  # where R exceeds the rows
        q, b = jnp.pad(q, ((0, 0), (0, short))), jnp.pad(b, ((0, short), (0, 0)))
        kept = jnp.arange(a.shape[1]) < live.sum()
        return jnp.where(kept[None], q, 0), jnp.where(kept[:, None], b, 0)

    def leaf(a, b):
        flat = lambda x: x.astype(jnp.float32).reshape(-1, *x.shape[2:])
        with jax.default_matmul_precision("highest"):
            pair = over_layers(matrix, flat(a), flat(b))
        return tuple(new.reshape(x.shape) for new, x in zip(pair, (a, b), strict=True))

    return Factors(*unzip(jax.tree.map(leaf, *values), values.a))


def distances(values: Factors) -> jax.Array:
    """|A_i B_i - A_j B_j| over all layers, `[clients, clients]`, in `UNIT`s.

    Of the dense products, by differences, so that nothing cancels.
    """
    return distances_to(values, lambda products: products, len(jax.tree.leaves(values)[0]))


def distances_to(values: Factors, points_of: Callable, num_points: int) -> jax.Array:
    """Distances `[points, clients]` of all products to points.

    Args:
      values: leaves `[clients, layers, ...]`, with products that float32 holds.
      points_of: products `[clients, entries]` to points `[points, entries]`, for any entries.
      num_points: how many it gives.
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
