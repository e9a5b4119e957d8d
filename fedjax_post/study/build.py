"""From a specification to everything that a run needs, checked before anything is compiled."""

from typing import Any, NamedTuple

import fedjax_post
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.core.engine import State, init
from fedjax_post.data.fingerprint import Fingerprint
from fedjax_post.data.load import Loaded
from fedjax_post.data.ranks import RankedClients
from fedjax_post.disclosure.ledger import Form
from fedjax_post.evaluate.generation import longest_response
from fedjax_post.evaluate.scores import HeldOut
from fedjax_post.hub.load import load_config
from fedjax_post.hub.tokenizer import check_tokenizer
from fedjax_post.model.views import LanguageModel
from fedjax_post.simulate.memory import largest_chunk
from fedjax_post.study import (
    devices,
    factories,
    initial,
    ledgers,
    methods,
    objectives,
    pace,
    private,
    prompts,
    roles,
    rows,
    trained,
    wires,
)
from fedjax_post.study.files import identity
from fedjax_post.study.spec import Spec

PyTree = Any


class Parts(NamedTuple):
    """Everything that a run is made of, but for its folder."""

    spec: Spec  # with every default filled in
    algorithm: Algorithm
    model: Any  # the target, or a model for each role
    params: PyTree  # where training starts
    data: Loaded
    heldout: HeldOut  # of the table at the end
    plan: fedjax_post.Plan
    start: State  # before the first round
    form: Form  # of a query to the target, in tokens
    tokenizer: Any  # of the target
    promised: private.Guarantee | None  # where clients are private

    @property
    def target(self) -> LanguageModel:
        """The model that is adapted, whatever other roles there are."""
        return self.model["target"] if isinstance(self.model, dict) else self.model


def build(spec: Spec) -> Parts:
    """Returns the run that a resolved specification describes, before its first round.

    Nothing is compiled and nothing is written. Waits for no other process.

    Raises:
      ValueError, OSError, AccessError: for input that will not do, naming the field, its value
        and the remedy.
    """
    rows.check(spec)
    initial.check(spec)
    config = load_config(spec.model.name)
    tokenizer = trained.find_tokenizer(spec)
    check_tokenizer(tokenizer, config)
    mesh = devices.find_mesh(spec, config)
    room = config.max_positions - prompts.places_of(spec, tokenizer)
    data = rows.load_data(spec, tokenizer, context_length=room)
    if spec.adapter.client_ranks:
        ranks = methods.client_ranks(spec)
        data = data._replace(clients=RankedClients(data.clients, ranks))
    paced = pace.plan_of(spec, len(data.clients))
    sampler = rows.make_sampler(spec, len(data.clients))
    assert data.heldout is not None  # `load_data` saw to it
    longest = longest_response(data.heldout)
    algorithm, promised = _make_algorithm(spec, data, tokenizer, room=room, longest=longest)
    roles.check(spec, algorithm)
    form = ledgers.form_of(
        spec, tokenizer, access=algorithm.access, table=data.heldout, longest=longest
    )
    ledgers.check(spec, algorithm, data, form)
    target = trained.load_target(spec, tokenizer, mesh)
    train = lambda model: trained.make_trainable(spec, model, tokenizer)
    model, params = devices.placed(roles.assemble(spec, algorithm, target, train), mesh)
    heldout = rows.make_heldout(spec, data, tokenizer)
    start = devices.placed(init(algorithm, params), mesh)
    plan = fedjax_post.Plan(
        sampler=sampler,
        seed=spec.seed,
        chunk_size=_chunk_size(spec, algorithm, model, params, data),
        feed=fedjax_post.pooled if spec.method.baseline == "central" else fedjax_post.chunks,
        checkpoint_every=spec.execution.checkpoint_every,
        **devices.plan_of(mesh, spec),
        **paced,
    )
    parts = Parts(
        spec, algorithm, model, params, data, heldout, plan, start, form, tokenizer, promised
    )
    return _identified(spec, parts)


def _make_algorithm(
    spec: Spec, data: Loaded, tokenizer: Any, *, room: int, longest: int
) -> tuple[Algorithm, private.Guarantee | None]:
    """The algorithm with all that stands around it, and what it promises of clients' privacy."""
    population = len(data.clients)
    algorithm = methods.make_algorithm(
        spec,
        participation=_participation(spec, population),
        loss_of=lambda made: (
            objectives.loss_of(spec, made)
            or prompts.loss_of(spec, made, tokenizer, longest=longest)
        ),
        given=prompts.offered(spec, factories.find_factory(spec.method.name), tokenizer),
    )
    behind = room - data.report["max_length"] + 1  # a row without its last token
    algorithm = objectives.around(spec, algorithm, tokenizer, room=behind, longest=longest)
    algorithm = wires.around(algorithm, spec, population=population)
    cohort_size = rows.cohort_size(spec, population)
    return private.around(algorithm, spec, population=population, cohort_size=cohort_size)


def _check_trainable(spec: Spec) -> None:
    """Refuses to train weights that would be codes, before they are read."""
    if spec.model.quantize != "none" and spec.adapter.kind != "lora":
        raise ValueError(
            f"quantize={spec.model.quantize} freezes the weights that adapter={spec.adapter.kind} "
            "would train; use adapter=lora, or leave `quantize` out"
        )
    if spec.model.quantize != "none" and spec.model.remat is False:
        raise ValueError(
            f"quantize={spec.model.quantize} reads its layers' weights back in the backward pass, "
            "which `remat=False` would keep; leave one of them out"
        )


def _chunk_size(spec: Spec, algorithm, model, params, data) -> int | None:
    """Clients in one compiled unit, as many as memory allows where that is asked for."""
    given = spec.execution.chunk_size
    if given != "auto":
        return given and int(given)
    most = rows.cohort_size(spec, len(data.clients))
    return largest_chunk(algorithm, model, data.clients, params=params, at_most=most)


def check(spec: Spec) -> None:
    """Refuses fields that do not go together, before anything is read."""
    _check_trainable(spec)
    given = spec.execution.chunk_size
    if given not in (None, "auto") and not (str(given).isdecimal() and int(given) >= 1):
        raise ValueError(f"chunk_size={given} must be a number of at least 1, or auto")


def _identified(spec: Spec, parts: Parts) -> Parts:
    """The run, knowing what must be equal when it is resumed: settings, rows and weights.

    The number of rounds is checked by itself.
    """
    settings = {path: str(value) for path, value in identity(spec).items()}
    settings.pop("training.rounds", None)
    plan = parts.plan._replace(identity={"heldout": _rows_hash(parts.heldout), **settings})
    found = fedjax_post.identify(parts.model, parts.data.clients, params=parts.params, plan=plan)
    return parts._replace(plan=plan._replace(identity=found))


def _rows_hash(heldout: HeldOut) -> str:
    found = Fingerprint()
    for table in (heldout.table, heldout.rejected):
        if table is not None:
            found.add_table(table)
    return found.hexdigest()


def _participation(spec: Spec, population: int) -> float:
    return rows.cohort_size(spec, population) / population
