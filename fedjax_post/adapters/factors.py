"""The factors of an adapter as two trees, for a client of any rank.

The federation keeps one adapter of R components under the model's own scale
s = alpha / R. A client of rank r holds the first r of them and trains under its own
scale alpha / r, as LoRA prescribes. `narrow` and `widen` take factors to a client's
units and back so that the product A scale B stays what it was: B is multiplied by
s r / alpha on the way down, and by alpha / (s r) on the way up. A server may
therefore compare and add the products A B of any clients without knowing a scale.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.adapters.lora import with_scale
from fedjax_post.core import local, wire
from fedjax_post.core.algorithm import Bill, ClientData, Context, Metrics, Reading

PyTree = Any


class Factors(NamedTuple):
    """An adapter's factors, one leaf for each adapted matrix; either may be None."""

    a: PyTree  # leaves [num_layers, in, R], float32
    b: PyTree  # leaves [num_layers, R, out], float32


class Trained(NamedTuple):
    """A client's factors before and after a visit, in the federation's units."""

    start: Factors  # what it held: zero from its rank on
    end: Factors
    metrics: Metrics


def split(params: PyTree) -> Factors:
    """Returns the factors of `{"lora": tree}`.

    Raises:
      ValueError: if `params` holds anything else, or but one factor of a layer.
    """
    if not isinstance(params, dict) or set(params) != {"lora"}:
        held = sorted(params) if isinstance(params, dict) else type(params).__name__
        raise ValueError(
            f"this algorithm federates the factors of an adapter, got {held}; "
            "use adapter=lora or an algorithm for any parameters, such as fed_avg"
        )
    pick = lambda name: jax.tree.map(lambda pair: pair[name], params["lora"], is_leaf=_is_pair)
    a, b = pick("a"), pick("b")
    if len(jax.tree.leaves(a)) != len(jax.tree.leaves(b)):
        raise ValueError(
            "this algorithm takes both factors of every adapted layer, but some are elsewhere; "
            "put a local part around an algorithm for any parameters, such as fed_avg"
        )
    return Factors(a, b)


def join(factors: Factors) -> PyTree:
    """Returns `{"lora": tree}` of the factors."""
    return {"lora": jax.tree.map(lambda a, b: {"a": a, "b": b}, factors.a, factors.b)}


def first_components(factors: Factors, rank: Any) -> Factors:
    """Returns the factors with every component from `rank` on set to 0; `rank` may be traced."""
    live = jnp.arange(rank_of(factors)) < rank
    return Factors(
        jax.tree.map(lambda a: jnp.where(live[None, None], a, 0), factors.a),
        jax.tree.map(lambda b: jnp.where(live[None, :, None], b, 0), factors.b),
    )


def beside(model: Any, one: Factors, other: Factors, share: Any) -> tuple[Any, Factors]:
    """Returns a model and factors of 2 R components: (1 - share) of `one` and `share` of `other`.

    The shares are in B, so that the model's scale stays constant over a layer's components
    and the pair can be merged or exported as one adapter.
    """
    joined = lambda axis: lambda x, y: jnp.concatenate([x, y], axis)
    b = jax.tree.map(
        joined(-2), optax.tree.scale(1 - share, one.b), optax.tree.scale(share, other.b)
    )
    scales = jax.tree.map(lambda s: jnp.concatenate([s, s], -1), model.variables["lora_scale"])
    wide = with_scale(model, scales, dropout=model.lora_dropout)
    return wide, Factors(jax.tree.map(joined(-1), one.a, other.a), b)


def redraw(factors: Factors, key: jax.Array) -> Factors:
    """Returns factors with a fresh A, drawn as `add_lora` does: U(-1/sqrt(in), 1/sqrt(in))."""
    leaves, structure = jax.tree.flatten(factors.a)
    keys = jax.random.split(key, len(leaves))
    bounds = [leaf.shape[-2] ** -0.5 for leaf in leaves]
    drawn = [
        jax.random.uniform(k, leaf.shape, leaf.dtype, -bound, bound)
        for k, leaf, bound in zip(keys, leaves, bounds, strict=True)
    ]
    return factors._replace(a=jax.tree.unflatten(structure, drawn))


def rank_of(factors: Factors) -> int:
    """Returns R, the components of the adapter."""
    if factors.a is not None:
        return jax.tree.leaves(factors.a)[0].shape[-1]
    return jax.tree.leaves(factors.b)[0].shape[-2]


def own_rank(rank: Any, max_rank: int) -> jax.Array:
    """Returns the components that a client holds, int32; a rank of 0 stands for all of them."""
    rank = jnp.asarray(rank, jnp.int32)
    return jnp.where(rank > 0, jnp.minimum(rank, max_rank), max_rank)


