"""Populations of clients that return batches: of arrays in memory, and of tokenised rows.

The order of examples within a visit is a stream of random permutations of the client's
examples, one permutation for each epoch, drawn from the generator that the engine passes in.
With `local_steps=K` a visit takes the first K * B examples of that stream. With
`local_epochs=E` it takes E * n_k of them, and the steps that smaller clients do not need are
masked. Shapes are those of the largest client, so that one program serves all clients.

| client has | local_steps=K | local_epochs=E |
| --- | --- | --- |
| fewer examples than K * B | the stream continues, reshuffled | K_k = ceil(E * n_k / B) steps |
| E * n_k not a multiple of B, tokens | - | the last batch is padded with rows without loss |
| E * n_k not a multiple of B, arrays | - | the last batch is filled from the stream |
| fewer steps than the largest client | cannot happen | step_mask False, content is ignored |
| no examples | ValueError at construction | ValueError at construction |

Packed rows hold several examples, see `data.packing`. Then B counts packed rows, a visit of
`local_steps` ends before the first example that does not fit, and an epoch takes as many steps
as its rows fill.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fedjax_post.core.algorithm import ClientData, PyTree
from fedjax_post.data.clients import empty_aligned
from fedjax_post.data.fingerprint import Fingerprint
from fedjax_post.data.packing import first_fit, gather_packed, max_rows
from fedjax_post.data.partition import Partition
from fedjax_post.data.table import TokenTable, gather


@dataclasses.dataclass(frozen=True)
class ArrayClients:
    """Clients over arrays in memory, for any loss and any kind of example.

    Content of unknown meaning cannot be masked, so every batch is full: where
    `local_epochs * n_k` is not a multiple of the batch size, the last batch is filled
    with the next examples of the stream. Every example of an epoch is seen, and
    `num_tokens` counts each example as often as it is seen.

    Attributes:
      arrays: a pytree for each client, leaves `[n_k, ...]`, n_k at least 1.
      batch_size: examples in a batch, B.
      local_steps: steps in each visit, K; give either this or `local_epochs`.
      local_epochs: passes over the client's examples in each visit, E.

    Raises:
      ValueError: without clients, for a client without examples or with leaves of unequal
        length, and for numbers below 1.

    Example:
      >>> arrays = [{"x": np.zeros((5, 3))}, {"x": np.ones((2, 3))}]
      >>> clients = ArrayClients(arrays, batch_size=2, local_epochs=1)
      >>> visit = clients.visit(1, np.random.default_rng(0))
      >>> visit.batches["x"].shape  # as long as the largest client's visit
      (3, 2, 3)
      >>> visit.step_mask.tolist(), float(visit.num_examples)
      ([True, False, False], 2.0)
    """

    arrays: Sequence[PyTree]
    _: dataclasses.KW_ONLY
    batch_size: int
    local_steps: int | None = None
    local_epochs: int | None = None
    _trees: list[PyTree] = dataclasses.field(init=False, repr=False)
    _sizes: list[int] = dataclasses.field(init=False, repr=False)
    _max_steps: int = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        _check_schedule(self.batch_size, self.local_steps, self.local_epochs)
        sizes = [_num_rows(tree, client_id) for client_id, tree in enumerate(self.arrays)]
        _check_sizes(np.array(sizes, np.int64))
        # Converted once, so that no visit has to copy arrays that are not contiguous.
        object.__setattr__(
            self, "_trees", [jax.tree.map(np.ascontiguousarray, x) for x in self.arrays]
        )
        object.__setattr__(self, "_sizes", sizes)
        object.__setattr__(self, "_max_steps", _num_steps(self, max(sizes)))

    def __len__(self) -> int:
        return len(self.arrays)

    def visit(self, client_id: int, rng: np.random.Generator) -> ClientData:
        """Returns batches with leaves `[K_max, B, ...]`; `num_tokens` counts examples."""
        _check_client(client_id, len(self))
        return jax.tree.map(lambda x: x[0], self.lanes(np.array([client_id]), lambda _: rng))

    def lanes(
        self,
        client_ids: np.ndarray,
        rng_of: Callable[[int], np.random.Generator],
        *,
        longest: int | None = None,
    ) -> ClientData:
        """Returns several visits side by side; see `clients.in_lanes`.

        Args:
          client_ids: `[lanes]` int, followed by -1 for padding lanes.
          rng_of: client id -> its generator.
          longest: steps of the longest of these visits; None for K_max.
        """
        real = [i for i in client_ids.tolist() if i >= 0]
        sizes, steps = np.zeros((2, len(client_ids)), np.int64)  # 0 in padding lanes
        sizes[: len(real)] = [self._sizes[i] for i in real]
        steps[: len(real)] = _num_steps(self, sizes[: len(real)])
        taken = steps * self.batch_size
        room = self._max_steps if longest is None else self.room(longest)
        batches = np.arange(room * self.batch_size).reshape(room, self.batch_size)
        trees, orders = [], []
        for i, size, count in zip(real, sizes.tolist(), taken.tolist(), strict=False):
            trees.append(self._trees[i])
            # Masked steps repeat real examples: zeros might be outside a loss's domain.
            orders.append(_stream(size, count, rng_of(i)).take(batches, mode="wrap"))
        num_padding = len(client_ids) - len(real)
        trees += [trees[0] if trees else self._trees[0]] * num_padding
        orders += [np.zeros_like(batches)] * num_padding
        num_tokens = taken.astype(np.float32)
        return ClientData(
            batches=jax.tree.map(lambda *leaves: _take(leaves, orders), *trees),
            step_mask=np.arange(room) < steps[:, None],
            num_examples=sizes.astype(np.float32),
            num_tokens=num_tokens,
            rank=np.zeros(len(client_ids), np.int32),
            num_read=num_tokens,
            step_size=np.full(len(client_ids), self.batch_size, np.float32),
        )

    def num_steps(self, client_id: int) -> int:
        """Returns the number of steps of the client's visit."""
        return _num_steps(self, self._sizes[client_id])

    def fingerprint(self) -> str:
        """Returns a hash of all arrays and of the settings of a visit."""
        found = Fingerprint(self.batch_size, self.local_steps, self.local_epochs)
        for tree in self._trees:
            found.add(str(jax.tree.structure(tree)), *jax.tree.leaves(tree))
        return found.hexdigest()

    def room(self, num_steps: int) -> int:
        """Returns the number of steps to allocate where the longest visit has `num_steps`.

        It is a sixteenth, a quarter or all of K_max: moving padding is expensive where examples
        are large, and each number of steps compiles its own program.
        """
        sizes = [-(-self._max_steps // share) for share in (16, 4, 1)]
        return next(size for size in sizes if num_steps <= size)


@dataclasses.dataclass(frozen=True)
class TokenClients:
    """Clients over one tokenised table: a client is a list of row numbers.

    Batches are `{"tokens": [K_max, B, L] int32, "loss_mask": [K_max, B, L] bool}`; packed
    batches also have `"segments": [K_max, B, L] int32`. Rows and steps of padding have no
    loss token.

    Attributes:
      table: the tokenised rows, shared by all clients.
      partition: the rows of each client.
      batch_size: rows in a batch, B.
      local_steps: steps in each visit, K; give either this or `local_epochs`.
      local_epochs: passes over the client's rows in each visit, E.
      pack_length: tokens of a row that several examples share, at least the table's
        `max_length`; None: one example in each row.

    Raises:
      ValueError: without clients, for a client without rows, for numbers below 1, and for a
        packed row that is shorter than a row of the table.
    """

    table: TokenTable
    partition: Partition
    _: dataclasses.KW_ONLY
    batch_size: int
    local_steps: int | None = None
    local_epochs: int | None = None
    pack_length: int | None = None
    _steps: np.ndarray = dataclasses.field(init=False, repr=False)  # [clients], upper bound
    _max_steps: int = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        _check_schedule(self.batch_size, self.local_steps, self.local_epochs)
        sizes = np.diff(self.partition.offsets)
        _check_sizes(sizes)
        steps = _num_steps(self, sizes)
        _check_packing(self.pack_length, self.table.max_length)
        if self.pack_length and self.local_epochs is not None:
            tokens = self.table.length[self.partition.indices].astype(np.int64)
            tokens = np.add.reduceat(tokens, self.partition.offsets[:-1]) * self.local_epochs
            rows = max_rows(sizes * self.local_epochs, tokens, self.pack_length)
            steps = -(-rows // self.batch_size)
        object.__setattr__(self, "_steps", np.broadcast_to(steps, sizes.shape))
        object.__setattr__(self, "_max_steps", int(np.max(steps)))

    def __len__(self) -> int:
        return len(self.partition.offsets) - 1

    def num_steps(self, client_id: int) -> int:
        """Returns the number of steps of the client's visit; an upper bound for packed rows."""
        return int(self._steps[client_id])

    def fingerprint(self) -> str:
        """Returns a hash of all tokens, of the partition and of the settings of a visit."""
        found = Fingerprint(self.batch_size, self.local_steps, self.local_epochs, self.pack_length)
        found.add(*self.partition)
        found.add_table(self.table)
        return found.hexdigest()

    def visit(self, client_id: int, rng: np.random.Generator) -> ClientData:
        """Returns batches of tokens; `num_tokens` counts the loss tokens in them."""
        _check_client(client_id, len(self))
        first, last = self.partition.offsets[client_id : client_id + 2].tolist()
        own = self.partition.indices[first:last]
        take = _packed_rows if self.pack_length else _single_rows
        examples, rows, num_rows = take(self, own, rng)
        length = self.pack_length or self.table.max_length
        shape = (self._max_steps, self.batch_size, length)
        return ClientData(
            batches={name: leaf.reshape(shape) for name, leaf in rows.items()},
            step_mask=np.arange(self._max_steps) < -(-num_rows // self.batch_size),
            num_examples=np.float32(len(own)),
            num_tokens=np.float32(np.count_nonzero(rows["loss_mask"])),
            rank=np.int32(0),
            num_read=np.float32(self.table.length[examples].sum()),
            step_size=np.float32(self.batch_size * length),
        )


def pool(visits: Sequence[ClientData]) -> ClientData:
    """Returns visits joined step by step along the batch axis, as if one client had all the data.

    The central baseline trains on this: K steps with batches of cohort size x B rows, on exactly
    the tokens of a federated round.

    Args:
      visits: at least one, of equal shapes `[K, B, ...]`.

    Returns:
      One visit with leaves `[K, len(visits) * B, ...]`. A step counts if it counts for any
      client; examples and tokens are summed; rank is the largest.

    Raises:
      ValueError: if clients take unequal numbers of steps and the batches have no
        `loss_mask` to exclude the masked steps.
    """
    masks = np.stack([data.step_mask for data in visits])
    batches = [data.batches for data in visits]
    if (masks != masks[0]).any() and "loss_mask" not in batches[0]:
        raise ValueError(
            "clients take unequal numbers of steps and their batches have no loss_mask; "
            "pool them with local_steps in place of local_epochs"
        )
    return ClientData(
        batches=jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *batches),
        step_mask=masks.any(axis=0),
        num_examples=np.float32(sum(float(data.num_examples) for data in visits)),
        num_tokens=np.float32(sum(float(data.num_tokens) for data in visits)),
        rank=np.int32(max(int(data.rank) for data in visits)),
        num_read=np.float32(sum(float(data.num_read) for data in visits)),
        step_size=np.float32(sum(float(data.step_size) for data in visits)),
    )


def _single_rows(clients: TokenClients, own: np.ndarray, rng: np.random.Generator):
    """Returns a visit's examples, its rows of one example each, and how many rows are used."""
    num_taken = clients.batch_size * (clients.local_steps or 0)
    if clients.local_epochs is not None:
        num_taken = len(own) * clients.local_epochs
    examples = own[_stream(len(own), num_taken, rng)]
    num_rows = clients._max_steps * clients.batch_size
    tokens, loss_mask = gather(clients.table, examples, num_rows=num_rows)
    return examples, {"tokens": tokens, "loss_mask": loss_mask}, num_taken


def _packed_rows(clients: TokenClients, own: np.ndarray, rng: np.random.Generator):
    """Returns a visit's examples, its packed rows, and how many rows are used."""
    table, capacity, limit = clients.table, clients.pack_length, None
    assert capacity is not None
    num_taken = len(own) * (clients.local_epochs or 0)
    if clients.local_steps is not None:
        limit = clients.local_steps * clients.batch_size
        shortest = int(table.length[own].min())
        num_taken = limit * (capacity // shortest) + 1
    examples = own[_stream(len(own), num_taken, rng)]
    places = first_fit(table.length[examples], capacity, num_rows=limit)
    examples = examples[: len(places.row)]
    shape = (clients._max_steps * clients.batch_size, capacity)
    return examples, gather_packed(table, examples, places, shape=shape), places.num_rows


def _stream(num_examples: int, num_taken: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the first numbers of a stream of permutations of `range(num_examples)`."""
    epochs = [rng.permutation(num_examples) for _ in range(-(-num_taken // num_examples))]
    return np.concatenate(epochs)[:num_taken]


def _take(leaves: Sequence[np.ndarray], orders: Sequence[np.ndarray]) -> np.ndarray:
    """Returns each lane's examples in the lane's order, `[lanes, *order.shape, ...]`."""
    shape = (len(leaves), *orders[0].shape, *leaves[0].shape[1:])
    out = empty_aligned(shape, leaves[0].dtype)
    for lane, leaf, order in zip(out, leaves, orders, strict=True):
        # Orders are within bounds; mode="raise" would make numpy write to a buffer first.
        np.take(leaf, order, axis=0, out=lane, mode="clip")
    return out


def _num_steps(clients: "ArrayClients | TokenClients", num_examples: Any) -> Any:
    """Returns the steps of a visit of a client with `num_examples`; elementwise for arrays."""
    if clients.local_epochs is None:
        assert clients.local_steps is not None
        return clients.local_steps
    return -(-num_examples * clients.local_epochs // clients.batch_size)


def _num_rows(tree: PyTree, client_id: int) -> int:
    sizes = {len(leaf) for leaf in jax.tree.leaves(tree)}
    if len(sizes) != 1:
        raise ValueError(
            f"client {client_id} holds arrays of lengths {sorted(sizes)}; "
            "give every leaf the same leading axis, one entry for each example"
        )
    return sizes.pop()


def _check_schedule(batch_size: int, local_steps: int | None, local_epochs: int | None) -> None:
    if (local_steps is None) == (local_epochs is None):
        raise ValueError(
            f"local_steps is {local_steps} and local_epochs is {local_epochs}; give exactly one"
        )
    numbers = {"batch_size": batch_size, "local_steps": local_steps, "local_epochs": local_epochs}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _check_packing(pack_length: int | None, max_length: int) -> None:
    if pack_length is not None and pack_length < max_length:
        raise ValueError(
            f"pack_length={pack_length} is less than max_length={max_length}; use at least "
            f"{max_length}, or a lower `max_length`"
        )


def _check_sizes(sizes: np.ndarray) -> None:
    if not len(sizes):
        raise ValueError("there are no clients; give at least one")
    if sizes.min() < 1:
        raise ValueError(
            f"client {int(sizes.argmin())} has no examples; leave it out or lower num_clients"
        )


def _check_client(client_id: int, num_clients: int) -> None:
    if not 0 <= client_id < num_clients:
        raise IndexError(f"client {client_id} is not among the {num_clients} clients, from 0")
