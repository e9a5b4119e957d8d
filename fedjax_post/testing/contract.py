"""The contract of every algorithm, as checks that can be run on new algorithms.

    case = Case(my_algorithm(toy_loss, optax.sgd(0.05)))
    for check in CHECKS.values():
        check(case)

A check returns nothing, or raises AssertionError with the violated property. The checks of one
case share its compiled programs and one sequence of rounds, so that they are cheap after
the first one. The checks in `EXPENSIVE` cost more than all others together.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_post.core import access, engine, wire
from fedjax_post.core.algorithm import Algorithm, PyTree, no_context
from fedjax_post.simulate.cohort import Sampler, data_rng
from fedjax_post.simulate.host import host
from fedjax_post.simulate.personal import read_clients
from fedjax_post.simulate.plan import Plan
from fedjax_post.simulate.programs import Programs, device
from fedjax_post.simulate.run import run
from fedjax_post.testing import toy


class Trajectory(NamedTuple):
    """The result of a run in which the whole cohort is computed at once."""

    programs: Programs  # the programs that the run has compiled
    third: engine.State  # after three rounds
    last: engine.State  # after all rounds
    sizes: list[dict[str, int]]  # after each round: number of compiled programs, by name


@dataclasses.dataclass(frozen=True)
class Case:
    """An algorithm over the `toy_loss` of a world, and what is expected of it.

    Attributes:
      algorithm: built with `world.toy_loss`.
      rounds: number of rounds with all clients, after which it must have learned.
      gap_closed: how much of the gap between the first loss and the least possible loss must
        be closed by then, in (0, 1].
      world: the module with the toy model and its clients: `toy`, or `toy_lora` for
        algorithms over adapters. Its `toy_loss` also accepts a language model, so that
        the same algorithm is run on one.
      best_loss: the least loss that the algorithm could reach; None: the least of any parameters.
      personal: whether the clients' models are evaluated, rather than the shared one.

    Example:
      >>> import optax
      >>> from fedjax_post.algorithms.fed_avg import fed_avg
      >>> case = Case(fed_avg(toy.toy_loss, optax.sgd(0.05)), rounds=3)
      >>> CHECKS["bytes_are_exact"](case)  # raises AssertionError if they are not
    """

    algorithm: Algorithm
    rounds: int = 40
    gap_closed: float = 0.9
    world: ModuleType = toy
    best_loss: float | None = None
    personal: bool = False

    @cached_property
    def trajectory(self) -> Trajectory:
        """The run of all rounds with all clients; its programs are used in all later runs."""
        programs, states, sizes = device(self.algorithm), [], []

        def watch(state, record):
            del record
            states.append(state)
            sizes.append(_num_compiled(programs))

        self.run(self.rounds, chunk_size=6, executor=lambda _: programs, callbacks=[watch])
        return Trajectory(programs, states[2], states[-1], sizes)

    @property
    def reference(self) -> engine.State:
        """The state after three rounds of the whole cohort at once."""
        return self.trajectory.third

    def run(
        self, rounds: int, *, clients: Any = None, model: Any = None, callbacks=(), **plan: Any
    ) -> tuple[engine.State, list]:
        """Returns the last state and all records of a toy run.

        Args:
          rounds: number of rounds.
          clients: the population; None for that of the world.
          model: the frozen model; None for that of the world.
          callbacks: called with state and record after each round.
          **plan: fields of `Plan`.
        """
        if "executor" not in plan:
            plan["executor"] = lambda _: self.trajectory.programs
        steps = run(
            self.algorithm,
            self.world.toy_model() if model is None else model,
            clients or self.world.toy_clients(),
            params=self.world.toy_params(),
            rounds=rounds,
            plan=Plan(**plan),
            callbacks=callbacks,
        )
        state, records = None, []
        for state, record in steps:  # noqa: B007 - the last state is used
            records.append(record)
        assert state is not None
        return state, records


def keeps_structure(case: Case) -> None:
    """Checks that states keep structure, shapes and dtypes from round to round."""
    before = engine.init(case.algorithm, case.world.toy_params())
    after = case.reference
    layout = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
    assert layout(before) == layout(after), "a round changed the layout of the state"


def padding_changes_nothing(case: Case) -> None:
    """Checks that a chunk with empty lanes gives the same result as a full one."""
    _assert_close(case.reference, case.run(3, chunk_size=4)[0])


def chunk_size_changes_nothing(case: Case) -> None:
    """Checks that one client at a time gives the same result as the whole cohort at once."""
    _assert_close(case.reference, case.run(3, chunk_size=1)[0])


def cohort_order_changes_nothing(case: Case) -> None:
    """Checks that the order in which clients are visited does not matter."""
    backwards: Sampler = lambda population, rng: np.arange(population)[::-1]
    _assert_close(case.reference, case.run(3, sampler=backwards, chunk_size=6)[0])


def learns(case: Case) -> None:
    """Checks that the algorithm closes the expected share of the gap to the least loss."""
    world = case.world
    first = world.toy_mean_loss(world.toy_params(), world.toy_model())
    best = world.toy_best_loss() if case.best_loss is None else case.best_loss
    closed = (first - _loss_reached(case)) / (first - best)
    assert closed >= case.gap_closed, f"closed {closed:.3f} of the gap, not {case.gap_closed}"


def declared_access_suffices(case: Case) -> None:
    """Checks that models which grant the declared tiers suffice, and lesser ones are refused."""
    models, needed = case.world.toy_model(), case.algorithm.access
    by_role = {"target": models} if set(needed) == {"target"} else models

    def run_on(tiers):
        cut = by_role | {role: by_role[role].restrict(tier) for role, tier in tiers.items()}
        case.run(1, model=cut if by_role is models else cut["target"], chunk_size=6)

    run_on(needed)
    for role, tier in needed.items():
        if tier == access.Access.TEXT:
            continue
        try:
            run_on({**needed, role: tier & ~access.highest(tier)})
        except access.AccessError:
            continue
        raise AssertionError(f"a {role} model below {access.spoken(tier)} was accepted")


def bytes_are_exact(case: Case) -> None:
    """Checks that `wire_bytes` equals the length of the packed messages, both ways."""
    model, data = case.world.toy_model(), case.world.toy_clients().visit(0, data_rng(0, 0, 0))
    state = case.reference
    replica = jax.eval_shape(lambda s: engine.broadcast(case.algorithm, s), state)
    down = jax.eval_shape(case.algorithm.downlink.encode, state.shared)
    up = jax.eval_shape(lambda *a: engine.message_of(case.algorithm, *a), model, replica, data)
    promised = engine.wire_bytes(case.algorithm, model, state, data)
    blank = lambda like: wire.unpack(bytes(wire.num_bytes(like)), like)
    measured = engine.WireBytes(*(len(wire.pack(blank(like))) for like in (down, up)))
    assert promised == measured, f"wire_bytes gives {promised}, packing gives {measured}"


def resumes_exactly(case: Case) -> None:
    """Checks that stopping and resuming after two rounds gives exactly the same third round."""
    straight = case.reference
    with TemporaryDirectory() as directory:
        case.run(2, directory=directory)
        resumed, _ = case.run(3, directory=directory, resume=True)
    equal = jax.tree.map(
        lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), straight, resumed
    )
    assert jax.tree.all(equal), "a resumed run ended in a different state"


def traces_once(case: Case) -> None:
    """Checks that rounds after the first compile nothing."""
    first, *_, last = case.trajectory.sizes
    assert first == last, f"programs compiled: {first} after the first round, {last} at the end"


def drops_what_is_not_finite(case: Case) -> None:
    """Checks that a client whose data are not finite is reported and counts like an empty lane."""
    arrays = case.world.toy_arrays()
    is_float = lambda x: np.issubdtype(x.dtype, np.floating)
    spoil = lambda x: np.full_like(x, np.nan) if is_float(x) else x
    arrays[2] = jax.tree.map(spoil, arrays[2])
    poisoned = dataclasses.replace(case.world.toy_clients(), arrays=arrays)
    state, records = case.run(2, clients=poisoned)
    assert [record["dropped"] for record in records] == [[2], [2]], "the client was not reported"
    absent: Sampler = lambda population, rng: np.delete(np.arange(population), 2)
    _assert_close(state, case.run(2, sampler=absent, chunk_size=6)[0])


def host_agrees(case: Case) -> None:
    """Checks that the host executor gives the same result as the device executor."""
    pair: Sampler = lambda population, rng: np.arange(population)[:2]
    plan = {"sampler": pair, "chunk_size": 6}
    _assert_close(case.run(1, **plan)[0], case.run(1, executor=host, **plan)[0])


def trains_a_language_model(case: Case) -> None:
    """Checks that two clients' visits to a tiny language model, under `sft_loss`, stay finite.

    A quadratic loss does not test second derivatives under vmap; this loss does. Worlds whose
    models are language models have no separate one, and need no such check.
    """
    needed = case.algorithm.access.get("target", access.Access.TEXT)
    if not hasattr(case.world, "toy_language") or access.Access.READ not in needed:
        return
    model, params, clients = case.world.toy_language()
    data = [clients.visit(i, data_rng(0, 0, i)) for i in range(len(clients))]

    def visit(model, params, data):
        view = access.views(model, case.algorithm.access)
        replica = engine.broadcast(case.algorithm, engine.init(case.algorithm, params))
        given = view, replica
        client = engine.init_client(case.algorithm, *given, data, no_context())
        return engine.visit_client(case.algorithm, *given, client, data, no_context())[2].kept

    mapped = jax.jit(jax.vmap(visit, (None, None, 0)))
    kept = mapped(model, params, jax.tree.map(lambda *x: np.stack(x), *data))
    assert kept.all(), "a client's message for a language model's loss is not finite"


def empty_cohort_changes_nothing(case: Case) -> None:
    """Checks that a round without clients leaves the shared variables unchanged."""
    if case.algorithm.aggregate.fixed:
        return
    nobody: Sampler = lambda population, rng: np.arange(population)[:0]
    state, records = case.run(1, sampler=nobody, chunk_size=6)
    assert records[0]["cohort"] == 0
    before = engine.init(case.algorithm, case.world.toy_params()).shared
    _assert_close(before, state.shared)


CHECKS: dict[str, Callable[[Case], None]] = {
    "keeps_structure": keeps_structure,
    "padding_changes_nothing": padding_changes_nothing,
    "chunk_size_changes_nothing": chunk_size_changes_nothing,
    "cohort_order_changes_nothing": cohort_order_changes_nothing,
    "learns": learns,
    "declared_access_suffices": declared_access_suffices,
    "bytes_are_exact": bytes_are_exact,
    "resumes_exactly": resumes_exactly,
    "traces_once": traces_once,
    "drops_what_is_not_finite": drops_what_is_not_finite,
    "host_agrees": host_agrees,
    "empty_cohort_changes_nothing": empty_cohort_changes_nothing,
    "trains_a_language_model": trains_a_language_model,
}


# Checks that are slow; it is enough to run them for one algorithm of each kind
EXPENSIVE = (
    "padding_changes_nothing",
    "chunk_size_changes_nothing",
    "resumes_exactly",
    "host_agrees",
    "trains_a_language_model",
)


def _num_compiled(programs: Programs) -> dict[str, int]:
    """Returns how often each program was compiled."""
    compiled = {name: fn for name, fn in programs._asdict().items() if hasattr(fn, "_cache_size")}
    return {name: fn._cache_size() for name, fn in compiled.items()}


def _loss_reached(case: Case) -> float:
    """Returns the clients' mean loss after the case's rounds, with shared or personal models."""
    world, model = case.world, case.world.toy_model()
    if not case.personal:
        deployed, params = engine.deployed(case.algorithm, model, case.trajectory.last)
        return world.toy_mean_loss(params, deployed)
    with TemporaryDirectory() as directory:
        state, _ = case.run(case.rounds, directory=directory, checkpoint_every=case.rounds)
        held = read_clients(
            directory, case.algorithm, model, world.toy_clients(), params=world.toy_params()
        )
    losses = []
    for i, arrays in zip(held.client_ids, world.toy_arrays(), strict=True):
        own = jax.tree.map(lambda x, i=i: x[i], held.states)
        own_model, own_params = engine.deployed(case.algorithm, model, state, own)
        losses.append(world.toy_loss(own_params, own_model, arrays, jax.random.key(0))[0])
    return float(np.mean(losses))


def _assert_close(one: PyTree, other: PyTree) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        # sums in another order differ by the rounding of the largest terms
        size = max(1.0, float(np.abs(b).max(initial=0, where=np.isfinite(b)))) if b.size else 1.0
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6 * size)
