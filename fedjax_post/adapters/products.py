"""Products of stacked factors: their mean, its singular vectors, and the error of averaging.

All functions work on all layers at once; the factors of K clients have leaves
A `[K, num_layers, in, R]` and B `[K, num_layers, R, out]`. Singular vectors are computed from
thin QR factors of the stacks and the SVD of their small core, never from a matrix of in x out.
Products are in full float32 on every device, like the sums in `core.aggregates`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fedjax_post.adapters.factors import Factors
from fedjax_post.core import wire
from fedjax_post.core.aggregates import present, weighted_sum
from fedjax_post.core.algorithm import Aggregate, Pieces

PyTree = Any


class Means(NamedTuple):
    """A cohort's weighted means, or the weighted sums before `finish`."""

    product: PyTree  # leaves [num_layers, in, out]: of A_k B_k
    factors: Factors  # of A_k and of B_k
    weight: jax.Array  # (), float32
    num_components: jax.Array  # (), int32: components that the clients sent, an unweighted sum


class Svd(NamedTuple):
    """Singular vectors and values of one product `[num_layers, in, out]` = [N, I, O]."""

    left: Float[Array, "N I P"]  # orthonormal columns; the largest entry of each is positive
    values: Float[Array, "N P"]  # descending
    right: Float[Array, "N P O"]  # orthonormal rows


def mean_products() -> Aggregate:
    """Returns an aggregate from `Factors` to `Means`.

    It keeps a running sum, with memory for one dense product per adapted matrix, whatever the
    cohort size.
    """

    def init(like, cohort_size):
        del cohort_size
        product = lambda a, b: jnp.zeros((*a.shape[:-1], b.shape[-1]))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), like)
        return Means(jax.tree.map(product, *like), zeros, jnp.zeros(()), jnp.int32(0))

    def add(total, values, weights):
        values = jax.tree.map(lambda x: present(x, weights), values)
        weigh = lambda x: weighted_sum(weights, x)
        new = Means(
            weighted_product(values, weights),
            jax.tree.map(weigh, values),
            weights.sum(),
            _num_live(values.a),
        )
        return optax.tree.add(total, new)

    def finish(total):
        scale = jnp.where(total.weight > 0, 1 / total.weight, 0)
        mean = lambda tree: optax.tree.scale(scale, tree)
        return total._replace(product=mean(total.product), factors=mean(total.factors))

    return Aggregate(init, add, optax.tree.add, finish)


def weighted_product(values: Factors, weights: Float[Array, " K"]) -> PyTree:
    """Returns sum_k w_k A_k B_k, leaves `[num_layers, in, out]`.

    The weight is applied to A only; on both factors it would count twice.
    """

    def product(a, b):
        a = a * weights.reshape(-1, 1, 1, 1)
        return jnp.einsum("knir,knro->nio", a, b, precision="highest")

    return jax.tree.map(product, *values)


def product_of(factors: Factors) -> PyTree:
    """Returns A B of one adapter, leaves `[num_layers, in, out]`."""
    product = lambda a, b: jnp.einsum("nir,nro->nio", a, b, precision="highest")
    return jax.tree.map(product, *factors)


def product_svd(a: Array, b: Array, shares: Float[Array, " K"]) -> Svd:
    """Returns the SVD of sum_k shares_k A_k B_k of one adapted matrix; P = min(K R, in, out).

    Args:
      a: `[K, num_layers, in, R]`.
      b: `[K, num_layers, R, out]`.
      shares: weights that sum to 1, or to 0 for an empty cohort.
    """
    num_layers, size_in, size_out = *a.shape[1:3], b.shape[-1]
    a = a * shares.reshape(-1, 1, 1, 1)
    stacked_a = a.transpose(1, 2, 0, 3).reshape(num_layers, size_in, -1)
    stacked_b = b.transpose(1, 0, 2, 3).reshape(num_layers, -1, size_out)
    with jax.default_matmul_precision("highest"):
        return over_layers(_stacked_svd, stacked_a, stacked_b)


def _stacked_svd(a: Array, b: Array) -> Svd:
    """Returns the SVD of a b, `[in, K R]` times `[K R, out]`."""
    q_a, r_a = jnp.linalg.qr(a)
    q_b, r_b = jnp.linalg.qr(b.T)
    left, values, right = jnp.linalg.svd(r_a @ r_b.T, full_matrices=False)
    left, right = q_a @ left, right @ q_b.T
    # Both signs are valid; one is chosen, so that the order of clients has no effect.
    largest = jnp.abs(left).argmax(0, keepdims=True)
    sign = jnp.where(jnp.take_along_axis(left, largest, 0) < 0, -1.0, 1.0)
    return Svd(left * sign, values, right * sign.T)


def over_layers(fn: Callable, *arrays: Array) -> PyTree:
    """Returns the results of `fn` for each layer's arrays, one layer at a time, stacked again.

    On a CPU, batched LAPACK calls that XLA runs in parallel wait for the same few threads, and
    can deadlock (seen with jaxlib 0.10 on 2 cores). A call on one matrix needs only its own
    thread.
    """
    return jax.lax.map(lambda layer: fn(*layer), arrays)


