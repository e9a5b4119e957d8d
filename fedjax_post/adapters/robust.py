"""Robust rules that judge a client by its product A B, not by its factors.

    on_products(flex_lora(...), krum(1))

A client may scale A up and B down by any number: its product stays, its factors go
anywhere, and so does a mean, a median or a distance of factors. Here clients are
compared by the dense updates (alpha / r) A_k B_k, in the federation's units, over all
layers together. With n clients present:

| rule | withstands | forms in x out matrices |
| --- | --- | --- |
| krum(f), multi_krum(f, m) | f, if n >= 2 f + 3 | no |
| geometric_median | less than half of the weight | no |
| norm_bounded(c) | moves of at most c each | no |
| coordinate_median | fewer than n / 2 | n, a layer at a time |
| trimmed_mean(t) | at most t n | n, a layer at a time |

The first three choose weights for the clients, by lengths and distances of their products that
no cancelling components can falsify, see `adapters.comparison`; what they judge is what goes on. A
client whose product is not finite in float32 does not count. On n clients of rank R, with D the
entries of all adapted matrices, they cost:

| rule | multiplications | memory beside the factors |
| --- | --- | --- |
| norm_bounded | the QR factors of n A's | none |
| krum, multi_krum | and 3 n^2 D | `comparison.BLOCK` numbers |
| geometric_median | and, beside krum's, 2 n (R + 2) D a step | `comparison.BLOCK` numbers |

The last two make a dense matrix, which goes on as one client of full rank. What comes of it:
`flora` folds it as it is, nothing is lost, and it is billed dense; `florist` and `flex_lora`
cut its singular values, as they cut those of the mean, and the best rank R of a median
is no median. Algorithms that average the factors themselves are refused.
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
from fedjax_post.core.norms import hold, norm

# (Factors of [clients, layers, ..], weights [clients]) -> the same of what is to be averaged
Rule = Callable[[Factors, jax.Array], tuple[Factors, jax.Array]]


def on_products(base: Algorithm, rule: Rule) -> Algorithm:
    """The algorithm with a rule on products before its mean of them.

    The server needs memory for the factors of a whole cohort.

    Args:
      base: `flora`, `florist`, `flex_lora`, or one of yours whose aggregate's kind is
        "products".
      rule: one of this module.

    Raises:
      ValueError: if the server looks at more than products.
    """
    if base.aggregate.kind != "products":
        raise ValueError(
            "a rule on products needs a server that takes the products of clients' factors "
            "and nothing else; use flora, florist or flex_lora"
        )
    inner, kept = base.aggregate, stack()

    def finish(total):
        values, weights = kept.finish(total)
        nobody = ~(weights > 0).any()
        values, weights = rule(values, weights)
        weights = jnp.where(nobody, 0, weights)
        empty = inner.init(jax.tree.map(lambda x: x[0], values), len(weights))
        return inner.finish(inner.add(empty, values, weights))

    return base._replace(aggregate=kept._replace(finish=finish, kind="products"))


def krum(num_hostile: int) -> Rule:
    """Keeps the client whose product is nearest to its n - f - 2 nearest others'.

    Args:
      num_hostile: f, as in `core.robust.krum`.

    Raises:
      ValueError: if `num_hostile` is negative.
    """
    return multi_krum(num_hostile, 1)


def multi_krum(num_hostile: int, num_kept: int) -> Rule:
    """Keeps the clients of the least Krum scores, each counting 1.

    Args:
      num_hostile: f, as in `core.robust.krum`.
      num_kept: m, at least 1.

    Raises:
      ValueError: if `num_hostile` is negative or `num_kept` is not positive.
    """
    robust.check_krum(num_hostile, num_kept)

    def choose(values, weights):
        apart = distances(values)
        kept = robust.least_krum_scores(apart, weights > 0, num_hostile, num_kept)
        return values, kept.astype(jnp.float32)

    return _judged(choose)


def geometric_median(*, num_steps: int = 32, smoothing: float = 1e-6) -> Rule:
    """Weighs clients so that their mean has the least weighted sum of distances to them.

    Smoothed Weiszfeld steps, as in `core.robust.geometric_median`. They start from weights
    over each client's weighted median distance to the others.

    Args:
      num_steps: Weiszfeld steps; each makes the products anew.
      smoothing: as in `core.robust.geometric_median`.

    Raises:
      ValueError: if `num_steps` or `smoothing` is not positive.
    """
    robust.check_weiszfeld(num_steps, smoothing)

    def weigh(values, weights):
        share_out = lambda far: _share(robust.pulls(far, weights, smoothing))
        others = weights[:, None] * ~jnp.eye(len(weights), dtype=bool)
        first = share_out(robust.weighted_median(distances(values), others))

        def step(_, shares):
            mean = lambda products: jnp.tensordot(shares, products, 1)[None]
            return share_out(distances_to(values, mean, 1)[0])

        return values, jax.lax.fori_loop(0, num_steps, step, first)

    return _judged(weigh)


def norm_bounded(max_norm: float) -> Rule:
    """Scales every client's product down to a norm of at most `max_norm`.

    Args:
      max_norm: the largest Frobenius norm of A B over all layers that counts in full.

    Raises:
      ValueError: if `max_norm` is not positive.
    """
    robust.check_norm(max_norm)

    def shrink(values, weights):
        return values._replace(b=jax.vmap(lambda b: hold(b, max_norm))(values.b)), weights

    return _judged(shrink)


def coordinate_median() -> Rule:
    """The median of each entry of the products, every client counting 1."""
    return _per_coordinate(robust.median_cut)


def trimmed_mean(fraction: float) -> Rule:
    """The mean of each entry of the products without its `floor(fraction n)` least and greatest.

    Raises:
      ValueError: if `fraction` is outside [0, 0.5).
    """
    return _per_coordinate(robust.trimmed_cut(fraction))


def _judged(rule: Rule) -> Rule:
    """The rule on orthonormal factors of those clients whose products are finite."""

    def judge(values, weights):
        values = orthonormal(values)
        finite = jnp.isfinite(jax.vmap(norm)(values.b))
        weights = jnp.where(finite, weights, 0)
        return rule(jax.tree.map(lambda x: present(x, weights), values), weights)

    return judge


def _share(pulls: jax.Array) -> jax.Array:
    return pulls / jnp.maximum(pulls.sum(), jnp.finfo(jnp.float32).tiny)


def _per_coordinate(cut: Callable) -> Rule:
    combine = robust.sorted_mean(cut)

    def dense(values, weights):
        sizes = jax.tree.leaves(jax.tree.map(lambda a, b: min(a.shape[2], b.shape[3]), *values))
        rank = max(sizes)  # of every matrix, so that each can carry any product

        def middle(a, b):
            by_layer = a.swapaxes(0, 1), b.swapaxes(0, 1)
            product = over_layers(lambda a, b: combine(a @ b, weights), *by_layer)
            return _as_factors(product, rank)

        with jax.default_matmul_precision("highest"):
            pairs = jax.tree.map(middle, *values)
        return Factors(*unzip(pairs, values.a)), jnp.ones(1)

    return dense


def _as_factors(product: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
    """One client's A `[1, layers, in, rank]` and B of a dense product: itself, and ones."""
    num_layers, size_in, size_out = product.shape
    pad = lambda x, axis: jnp.pad(x, [(0, (rank - x.shape[axis]) * (i == axis)) for i in range(3)])
    ones = lambda size: jnp.broadcast_to(jnp.eye(size), (num_layers, size, size))
    pair = (product, ones(size_out)) if size_out <= size_in else (ones(size_in), product)
    return pad(pair[0], 2)[None], pad(pair[1], 1)[None]
