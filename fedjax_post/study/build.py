"""Builds everything that a run needs from its specification, and checks it before compilation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import fedjax_post
from fedjax_post.attacks import CanaryClients
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.core.engine import State, deploys_client, init
from fedjax_post.data.fingerprint import Fingerprint
from fedjax_post.data.load import Loaded
from fedjax_post.data.ranks import RankedClients
from fedjax_post.disclosure.meter import Form, Meter
from fedjax_post.evaluate.generation import longest_response
from fedjax_post.evaluate.heldout import HeldOut
from fedjax_post.hub.load import load_config
from fedjax_post.hub.tokenizer import check_tokenizer
from fedjax_post.model.views import LanguageModel
from fedjax_post.simulate import client_state_like, wire_bytes_of
from fedjax_post.simulate.memory import largest_chunk
from fedjax_post.study import (
    canary_clients,
    devices,
    factories,
    hostile,
    hosting,
    initial,
    labels,
    ledgers,
    metering,
    methods,
    objectives,
    pace,
    private,
    prompts,
    recordings,
    roles,
    rows,
    secure,
    trained,
    wires,
)
from fedjax_post.study.files import code_hashes, identity
from fedjax_post.study.spec import Spec

PyTree = Any


class Parts(NamedTuple):
    """Everything that a run consists of, except its folder."""

    spec: Spec  # with every default filled in
    algorithm: Algorithm
    model: Any  # the target, or a mapping from roles to models
    params: PyTree  # initial trained parameters
    data: Loaded
    heldout: HeldOut  # scored before and after training
    plan: fedjax_post.Plan
    start: State  # before the first round
    form: Form  # of a query to the target, in tokens
    meter: Meter  # of calls to the target
    tokenizer: Any  # of the target
    promised: private.Guarantee | None  # None without differential privacy
    agreed: secure.Agreed | None = None  # None without secure sums
    poisoned: hostile.Poisoned | None = None  # None without hostile clients
    canaries: CanaryClients | None = None  # None without an audit of the privacy
    has_shared_model: bool = True  # False if clients are sent nothing, and each has its own

    @property
    def target(self) -> LanguageModel:
        """The model that is adapted."""
        return self.model["target"] if isinstance(self.model, dict) else self.model


def build(spec: Spec) -> Parts:
    """Returns the parts of the run that a resolved specification describes.

    Writes nothing, and waits for no other process. Compiles nothing but a short round of an
    algorithm that asks the target, see `metering.confirm`.

    Raises:
      ValueError, OSError, AccessError: for invalid input, naming the field, its value and the
        remedy.
    """
    rows.check(spec)
    initial.check(spec)
    config = load_config(spec.model.name)
    tokenizer = trained.find_tokenizer(spec)
    check_tokenizer(tokenizer, config)
    mesh = devices.find_mesh(spec, config)
    room = config.max_positions - prompts.places_of(spec, tokenizer)
    data = rows.load_data(spec, tokenizer, context_length=room)
    data, poisoned = hostile.on_rows(spec, data, tokenizer, room=room)
    if spec.adapter.client_ranks:
        ranks = methods.client_ranks(spec)
        data = data._replace(clients=RankedClients(data.clients, ranks))
    paced = pace.plan_of(spec, len(data.clients))
    sampler = rows.make_sampler(spec, len(data.clients))
    assert data.heldout is not None  # guaranteed by `load_data`
    longest = max(map(longest_response, labels.tables_of(data)))
    algorithm, promised, canaries, agreed = _make_algorithm(
        spec, data, tokenizer, room=room, longest=longest
    )
    algorithm = hostile.around(algorithm, spec, poisoned)
    roles.check(spec, algorithm)
    form = ledgers.form_of(
        spec, tokenizer, access=algorithm.access, table=data.heldout, longest=longest
    )
    ledgers.check(spec, algorithm, data, form)
    target = trained.load_target(spec, tokenizer, mesh)
    train = lambda model: trained.make_trainable(spec, model, tokenizer)
    model, params = devices.place(roles.assemble(spec, algorithm, target, train), mesh)
    has_shared_model = _has_shared_model(spec, algorithm, model, params, data)
    special_ids = tokenizer.all_special_ids
    meter = metering.make_meter(spec, algorithm, data, form, special_ids=special_ids)
    name = factories.display_name(spec.method.name)
    metering.confirm(algorithm, model, params, data, meter=meter, method=name)
    granted = hosting.grants(spec)
    heldout = rows.make_heldout(spec, data, tokenizer, room=room, granted=granted)
    start = devices.place(init(algorithm, params), mesh)
    plan = fedjax_post.Plan(
        sampler=sampler,
        seed=spec.seed,
        chunk_size=_chunk_size(spec, algorithm, model, params, data),
        feed=fedjax_post.pooled if spec.method.baseline == "central" else fedjax_post.chunks,
        checkpoint_every=spec.execution.checkpoint_every,
        recording=recordings.recording_of(spec),
        **devices.plan_of(mesh, spec),
        **paced,
    )
    parts = Parts(
        *(spec, algorithm, model, params, data, heldout, plan, start, form, meter, tokenizer),
        promised=promised,
        agreed=agreed,
        canaries=canaries,
        poisoned=hostile.add_heldout(poisoned, heldout),
        has_shared_model=has_shared_model,
    )
    return _add_identity(spec, parts)


def _make_algorithm(
    spec: Spec, data: Loaded, tokenizer: Any, *, room: int, longest: int
) -> tuple[Algorithm, private.Guarantee | None, CanaryClients | None, secure.Agreed | None]:
    """Returns the algorithm with all around it, its privacy, its canaries, and its secure sums."""
    population, prefix = len(data.clients), rows.shared_tokens(data)
    promised = private.promise(spec, data, cohort_size=rows.cohort_size(spec, population))

    def loss_of(made: Algorithm) -> Callable:
        whole = objectives.loss_of(spec, made) or prompts.loss_of(
            spec, made, tokenizer, longest=longest, prefix=prefix, data=data
        )
        return objectives.accumulated(spec, made, whole)

    algorithm = methods.make_algorithm(
        spec,
        participation=_participation(spec, population),
        loss_of=loss_of,
        guard_fn=lambda loss_fn: private.guard_loss(loss_fn, spec, promised),
        given=prompts.token_arguments(spec, factories.find_factory(spec.method.name), tokenizer)
        | {"NumClients": population},
    )
    # Places left after the longest row, whose last token is never an input
    left = room - data.report["max_length"] + 1
    algorithm = objectives.around(
        spec, algorithm, tokenizer, room=left, longest=longest, prefix=prefix
    )
    algorithm = wires.around(algorithm, spec, population=population)
    algorithm, promised = private.around(algorithm, spec, promised)
    algorithm, canaries = canary_clients.around(algorithm, spec, promised, population=population)
    algorithm, agreed = secure.around(
        algorithm, spec, promised, population=population, report=data.report
    )
    return algorithm, promised, canaries, agreed


def _check_trainable(spec: Spec) -> None:
    """Raises ValueError for training quantized weights, before they are read."""
    if spec.model.quantize != "none" and spec.adapter.kind != "lora":
        raise ValueError(
            f"quantize={spec.model.quantize} freezes the weights that adapter={spec.adapter.kind} "
            "would train; use adapter=lora, or leave `quantize` out"
        )
    if spec.model.quantize != "none" and spec.model.remat is False:
        raise ValueError(
            f"quantize={spec.model.quantize} decodes its layers' weights again in the backward "
            "pass, and `remat=False` would store them; leave one of them out"
        )


def _has_shared_model(spec: Spec, algorithm, model, params, data: Loaded) -> bool:
    """Returns whether a model is shared: not if clients are sent nothing and each has its own.

    Raises:
      ValueError: for scores of personal models where clients have no models of their own.
    """
    kept = client_state_like(algorithm, model, data.clients, params)
    if deploys_client(algorithm, model, params, kept):
        return wire_bytes_of(algorithm, model, data.clients, params).down > 0
    if spec.scoring.personal and spec.method.baseline == "none":
        kept_there = "what its clients keep is no part of a model"
        raise ValueError(
            f"scoring.personal=True: method={factories.display_name(spec.method.name)} has no "
            f"models of clients' own, as "
            f"{kept_there if jax.tree.leaves(kept.local) else 'its clients keep nothing'}; leave "
            "it out, or use a method with personal models, such as ditto(fed_avg)"
        )
    return True


def _chunk_size(spec: Spec, algorithm, model, params, data) -> int | None:
    """Returns the clients in one compiled unit; for "auto", as many as memory allows."""
    given = spec.execution.chunk_size
    if given != "auto":
        return given and int(given)
    most = rows.cohort_size(spec, len(data.clients))
    return largest_chunk(algorithm, model, data.clients, params=params, at_most=most)


def check(spec: Spec) -> None:
    """Checks that fields go together, before anything is read.

    Raises:
      ValueError: naming the field and the remedy.
    """
    _check_trainable(spec)
    given = spec.execution.chunk_size
    if given not in (None, "auto") and not (str(given).isdecimal() and int(given) >= 1):
        raise ValueError(f"chunk_size={given} must be a number of at least 1, or auto")


def _add_identity(spec: Spec, parts: Parts) -> Parts:
    """Adds to the plan what must be equal when the run is resumed: settings, rows and weights.

    The number of rounds is checked separately, see `job.check_same`.
    """
    settings = {path: str(value) for path, value in identity(spec).items()}
    settings.pop("training.rounds", None)
    settings |= {f"code of {module}": found for module, found in code_hashes(spec).items()}
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
