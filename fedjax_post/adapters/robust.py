"""Robust rules that compare clients by their products A B, not by their factors.

    on_products(flex_lora(...), krum(1))

A client may scale A up and B down by any number. Its product does not change, but its factors
do, and with them any mean, median or distance of factors. These rules compare clients by the
dense updates (alpha / r) A_k B_k, in the federation's units, over all layers together. With n
clients present:

| rule | hostile clients that it tolerates | forms in x out matrices |
| --- | --- | --- |
| krum(f), multi_krum(f, m) | f, if n >= 2 f + 3 | no |
| geometric_median | less than half of the weight | no |
| norm_bounded(c) | limits each client to a norm of c | no |
| coordinate_median | fewer than n / 2 | n, a layer at a time |
| trimmed_mean(t) | at most t n | n, a layer at a time |

The rules that form no matrices use lengths and distances of products that cancelling components
cannot falsify, see `adapters.comparison`; the factors that they compare are also those that are
aggregated. A client whose product is not finite in float32 does not count. For n clients of rank
R, where D is the number of entries of all adapted matrices, they cost:

| rule | multiplications | memory in addition to the factors |
| --- | --- | --- |
| norm_bounded | QR factors of n matrices A | none |
| krum, multi_krum | the same and 3 n^2 D | `comparison.BLOCK` numbers |
| geometric_median | those of krum and 2 n (R + 2) D per step | `comparison.BLOCK` numbers |

The last two rules of the first table make a dense matrix, which is passed on like one client of
full rank. `flora` folds this matrix without loss, and it is billed as dense. `florist` and
`flex_lora` truncate its singular values, as they do for a mean; the best approximation of rank R
of a median is not a median. Algorithms that average the factors themselves are refused.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_post.adapters.comparison import distances, distances_to, orthonormal
from fedjax_post.adapters.factors import Factors
from fedjax_post.adapters.products import over_layers, unzip
from fedjax_post.core import robust
from fedjax_post.core.aggregates import present, stack
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.core.norms import limit_norm, norm

# (Factors of [clients, layers, ..], weights [clients]) -> the factors and weights to average
Rule = Callable[[Factors, jax.Array], tuple[Factors, jax.Array]]


def on_products(base: Algorithm, rule: Rule) -> Algorithm:
    """Returns the algorithm with a rule applied to the clients' products before their mean.

    The server needs memory for the factors of a whole cohort.

    Args:
      base: `flora`, `florist`, `flex_lora`, or another algorithm whose aggregate is of kind
        "products".
      rule: a rule of this module.

    Raises:
      ValueError: if the server uses more than the products.
    """
    if base.aggregate.kind != "products":
        raise ValueError(
            "a rule on products needs a server that takes the products of clients' factors "
            "and nothing else; use flora, florist or flex_lora"
        )
    inner, everyone = base.aggregate, stack()

    def finish(total):
        values, weights = everyone.finish(total)
        nobody = ~(weights > 0).any()
        values, weights = rule(values, weights)
        weights = jnp.where(nobody, 0, weights)
        empty = inner.init(jax.tree.map(lambda x: x[0], values), len(weights))
        return inner.finish(inner.add(empty, values, weights))

    return base._replace(aggregate=everyone._replace(finish=finish, kind="products"))


def krum(num_hostile: int) -> Rule:
    """Returns a rule that keeps the client whose product is closest to its n - f - 2 nearest.

    Args:
      num_hostile: f, as in `core.robust.krum`.

    Raises:
      ValueError: if `num_hostile` is negative.
    """
    return multi_krum(num_hostile, 1)


def multi_krum(num_hostile: int, num_kept: int) -> Rule:
    """Returns a rule that keeps the clients of the least Krum scores, each with weight 1.

    Args:
      num_hostile: f, as in `core.robust.krum`.
      num_kept: m, at least 1.

    Raises:
      ValueError: if `num_hostile` is negative or `num_kept` is not positive.
    """
    robust.check_krum(num_hostile, num_kept)

    def choose(values, weights):
        apart = distances(values)
        chosen = robust.least_krum_scores(apart, weights > 0, num_hostile, num_kept)
        return values, chosen.astype(jnp.float32)

    return _on_finite(choose)


def geometric_median(*, num_steps: int = 32, smoothing: float = 1e-6) -> Rule:
    """Returns a rule that weights clients so that their mean is the geometric median.

    It takes smoothed Weiszfeld steps, as `core.robust.geometric_median` does. They start from
    each client's weight divided by its weighted median distance to the others.

    Args:
      num_steps: Weiszfeld steps; each computes the products again.
      smoothing: as in `core.robust.geometric_median`.

    Raises:
      ValueError: if `num_steps` or `smoothing` is not positive.
    """
    robust.check_weiszfeld(num_steps, smoothing)

    def weigh(values, weights):
        share_out = lambda far: _share(robust.weiszfeld_weights(far, weights, smoothing))
        others = weights[:, None] * ~jnp.eye(len(weights), dtype=bool)
        first = share_out(robust.weighted_median(distances(values), others))

        def step(_, shares):
            mean = lambda products: jnp.tensordot(shares, products, 1)[None]
            return share_out(distances_to(values, mean, 1)[0])

        return values, jax.lax.fori_loop(0, num_steps, step, first)

    return _on_finite(weigh)


def norm_bounded(max_norm: float) -> Rule:
    """Returns a rule that scales every client's product to a norm of at most `max_norm`.

    Args:
      max_norm: the largest Frobenius norm of A B over all layers that is not scaled down.

    Raises:
      ValueError: if `max_norm` is not positive.
    """
    robust.check_norm(max_norm)

    def shrink(values, weights):
        return values._replace(b=jax.vmap(lambda b: limit_norm(b, max_norm))(values.b)), weights

    return _on_finite(shrink)


def coordinate_median() -> Rule:
    """Returns a rule for the median of each entry of the products, every client with weight 1."""
    return _per_coordinate(robust.median_cut)


def trimmed_mean(fraction: float) -> Rule:
    """Returns a rule for the trimmed mean of each entry of the products.

    The `floor(fraction n)` least and greatest values of each entry are left out.

    Raises:
      ValueError: if `fraction` is outside [0, 0.5).
    """
    return _per_coordinate(robust.trimmed_cut(fraction))


def _on_finite(rule: Rule) -> Rule:
    """Returns the rule applied to orthonormal factors; clients with infinite products drop out."""

    def apply(values, weights):
        values = orthonormal(values)
        finite = jnp.isfinite(jax.vmap(norm)(values.b))
        weights = jnp.where(finite, weights, 0)
        return rule(jax.tree.map(lambda x: present(x, weights), values), weights)

    return apply


def _share(weights: jax.Array) -> jax.Array:
    return weights / jnp.maximum(weights.sum(), jnp.finfo(jnp.float32).tiny)


def _per_coordinate(cut: Callable) -> Rule:
    combine = robust.sorted_mean(cut)

    def dense(values, weights):
        sizes = jax.tree.leaves(jax.tree.map(lambda a, b: min(a.shape[2], b.shape[3]), *values))
        rank = max(sizes)  # enough for any product of every matrix

        def middle(a, b):
            by_layer = a.swapaxes(0, 1), b.swapaxes(0, 1)
            product = over_layers(lambda a, b: combine(a @ b, weights), *by_layer)
            return _as_factors(product, rank)

        with jax.default_matmul_precision("highest"):
            pairs = jax.tree.map(middle, *values)
        return Factors(*unzip(pairs, values.a)), jnp.ones(1)

    return dense


def _as_factors(product: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """Returns A and B `[1, layers, ...]` of a dense product: itself and an identity matrix."""
    num_layers, size_in, size_out = product.shape
    pad = lambda x, axis: jnp.pad(x, [(0, (rank - x.shape[axis]) * (i == axis)) for i in range(3)])
    ones = lambda size: jnp.broadcast_to(jnp.eye(size), (num_layers, size, size))
    pair = (product, ones(size_out)) if size_out <= size_in else (ones(size_in), product)
    return pad(pair[0], 2)[None], pad(pair[1], 1)[None]