def for_rank(model: Any, rank: Any) -> Any:
    """Returns the model with the `lora_scale` of a client: alpha / rank; `rank` may be traced.

    alpha is read off the model: the sum of a layer's scale over its components.
    """

    def own(scale):
        live = scale > 0
        live &= (jnp.arange(scale.shape[-1]) < own_rank(rank, scale.shape[-1]))[None]
        even = scale.sum(-1, keepdims=True) / jnp.maximum(live.sum(-1, keepdims=True), 1)
        return jnp.where(jnp.asarray(rank) > 0, jnp.where(live, even, 0), scale)

    scales = jax.tree.map(own, model.variables["lora_scale"])
    return with_scale(model, scales, dropout=model.lora_dropout)


def narrow(factors: Factors, model: Any, own: Any) -> Factors:
    """Returns the factors as the client of `own = for_rank(model, rank)` holds them."""
    return _convert(factors, _scales(model), _scales(own), _scales(own))


def widen(factors: Factors, model: Any, own: Any) -> Factors:
    """Returns a client's factors in the federation's units, zero from its rank on."""
    return _convert(factors, _scales(own), _scales(model), _scales(own))


def train(
    loss_fn: local.LossFn,
    tx: optax.GradientTransformation,
    factors: Factors,
    model: Any,
    data: ClientData,
    ctx: Context,
    *,
    only: str = "",
) -> Trained:
    """Returns a client's factors before and after `local_steps` at its own rank and scale.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      tx: the local optimizer; it sees a `Factors`.
      factors: the federation's.
      model: the frozen model with its `lora_scale`, and perhaps a residual.
      data: of the client; `rank` 0 stands for R.
      ctx: of the visit.
      only: "a" or "b" trains that factor alone, and `tx` sees no other.
    """
    own = for_rank(model, data.rank)
    start = narrow(factors, model, own)
    moving = Factors(None, None)._replace(**{only: getattr(start, only)}) if only else start
    held = lambda new: Factors(*(h if n is None else n for n, h in zip(new, start, strict=True)))

    def loss(moving, model, batch, key):
        return loss_fn(join(held(moving)), model, batch, key)

    moved, _, metrics = local.local_steps(loss, tx, moving, own, data, ctx)
    return Trained(widen(start, model, own), widen(held(moved), model, own), metrics)


def with_residual(model: Any, residual: PyTree) -> Any:
    """Returns the model with a dense product added to what it folded so far.

    Args:
      model: the adapted model.
      residual: leaves `[num_layers, in, out]`, in the federation's units: A B without scale.
    """
    kernel = lambda product, scale: {"kernel": product * scale.max(-1)[:, None, None]}
    folded = jax.tree.map(kernel, residual, _scales(model))
    if "residual" in model.variables:
        folded = optax.tree.add(folded, model.variables["residual"])
    return dataclasses.replace(model, variables={**model.variables, "residual": folded})


def deploy(model: Any, replica: Factors, state: PyTree = None) -> tuple[Any, PyTree]:
    """Deploys the federation's factors, whatever a client holds."""
    del state
    return model, join(replica)


def read_end(end: Factors, replica: PyTree) -> Reading:
    """Reads a value that is the factors with which a client ended."""
    del replica
    return Reading(after=end)


def read_change_of_b(change: PyTree, replica: Factors) -> Reading:
    """Reads a value that is what was added to B, where A stayed as it was."""
    still = optax.tree.zeros_like(replica.a)
    b = jax.tree.map(jnp.add, replica.b, change)
    return Reading(Factors(still, change), replica._replace(b=b))


def component_bytes(factors: Factors) -> int:
    """Returns the bytes of one of the adapter's components, all layers together."""
    return wire.num_bytes(factors) // rank_of(factors)


def bill_by_rank(down: Factors, up: Factors, rank: Any) -> Bill:
    """Returns the bill of a client that is sent, and sends, the components of its rank."""
    num = own_rank(rank, rank_of(down))
    return Bill(
        wire.pieces((component_bytes(down), num)),
        wire.pieces((component_bytes(up), num), (4, jnp.int32(1))),
    )


def _scales(model: Any) -> PyTree:
    """The leaves `[num_layers, R]` of `lora_scale`, in a tree like each factor's."""
    is_layer = lambda node: isinstance(node, dict) and set(node) == {"scale"}
    return jax.tree.map(lambda n: n["scale"], model.variables["lora_scale"], is_leaf=is_layer)


def _convert(factors: Factors, old: PyTree, new: PyTree, live: PyTree) -> Factors:
    keep = lambda a, live: jnp.where(live[:, None, :] > 0, a, 0)

    def rescale(b, old, new, live):
        ratio = jnp.where(live > 0, old / jnp.where(new > 0, new, 1), 0)
        return b * ratio[..., None]

    return Factors(
        jax.tree.map(keep, factors.a, live), jax.tree.map(rescale, factors.b, old, new, live)
    )


def _is_pair(node: Any) -> bool:
    return isinstance(node, dict) and set(node) == {"a", "b"}
