"""What an adversary sees of a recorded run, and the truth that attacks are scored with."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.adapters.factors import Factors, join
from fedjax_post.attacks.seen import ADVERSARIES, PARTICIPANT, Public, Seen, Sent
from fedjax_post.core import access, engine
from fedjax_post.core.uplinks import message_like
from fedjax_post.core.wire import num_bytes, unpack
from fedjax_post.privacy.secure.sums import Opened
from fedjax_post.simulate import recording
from fedjax_post.simulate.cohort import data_rng, draw
from fedjax_post.simulate.recording import Recorded
from fedjax_post.study import build
from fedjax_post.study.build import Parts
from fedjax_post.study.fields import unknown
from fedjax_post.study.resolve import resolve
from fedjax_post.study.runs import read

PyTree = Any


class Recovered(NamedTuple):
    """A recorded run: what an adversary sees, and the parts that the truth is taken from."""

    seen: Seen
    parts: Parts  # for `truth` alone; no attack is given them


def see(directory: str | Path, *, adversary: str = "server", **supplied: Any) -> Recovered:
    """Returns what an adversary sees of a run that was recorded with `record_wire`.

    Messages are read from the run's folder `wire`, and its settings from `spec.json`; the base is
    loaded anew. States and checkpoints are not read.

    Args:
      directory: of the run.
      adversary: of `attacks.ADVERSARIES`.
      **supplied: as for `study.read`.

    Raises:
      FileNotFoundError: if nothing was recorded.
      ValueError: for another adversary, or messages from which no change can be read.
    """
    if adversary not in ADVERSARIES:
        raise ValueError(f"adversary={unknown(adversary, ADVERSARIES, what='adversary')}")
    rounds = dict(recording.read(Path(directory)))
    spec = read(directory, **supplied).spec
    # Under secure sums the server opens what the same algorithm sends without them
    parts = build.build(
        resolve(spec.put({"privacy.secure": False, "privacy.secure_threshold": None}))
    )
    replicas = _replicas(parts, rounds)
    if adversary == PARTICIPANT:
        sent = _of_broadcasts(parts, replicas)
    else:
        sent = [
            _of_upload(parts, message, replicas, round=round)
            for round, messages in rounds.items()
            for message in messages
            if message.kind != recording.DOWN
        ]
    return Recovered(Seen(adversary, _public(parts), tuple(sent)), parts)


def truth(parts: Parts, sent: Sent, *, answers: bool = True) -> list[tuple[int, ...]]:
    """Returns the different rows, as tokens without padding, that a message comes from.

    Args:
      parts: of the run.
      sent: a message; without clients, those of its round are taken.
      answers: whether rows have their answers; without, they are questions.
    """
    clients = list(sent.clients) or draw(
        parts.plan.sampler, len(parts.data.clients), seed=parts.plan.seed, round=sent.round
    )
    found: dict[tuple[int, ...], None] = {}
    for client in clients:
        rng = data_rng(parts.plan.seed, sent.round, int(client))
        data = parts.data.clients.visit(int(client), rng)
        steps = np.asarray(data.step_mask, bool)
        batches = {name: np.asarray(x)[steps] for name, x in data.batches.items()}
        for row in _rows(batches, parts.tokenizer.pad_token_id, answers=answers):
            found.setdefault(row)
    return list(found)


def _rows(batches: dict[str, np.ndarray], pad_id: int, *, answers: bool) -> list[tuple[int, ...]]:
    """Returns the rows of some batches, packed ones taken apart."""
    width = batches["tokens"].shape[-1]
    tokens, masks = (batches[name].reshape(-1, width) for name in ("tokens", "loss_mask"))
    segments = batches.get("segments")
    parts = []
    for i, row in enumerate(tokens):
        if segments is None:
            last = np.flatnonzero((row != pad_id) | masks[i])
            places = [np.arange(last[-1] + 1)] if masks[i].any() else []
        else:
            own = segments.reshape(-1, width)[i]
            places = [np.flatnonzero(own == number) for number in np.unique(own[own > 0])]
        parts += [row[p if answers else p[~masks[i][p]]] for p in places]
    return [tuple(part.tolist()) for part in parts]


def _public(parts: Parts) -> Public:
    tokenizer, spec = parts.tokenizer, parts.spec
    return Public(
        model=parts.target,
        decode_fn=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True),
        optimizer=spec.method.client_optimizer or "none",
        learning_rate=spec.method.client_lr or 0.0,
        batch_size=spec.training.batch_size,
        max_length=parts.data.report["max_length"],
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
    )


def _replicas(parts: Parts, rounds: dict[int, list[Recorded]]) -> dict[int, PyTree]:
    """Returns what every client holds in each recorded round, from the messages to it alone."""
    algorithm, held = parts.algorithm, parts.start.replica
    like: Any = jax.eval_shape(algorithm.downlink.encode, parts.start.shared)
    structure: Any = jax.tree.structure(like)
    depends = structure != jax.tree.structure(held)
    if depends and list(rounds) != list(range(len(rounds))):
        raise ValueError(
            f"record_wire={parts.spec.execution.record_wire}: what clients hold depends on earlier "
            "messages with this method; record from round 0 on, as with 0:2"
        )
    found = {}
    for round, messages in rounds.items():
        (down,) = (message for message in messages if message.kind == recording.DOWN)
        held = algorithm.downlink.receive(unpack(down.data, like), held)
        found[round] = held
    return found


def _of_upload(parts: Parts, message: Recorded, replicas: dict[int, PyTree], *, round: int) -> Sent:
    """Returns what the server sees of one upload, or of the sum of all."""
    if message.began not in replicas:
        raise ValueError(
            f"a client of round {round} began in round {message.began}, of which nothing was "
            f"recorded; record from round {message.began} on"
        )
    algorithm, replica = parts.algorithm, replicas[message.began]
    like = _value_like(parts, replica)
    if message.kind == recording.SUM:
        enough: Any = jax.ShapeDtypeStruct((), bool)
        value = unpack(message.data, Opened(like, enough)).value
    else:
        sent = message_like(algorithm.uplink, like)
        if len(message.data) != num_bytes(sent):
            raise ValueError(
                f"an upload has {len(message.data)} bytes and this method's have "
                f"{num_bytes(sent)}; the run was recorded with another version"
            )
        value = algorithm.uplink.decode(unpack(message.data, sent), like)
    steps = message.num_steps / (len(message.clients) if message.kind == recording.SUM else 1)
    change = _params(algorithm.read(value, replica).change, parts)
    return Sent(message.began, message.clients, _params(replica, parts), change, steps)


def _of_broadcasts(parts: Parts, replicas: dict[int, PyTree]) -> list[Sent]:
    """Returns what a participant sees: how the parameters changed from one round to the next."""
    found = []
    for round, replica in replicas.items():
        if round + 1 not in replicas:
            continue
        start, end = _params(replica, parts), _params(replicas[round + 1], parts)
        steps = parts.spec.training.local_steps or 1
        found.append(Sent(round, (), start, jax.tree.map(jnp.subtract, end, start), float(steps)))
    if not found:
        raise ValueError(
            f"record_wire={parts.spec.execution.record_wire}: a participant sees a change between "
            "two rounds; record two in a row, as with 0:2"
        )
    return found


def _value_like(parts: Parts, replica: PyTree) -> PyTree:
    """Returns shapes and dtypes of the value that a client of this run uploads."""
    data = parts.data.clients.visit(0, data_rng(0, 0, 0))
    view = access.views(parts.model, parts.algorithm.access)
    return engine.value_like(parts.algorithm, view, replica, data)


def _params(tree: PyTree, parts: Parts) -> PyTree:
    """Returns a tree in the form of a model's `params`."""
    tree = getattr(tree, "params", tree)
    if isinstance(tree, Factors):
        return join(tree)
    if isinstance(tree, dict) and tree.keys() & {"lora", "params"}:
        return tree
    raise ValueError(
        f"method={parts.spec.method.name} sends no change of the model's parameters, which these "
        "attacks read; use one that does, such as fed_avg"
    )
