"""The factors of an adapter as two trees, for clients of any rank.

The federation has one adapter of R components with the model's scale s = alpha / R. A client
of rank r holds the first r components and trains with its own scale alpha / r, as LoRA
prescribes. `narrow` and `widen` convert factors to a client's units and back such that the
product A scale B does not change: B is multiplied by s r / alpha on the way down, and by
alpha / (s r) on the way up. A server can therefore compare and add the products A B of any
clients without knowing their scales.
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

    start: Factors  # as the client received them: components from its rank on are zero
    end: Factors
    metrics: Metrics


def split(params: PyTree) -> Factors:
    """Returns the factors of `{"lora": tree}`.

    >>> import numpy as np
    >>> from fedjax_post.adapters.factors import rank_of, split
    >>> params = {"lora": {"q_proj": {"a": np.zeros((2, 16, 4)), "b": np.zeros((2, 4, 8))}}}
    >>> factors = split(params)
    >>> factors.a["q_proj"].shape, rank_of(factors)
    ((2, 16, 4), 4)

    Raises:
      ValueError: if `params` holds anything else, or only one factor of a layer.
    """
    if not isinstance(params, dict) or set(params) != {"lora"}:
        found = sorted(params) if isinstance(params, dict) else type(params).__name__
        raise ValueError(
            f"this algorithm federates the factors of an adapter, got {found}; "
            "use adapter=lora or an algorithm for any parameters, such as fed_avg"
        )
    pick = lambda name: jax.tree.map(lambda pair: pair[name], params["lora"], is_leaf=_is_pair)
    a, b = pick("a"), pick("b")
    if len(jax.tree.leaves(a)) != len(jax.tree.leaves(b)):
        raise ValueError(
            "this algorithm needs both factors of every adapted layer, but some are missing; "
            "use a local part with an algorithm for any parameters, such as fed_avg"
        )
    return Factors(a, b)


def join(factors: Factors) -> PyTree:
    """Returns the parameters `{"lora": tree}` of the factors."""
    return {"lora": jax.tree.map(lambda a, b: {"a": a, "b": b}, factors.a, factors.b)}


def first_components(factors: Factors, rank: Any) -> Factors:
    """Returns the factors with all components from `rank` on set to 0; `rank` may be traced."""
    live = jnp.arange(rank_of(factors)) < rank
    return Factors(
        jax.tree.map(lambda a: jnp.where(live[None, None], a, 0), factors.a),
        jax.tree.map(lambda b: jnp.where(live[None, :, None], b, 0), factors.b),
    )


def concatenate(model: Any, one: Factors, other: Factors, share: Any) -> tuple[Any, Factors]:
    """Returns a model and factors of 2 R components: (1 - share) of `one` and `share` of `other`.

    The shares are in B, so that the model's scale is still constant over a layer's components
    and both adapters can be merged or exported as one.

    Args:
      model: the adapted model.
      one: factors of R components.
      other: factors of R components.
      share: (), in [0, 1]; may be traced.
    """
    joined = lambda axis: lambda x, y: jnp.concatenate([x, y], axis)
    b = jax.tree.map(
        joined(-2), optax.tree.scale(1 - share, one.b), optax.tree.scale(share, other.b)
    )
    scales = jax.tree.map(lambda s: jnp.concatenate([s, s], -1), model.variables["lora_scale"])
    wide = with_scale(model, scales, dropout=model.lora_dropout)
    return wide, Factors(jax.tree.map(joined(-1), one.a, other.a), b)


def redraw(factors: Factors, key: jax.Array) -> Factors:
    """Returns factors with a new A, drawn as in `add_lora`: U(-1/sqrt(in), 1/sqrt(in))."""
    leaves, structure = jax.tree.flatten(factors.a)
    keys = jax.random.split(key, len(leaves))
    bounds = [leaf.shape[-2] ** -0.5 for leaf in leaves]
    drawn = [
        jax.random.uniform(k, leaf.shape, leaf.dtype, -bound, bound)
        for k, leaf, bound in zip(keys, leaves, bounds, strict=True)
    ]
    return factors._replace(a=jax.tree.unflatten(structure, drawn))


def rank_of(factors: Factors) -> int:
    """Returns R, the number of components of the adapter."""
    if factors.a is not None:
        return jax.tree.leaves(factors.a)[0].shape[-1]
    return jax.tree.leaves(factors.b)[0].shape[-2]


def own_rank(rank: Any, max_rank: int) -> jax.Array:
    """Returns the number of components that a client holds, int32; a rank of 0 means all."""
    rank = jnp.asarray(rank, jnp.int32)
    return jnp.where(rank > 0, jnp.minimum(rank, max_rank), max_rank)


def for_rank(model: Any, rank: Any) -> Any:
    """Returns the model with a client's `lora_scale`, alpha / rank; `rank` may be traced.

    alpha is computed from the model: the sum of a layer's scale over its components.
    """

    def own(scale):
        live = scale > 0
        live &= (jnp.arange(scale.shape[-1]) < own_rank(rank, scale.shape[-1]))[None]
        even = scale.sum(-1, keepdims=True) / jnp.maximum(live.sum(-1, keepdims=True), 1)
        return jnp.where(jnp.asarray(rank) > 0, jnp.where(live, even, 0), scale)

    scales = jax.tree.map(own, model.variables["lora_scale"])
    return with_scale(model, scales, dropout=model.lora_dropout)


def narrow(factors: Factors, model: Any, own: Any) -> Factors:
    """Returns the federation's factors in the units of a client, zero from its rank on.

    Args:
      factors: the federation's factors.
      model: the adapted model with the federation's scale.
      own: the client's model, `for_rank(model, rank)`.
    """
    return _convert(factors, _scales(model), _scales(own), _scales(own))


def widen(factors: Factors, model: Any, own: Any) -> Factors:
    """Returns a client's factors in the federation's units, zero from its rank on.

    Args:
      factors: the client's factors.
      model: the adapted model with the federation's scale.
      own: the client's model, `for_rank(model, rank)`.
    """
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
      factors: the federation's factors.
      model: the frozen model with its `lora_scale`, and perhaps a residual.
      data: the client's data; `rank` 0 means R.
      ctx: the visit's context.
      only: "a" or "b" trains that factor only, and `tx` sees only that factor.
    """
    own = for_rank(model, data.rank)
    start = narrow(factors, model, own)
    moving = Factors(None, None)._replace(**{only: getattr(start, only)}) if only else start
    fill = lambda new: Factors(*(h if n is None else n for n, h in zip(new, start, strict=True)))

    loss = local.of_part(loss_fn, lambda moving: join(fill(moving)))
    moved, _, metrics = local.local_steps(loss, tx, moving, own, data, ctx)
    return Trained(widen(start, model, own), widen(fill(moved), model, own), metrics)


