"""From a specification to everything that a run needs, checked before anything is compiled."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jax.sharding import Mesh

from fedjax_post.adapters.lora import add_lora
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.core.engine import State, init
from fedjax_post.data.load import Loaded, Population, Text, load_clients
from fedjax_post.data.pairs import load_pairs
from fedjax_post.data.ranks import RankedClients
from fedjax_post.data.table import TokenTable
from fedjax_post.data.template import Columns
from fedjax_post.evaluate.generation import longest_response
from fedjax_post.evaluate.scores import HeldOut, choose_rows
from fedjax_post.hub.load import load_config, load_model
from fedjax_post.hub.tokenizer import check_tokenizer, load_tokenizer
from fedjax_post.model.views import LanguageModel
from fedjax_post.openness.ledger import Form
from fedjax_post.simulate.cohort import Sampler, draw
from fedjax_post.simulate.memory import largest_chunk
from fedjax_post.study import (
    devices,
    disclosure,
    hosting,
    methods,
    objectives,
    pace,
    private,
    prompts,
    roles,
    wires,
)
from fedjax_post.study.spec import Spec

PyTree = Any
_SHORT = 32  # tokens: answers up to here are generated and compared by default


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
    config = load_config(spec.model.name)
    tokenizer = find_tokenizer(spec)
    check_tokenizer(tokenizer, config)
    mesh = devices.find_mesh(spec, config)
    room = config.max_positions - prompts.places_of(spec, tokenizer)
    data = load_data(spec, tokenizer, context_length=room)
    if spec.adapter.client_ranks:
        ranks = methods.client_ranks(spec)
        data = data._replace(clients=RankedClients(data.clients, ranks))
    paced = pace.plan_of(spec, len(data.clients))
    sampler = make_sampler(spec, len(data.clients))
    longest = longest_response(data.heldout)
    algorithm, promised = _make_algorithm(spec, data, tokenizer, room=room, longest=longest)
    roles.check(spec, algorithm)
    held = {"access": algorithm.access, "table": data.heldout, "longest": longest}
    form = disclosure.form_of(spec, tokenizer, **held)
    disclosure.check(spec, algorithm, data, form)
    target = load_target(spec, tokenizer, mesh)
    train = lambda model: make_trainable(spec, model, tokenizer)
    model, params = devices.placed(roles.assemble(spec, algorithm, target, train), mesh)
    heldout = make_heldout(spec, data, tokenizer)
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
    return Parts(spec, algorithm, model, params, data, heldout, plan, start, form, tokenizer, promised)


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
    cohort_size = _cohort_size(spec, population)
    return private.around(algorithm, spec, population=population, cohort_size=cohort_size)


def find_tokenizer(spec: Spec) -> Any:
    """Returns the target's tokenizer, which ends a response as the experiment says.

    Raises:
      ValueError: for an end that is no token.
    """
    tokenizer = load_tokenizer(spec.model.name)
    if spec.model.end_token is not None:
        if spec.model.end_token not in tokenizer.get_vocab():
            raise ValueError(
                f"end_token={spec.model.end_token} is no token of model={spec.model.name}; its "
                f"special tokens are {', '.join(tokenizer.all_special_tokens)}"
            )
        tokenizer.eos_token = spec.model.end_token
    return tokenizer


def load_target(spec: Spec, tokenizer: Any, mesh: Any) -> Any:
    """Returns the model that is adapted: its weights, or where to ask it."""
    if hosting.is_hosted(spec):
        return hosting.model_of(spec, tokenizer, directory=None)
    where = devices.loading(mesh)
    model = load_model(spec.model.name, dtype=spec.model.dtype, quantise=spec.model.quantize, **where)
    if spec.model.remat is None:
        return model
    return dataclasses.replace(model, config=dataclasses.replace(model.config, remat=spec.model.remat))


def load_data(spec: Spec, tokenizer: Any, *, context_length: int) -> Loaded:
    """Returns the clients and the held-out rows of an experiment."""
    load = load_clients
    if spec.objective.name == "dpo":
        load = partial(load_pairs, rejected=spec.data.rejected_column)
    data = load(
        spec.data.source,
        tokenizer,
        batch_size=spec.training.batch_size,
        local_steps=spec.training.local_steps,
        local_epochs=spec.training.local_epochs,
        text=Text(
            columns=Columns(**{role: spec.at(f"data.{role}_column") for role in Columns._fields}),
            template=prompts.template_of(spec),
            max_length=spec.data.max_length,
            context_length=context_length,
            pack_length=spec.data.pack_length,
            response_words=spec.data.response_words or None,
        ),
        population=Population(
            partition=spec.data.partition,
            num_clients=spec.data.num_clients,
            alpha=spec.data.partition_alpha,
            heldout_fraction=spec.data.heldout_fraction,
            seed=spec.seed,
        ),
    )
    if data.heldout is None:
        raise ValueError(
            f"heldout_fraction={spec.data.heldout_fraction:g} leaves no rows to score on, and "
            f"data={spec.data.source} holds none out; raise it"
        )
    return data



def make_sampler(spec: Spec, population: int) -> Sampler:
    """Returns the sampler of an experiment, tried once on the population."""
    if spec.training.sampling == "full":
        return fedjax_post.full()
    samplers = {"uniform": fedjax_post.uniform, "poisson": fedjax_post.poisson}
    sampler = samplers[spec.training.sampling](_cohort_size(spec, population))
    draw(sampler, population, seed=spec.seed, round=0)
    return sampler


def make_trainable(
    spec: Spec, model: LanguageModel, tokenizer: Any
) -> tuple[LanguageModel, PyTree]:
    """Returns the frozen model and the parameters that the federation trains, at their start."""
    if spec.adapter.kind in prompts.ADAPTERS:
        return model, prompts.make_start(spec, model, tokenizer)
    if spec.adapter.kind == "full":
        # float32, so that small updates of a bfloat16 model are not rounded away
        weights = jax.tree.map(lambda leaf: leaf.astype("float32"), model.variables["params"])
        return dataclasses.replace(model, variables={}), {"params": weights}
    targets = spec.adapter.targets
    return add_lora(
        model,
        jax.random.key(spec.seed),
        rank=spec.adapter.rank,
        alpha=spec.adapter.alpha,
        targets=targets[0] if len(targets) == 1 else targets,
        layers=layer_range(spec.adapter.layers, model.config.num_layers),
        dropout=spec.adapter.dropout,
    )


def layer_range(text: str, num_layers: int) -> tuple[int, int]:
    """Returns the first layer of `first:end`, and the one after its last; either may be left out.

    Raises:
      ValueError: if the text is no range; whether the model has these layers is not checked.
    """
    try:
        first, end = (int(part) if part.strip() else None for part in text.split(":"))
    except ValueError:
        raise ValueError(
            f"adapter.layers={text} is no range of layers; write first:end, such as 4: or 2:6"
        ) from None
    return first or 0, num_layers if end is None else end


def make_heldout(spec: Spec, data: Loaded, tokenizer: Any) -> HeldOut:
    """Returns what the model is scored on at the start and at the end."""
    table = data.heldout
    return HeldOut(
        table=table,
        rows=choose_rows(len(table.length), spec.scoring.examples, seed=spec.seed),
        decode_fn=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        eos_id=tokenizer.eos_token_id,
        exact_match=spec.scoring.exact_match == "on"
        or (spec.scoring.exact_match == "auto" and not why_no_match(table)),
        loss=not hosting.is_hosted(spec),
        labels=tuple(spec.data.labels),
        rejected=data.rejected,
        batch_size=spec.scoring.batch_size,
    )


def why_no_match(table: TokenTable) -> str:
    """Returns why answers to held-out rows are not compared by default; empty if they are."""
    longest = longest_response(table)
    if longest > _SHORT:
        return f"held-out responses have up to {longest} tokens, more than {_SHORT}"
    if table.fit.num_truncated:
        return f"{table.fit.num_truncated} held-out responses are cut by max_length"
    return ""


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
    most = _cohort_size(spec, len(data.clients))
    return largest_chunk(algorithm, model, data.clients, params=params, at_most=most)


def check(spec: Spec) -> None:
    """Refuses fields that do not go together, before anything is read."""
    _check_trainable(spec)
    given = spec.execution.chunk_size
    if given not in (None, "auto") and not (str(given).isdecimal() and int(given) >= 1):
        raise ValueError(f"chunk_size={given} must be a number of at least 1, or auto")


def _participation(spec: Spec, population: int) -> float:
    return _cohort_size(spec, population) / population


def _cohort_size(spec: Spec, population: int) -> int:
    if spec.training.sampling == "full":
        return population
    return spec.training.buffer_size or spec.training.cohort_size or min(16, population)


