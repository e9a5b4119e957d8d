"""The signatures of the functions that an algorithm consists of, as protocols.

A plain function or lambda with the right parameters satisfies them; nothing inherits from these
classes. Parameters are positional, their names are free. All functions are pure, and are traced by
`jax.jit` unless they run on the host executor. `model` is what `core.access.views` hands out: a
`core.view.View`, a mapping of views by role, or plain arrays.
"""

from typing import Protocol

import jax

from fedjax_post.core.values import ClientData, Context, Metrics, PyTree, Reading, Upload


class ClientInit(Protocol):
    """Returns the state of a client that has not been visited yet; () if it keeps none."""

    def __call__(self, model: PyTree, replica: PyTree, key: jax.Array, /) -> PyTree:
        """The state; its structure and shapes are those that `ClientUpdate` returns."""


class ClientUpdate(Protocol):
    """Trains one client in one visit."""

    def __call__(
        self, model: PyTree, replica: PyTree, state: PyTree, data: ClientData, ctx: Context, /
    ) -> tuple[Upload, PyTree, Metrics]:
        """What the client uploads, its new state, and scalar metrics for the records."""


class LinkInit(Protocol):
    """Returns the state that a link keeps on one client, from a tree like its values."""

    def __call__(self, like: PyTree, /) -> PyTree:
        """The state; () if it keeps none."""


class Encode(Protocol):
    """Makes a client's value a message."""

    def __call__(
        self, value: PyTree, replica: PyTree, state: PyTree, ctx: Context, /
    ) -> tuple[PyTree, PyTree]:
        """The message and the link's new state."""


class Decode(Protocol):
    """Makes a message a value again, on the server."""

    def __call__(self, message: PyTree, like: PyTree, /) -> PyTree:
        """The value, of the structure, shapes and dtypes of `like`."""


class NormBound(Protocol):
    """Bounds the l2 norm of what decodes, given a bound of what is encoded; inf if none holds."""

    def __call__(self, bound: float, /) -> float:
        """The bound of the decoded value."""


class MessageLike(Protocol):
    """Returns a tree like the message of a value like `like`."""

    def __call__(self, like: PyTree, /) -> PyTree:
        """Leaves have `shape` and `dtype`."""


class ReplicaInit(Protocol):
    """Returns what clients hold before the first broadcast."""

    def __call__(self, shared: PyTree, /) -> PyTree:
        """The replica."""


class Broadcast(Protocol):
    """Makes the shared variables the message that all clients of a round receive."""

    def __call__(self, shared: PyTree, /) -> PyTree:
        """The message."""


class Receive(Protocol):
    """Makes a replica of a message; called once for all clients of a round."""

    def __call__(self, message: PyTree, replica: PyTree, /) -> PyTree:
        """The new replica."""


class AggregateInit(Protocol):
    """Returns an empty total for a cohort."""

    def __call__(self, like: PyTree, cohort_size: int, /) -> PyTree:
        """The total; `like` is a tree like one decoded value."""


class Add(Protocol):
    """Adds the values of a chunk of clients to a total."""

    def __call__(self, total: PyTree, values: PyTree, weights: jax.Array, /) -> PyTree:
        """The new total; leaves of `values` are [clients, ...], `weights` [clients] float32."""


class Merge(Protocol):
    """Merges two totals of disjoint clients."""

    def __call__(self, total: PyTree, other: PyTree, /) -> PyTree:
        """The total of both."""


class Finish(Protocol):
    """Returns the aggregated value of a total."""

    def __call__(self, total: PyTree, /) -> PyTree:
        """The value that `ServerUpdate` is given."""


class ServerInit(Protocol):
    """Returns the server's state before the first round."""

    def __call__(self, shared: PyTree, /) -> PyTree:
        """The state; () if it keeps none."""


class ServerUpdate(Protocol):
    """Moves the shared variables by an aggregated value."""

    def __call__(self, value: PyTree, state: PyTree, shared: PyTree, /) -> tuple[PyTree, PyTree]:
        """The new shared variables and the new state."""


class Share(Protocol):
    """Returns the shared variables that a federation starts from."""

    def __call__(self, params: PyTree, /) -> PyTree:
        """The shared variables, from the parameters that a run is given."""


class Deploy(Protocol):
    """Returns the model and parameters to evaluate and export."""

    def __call__(
        self, model: PyTree, replica: PyTree, state: PyTree = None, /
    ) -> tuple[PyTree, PyTree]:
        """The common model, or with a client's state that client's personal model."""


class ValueLike(Protocol):
    """Returns a tree like the value that a client uploads."""

    def __call__(self, shared: PyTree, /) -> PyTree:
        """Leaves have `shape` and `dtype`."""


class Read(Protocol):
    """Reads a client's value for the simulator's telemetry."""

    def __call__(self, value: PyTree, replica: PyTree, /) -> Reading:
        """What the value shows of its client's training."""
