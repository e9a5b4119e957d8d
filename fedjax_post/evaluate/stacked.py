"""The models of several clients, scored side by side in the batches of one model.

Every function that scores rows takes them in the batches of `in_batches`, and calls the model
through `apply`. With one model, batches are rows of similar sizes and the call is an ordinary one.
With `Stacked` models each client has an equal part of every batch, and the call is mapped over the
clients. What a client's state does not change, such as the weights of the base, is not mapped.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_post.evaluate.widths import WORTH, WORTH_ACCELERATOR, choose_widths

PyTree = Any


class Stacked(NamedTuple):
    """The models of C clients, in place of a model; the `params` beside it are not used."""

    deploy: Callable  # (shared, state of a client) -> (model, params); the same object every time
    shared: PyTree  # arrays that all clients have in common
    states: PyTree  # leaves [C, ...]
    owner: np.ndarray = np.empty(0, np.int64)  # [num_rows], the client of each row of the table


def owner_of(model: Any, rows: np.ndarray) -> np.ndarray:
    """Returns the client of each row, `[n]` int; 0 with one model."""
    return model.owner[rows] if isinstance(model, Stacked) else np.zeros(len(rows), np.int64)


def num_models(model: Any) -> int:
    """Returns the number of clients whose models are stacked; 1 with one model."""
    return len(jax.tree.leaves(model.states)[0]) if isinstance(model, Stacked) else 1


def shapes_of(model: Any, params: PyTree) -> tuple[Any, PyTree]:
    """Returns a model and its params, or those of one client by their shapes."""
    if not isinstance(model, Stacked):
        return model, params
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), model.states)
    return jax.eval_shape(model.deploy, model.shared, one)


class Batch(NamedTuple):
    """Rows that are read together."""

    places: np.ndarray  # [B], int64, among the n rows; -1 for padding
    width: int  # tokens that each row is padded to


def in_batches(
    model: Any, owner: np.ndarray, batch_size: int, *, sizes: np.ndarray
) -> Iterator[Batch]:
    """Returns an iterator over batches of rows of similar sizes, the shortest first.

    A batch is as wide as the longest row of all, or narrower where this saves more time than it
    takes to compile another width.

    Args:
      model: a model, or `Stacked`.
      owner: `[n]` int, the client of each row, see `owner_of`.
      batch_size: B, rows of a batch, a multiple of the number of clients. Each client has one part
        of a batch, and its rows are in the order of their sizes.
      sizes: `[n]` int, tokens of each row.

    Example:
      >>> batches = in_batches(None, np.zeros(3, int), 2, sizes=np.array([9, 40, 30]))
      >>> [(batch.places.tolist(), batch.width) for batch in batches]
      [([0, 2], 40), ([1, -1], 40)]
    """
    num_clients = num_models(model)
    each = batch_size // num_clients
    counts = np.bincount(owner, minlength=num_clients)
    order = np.lexsort((sizes, owner))
    number = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    client = owner[order]
    batches = np.full((-(-int(counts.max(initial=0)) // each), num_clients, each), -1, np.int64)
    batches[number // each, client, number % each] = order
    flat = batches.reshape(len(batches), num_clients * each)
    longest = [int(sizes[places[places >= 0]].max()) for places in flat]
    worth = WORTH if jax.default_backend() == "cpu" else WORTH_ACCELERATOR
    worth /= max(1, _num_weights(model))
    yield from map(Batch, flat, choose_widths(longest, size=flat.shape[1], worth=worth))


def _num_weights(model: Any) -> int:
    """Returns the number of weights, or 0 of a model that is elsewhere."""
    return sum(getattr(leaf, "size", 0) for leaf in jax.tree.leaves(model))


def rows_at(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns the row numbers of a batch; -1 for padding."""
    return np.where(places < 0, -1, rows[places])


def apply(fn: Callable, model: Any, params: PyTree, *arrays: Any, **settings: Any) -> Any:
    """Returns `fn(model, params, *arrays, **settings)` for a model or for stacked models.

    Args:
      fn: a function of a module, so that it is compiled once; its result is a tree of arrays
        `[B, ...]`.
      model: a model, or `Stacked`.
      params: merged over the model.
      arrays: leaves `[B, ...]`, in the order of `in_batches`.
      settings: hashable.
    """
    if not isinstance(model, Stacked):
        return fn(model, params, *arrays, **settings)
    given = tuple(sorted(settings.items()))
    return _mapped(model.shared, model.states, arrays, fn=fn, settings=given, deploy=model.deploy)


@partial(jax.jit, static_argnames=("fn", "settings", "deploy"))
def _mapped(shared, states, arrays, *, fn, settings, deploy):
    num_clients = len(jax.tree.leaves(states)[0])

    def one(state, arrays):
        return fn(*deploy(shared, state), *arrays, **dict(settings))

    # Deployed within the map, so that leaves which no state changes stay single
    parts = jax.tree.map(lambda x: x.reshape(num_clients, -1, *x.shape[1:]), arrays)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.vmap(one)(states, parts))