def top_components(values: Factors, shares: Float[Array, " K"], rank: int) -> Factors:
    """Returns the best factors of `rank` components for sum_k shares_k A_k B_k.

    A is orthonormal and B includes the singular values, largest first: the first r components
    are the best approximation of rank r (Eckart-Young), for every r.

    Args:
      values: leaves `[K, num_layers, ...]`.
      shares: weights that sum to 1, or to 0 for an empty cohort.
      rank: the number of components to return; components beyond the rank of the sum are zero.
    """

    def top(a, b):
        svd = product_svd(a, b, shares)
        short = max(0, rank - svd.values.shape[-1])
        pad = lambda x, axis: jnp.pad(x, [(0, short * (i == axis)) for i in range(3)])
        cut_b = svd.values[:, :rank, None] * svd.right[:, :rank]
        return pad(svd.left[:, :, :rank], 2), pad(cut_b, 1)

    pairs = jax.tree.map(top, *values)
    return Factors(*unzip(pairs, values.a))


def unzip(pairs: PyTree, like: PyTree) -> tuple[PyTree, PyTree]:
    """Returns two trees like `like` from one whose leaves are pairs."""
    return jax.tree.transpose(jax.tree.structure(like), None, pairs)


def shares_of(weights: Float[Array, " K"]) -> Float[Array, " K"]:
    """Returns the weights over their sum; zeros for an empty cohort."""
    return weights / jnp.where(weights.sum() > 0, weights.sum(), 1)


def frobenius_norm(factors: Factors) -> Float[Array, ""]:
    """Returns |A B| over all layers of one client's factors, from Gram matrices of size R."""
    return jnp.sqrt(_gram_sum(factors.a, factors.b))


def aggregation_error(values: Factors, weights: Float[Array, " K"]) -> Float[Array, ""]:
    """Returns |sum w_k A_k B_k - (sum w_k A_k)(sum w_k B_k)| over |sum w_k A_k B_k|.

    Norms are Frobenius norms over all layers, from Gram matrices of size K R. The difference is
    computed as sum w_k (A_k - A)(B_k - B), which is equal for weights that sum to 1, so that no
    precision is lost and an error of zero is exactly zero.

    Args:
      values: leaves `[K, num_layers, ...]`; B must include alpha / r if that differs between
        layers.
      weights: not negative; they are divided by their sum.
    """
    shares = shares_of(weights)
    column = shares.reshape(-1, 1, 1, 1)
    centred = lambda x: x - (column * x).sum(0, keepdims=True)
    stack_a = lambda x: (x * column).transpose(1, 2, 0, 3).reshape(*x.shape[1:3], -1)
    stack_b = lambda x: x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1, x.shape[3])

    def norm(values):
        return jnp.sqrt(_gram_sum(jax.tree.map(stack_a, values.a), jax.tree.map(stack_b, values.b)))

    whole = norm(values)
    return norm(jax.tree.map(centred, values)) / jnp.where(whole > 0, whole, 1)


def matrix_bytes(factors: Factors) -> list[int]:
    """Returns the bytes of one component of one layer of each adapted matrix, in tree order."""
    pairs = zip(jax.tree.leaves(factors.a), jax.tree.leaves(factors.b), strict=True)
    return [4 * (a.shape[-2] + b.shape[-1]) for a, b in pairs]


def bill_of_folds(
    folded: jax.Array, seen: jax.Array, factors: Factors, *, beside: int = 0
) -> Pieces:
    """Returns the pieces that a client receives to bring its folded base up to date.

    These are the components that were folded since its last visit or, if that is fewer bytes,
    the dense sum of all folds. A client whose visit was dropped keeps no count, so that it is
    charged again.

    Args:
      folded: components folded so far, over all layers, `[adapted matrices]`, int32.
      seen: `folded` at the client's last visit.
      factors: the adapter's factors, for shapes.
      beside: bytes that are sent with the dense sum.
    """
    sizes = matrix_bytes(factors)
    pairs = zip(jax.tree.leaves(factors.a), jax.tree.leaves(factors.b), strict=True)
    dense = sum(4 * a.shape[0] * a.shape[1] * b.shape[2] for a, b in pairs) + beside
    missed = folded - seen
    thin = jnp.dot(missed.astype(jnp.float32), jnp.array(sizes, jnp.float32)) < dense
    stacks = [(size, jnp.where(thin, missed[i], 0)) for i, size in enumerate(sizes)]
    return wire.pieces(*stacks, (dense, jnp.where(thin, 0, 1)))


def layer_counts(factors: Factors) -> jax.Array:
    """Returns the number of layers of each adapted matrix, `[adapted matrices]`, int32."""
    return jnp.array([leaf.shape[0] for leaf in jax.tree.leaves(factors.a)], jnp.int32)


def _gram_sum(a: PyTree, b: PyTree) -> jax.Array:
    """Returns |A B|^2 = sum (A'A) * (B B'), over all layers."""

    def squared(a, b):
        gram_a = jnp.einsum("nir,nis->nrs", a, a)
        return (gram_a * jnp.einsum("nro,nso->nrs", b, b)).sum()

    return jnp.maximum(sum(jax.tree.leaves(jax.tree.map(squared, a, b))), 0)


def _num_live(a: PyTree) -> jax.Array:
    """Returns the number of nonzero components over clients, int32; absent clients have none."""
    live = [(leaf != 0).any((1, 2)) for leaf in jax.tree.leaves(a)]  # [K, R] each
    return jnp.stack(live).any(0).sum(dtype=jnp.int32)