def with_residual(model: Any, residual: PyTree) -> Any:
    """Returns the model with a dense product added to its collection "residual".

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
    """Returns the model and the federation's parameters; a client's state is ignored.

    Args:
      model: the adapted model.
      replica: the federation's factors.
      state: a client's state, which is not used.
    """
    del state
    return model, join(replica)


def read_end(end: Factors, replica: PyTree) -> Reading:
    """Returns the reading of a value that is a client's factors after training."""
    del replica
    return Reading(after=end)


def read_change_of_b(change: PyTree, replica: Factors) -> Reading:
    """Returns the reading of a value that is the change of B, where A did not change."""
    still = optax.tree.zeros_like(replica.a)
    b = jax.tree.map(jnp.add, replica.b, change)
    return Reading(Factors(still, change), replica._replace(b=b))


def component_bytes(factors: Factors) -> int:
    """Returns the bytes of one component of the adapter, over all layers."""
    return wire.num_bytes(factors) // rank_of(factors)


def bill_by_rank(down: Factors, up: Factors, rank: Any) -> Bill:
    """Returns the bill of a client that receives and sends only the components of its rank.

    Args:
      down: the factors that are sent to clients, for shapes.
      up: the factors that clients send, for shapes; 4 bytes of weight are added.
      rank: (), int32, the client's rank; 0 means R.
    """
    num = own_rank(rank, rank_of(down))
    return Bill(
        wire.pieces((component_bytes(down), num)),
        wire.pieces((component_bytes(up), num), (4, jnp.int32(1))),
    )


def _scales(model: Any) -> PyTree:
    """Returns the leaves `[num_layers, R]` of `lora_scale`, in a tree like a factor's."""
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
