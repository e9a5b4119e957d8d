"""From flags to everything that a run needs, checked before anything is compiled or written."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from jax.sharding import Mesh

import fedjax_post
from experiments import (
    devices,
    disclosure,
    distributed,
    dp,
    factories,
    folder,
    hosting,
    methods,
    objectives,
    pace,
    peers,
    prompts,
    roles,
    wires,
)
from fedjax_post.adapters.lora import add_lora
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.core.engine import State, init
from fedjax_post.data.columns import Columns
from fedjax_post.data.load import Loaded, Text, load_clients
from fedjax_post.data.pairs import load_pairs
from fedjax_post.data.population import Population, count_clients
from fedjax_post.data.ranks import RankedClients
from fedjax_post.data.source import check_source
from fedjax_post.data.table import TokenTable
from fedjax_post.evaluate.generation import longest_response
from fedjax_post.evaluate.scores import HeldOut, choose_rows
from fedjax_post.hub.load import load_config, load_model
from fedjax_post.hub.tokenizer import check_tokenizer, load_tokenizer
from fedjax_post.model.views import LanguageModel
from fedjax_post.openness.ledger import Form
from fedjax_post.simulate.cohort import Sampler, draw
from fedjax_post.simulate.memory import largest_chunk

PyTree = Any
_SHORT = 32  # tokens: answers up to here are generated and compared by default


class Job(NamedTuple):
    """A run, ready to start but for a folder in its plan."""

    algorithm: Algorithm
    model: Any  # the target, or a model for each role
    params: PyTree  # where training starts
    data: Loaded
    heldout: HeldOut  # of the table at the end
    plan: fedjax_post.Plan
    start: State  # before the first round, or after the last one that was saved
    rounds_done: int
    form: Form  # of a query to the target, in tokens
    tokenizer: Any  # of the target
    promised: dp.Guarantee | None  # where clients are private

    @property
    def target(self) -> LanguageModel:
        """The model that is adapted, whatever other roles there are."""
        return self.model["target"] if isinstance(self.model, dict) else self.model


def build(options: flags.FlagValues) -> Job:
    """Returns the run that the flags describe.

    Raises:
      ValueError, OSError, AccessError: for input that will not do, naming the flag, its
        value and the remedy; in all processes, where there are several.
    """
    distributed.check_joined(options)
    with peers.together():
        job, mesh = _begin(options)
    start, rounds_done = _find_start(options, job.algorithm, job.params)
    return job._replace(start=devices.placed(start, mesh), rounds_done=rounds_done)


def _begin(options: flags.FlagValues) -> tuple[Job, Mesh | None]:
    """The run before its first round, and its devices; waits for no other process."""
    if peers.is_first():
        folder.check(options)
    _check_trainable(options)
    _check_chunk_size(options)
    pace.check(options)
    wires.check(options)
    prompts.check(options)
    objectives.check(options)
    dp.check(options)
    hosting.check(options)
    _check_population(options)
    config = load_config(options.model)
    tokenizer = find_tokenizer(options)
    check_tokenizer(tokenizer, config)
    mesh = devices.find_mesh(options, config)
    room = config.max_positions - prompts.places_of(options, tokenizer)
    data = load_data(options, tokenizer, context_length=room)
    if options.client_ranks:
        ranks = methods.client_ranks(options)
        data = data._replace(clients=RankedClients(data.clients, ranks))
    paced = pace.plan_of(options, len(data.clients))
    sampler = make_sampler(options, len(data.clients))
    longest = longest_response(data.heldout)
    algorithm, promised = _make_algorithm(options, data, tokenizer, room=room, longest=longest)
    roles.check(options, algorithm)
    held = {"access": algorithm.access, "table": data.heldout, "longest": longest}
    form = disclosure.form_of(options, tokenizer, **held)
    disclosure.check(options, algorithm, data, form)
    target = load_target(options, tokenizer, mesh)
    train = lambda model: make_trainable(options, model, tokenizer)
    model, params = devices.placed(roles.assemble(options, algorithm, target, train), mesh)
    heldout = make_heldout(options, data, tokenizer)
    start = init(algorithm, params)
    plan = fedjax_post.Plan(
        sampler=sampler,
        seed=options.seed,
        chunk_size=_chunk_size(options, algorithm, model, params, data),
        feed=fedjax_post.pooled if options.baseline == "central" else fedjax_post.chunks,
        resume=options.resume,
        checkpoint_every=options.checkpoint_every,
        **devices.plan_of(mesh, options),
        **paced,
    )
    job = Job(algorithm, model, params, data, heldout, plan, start, 0, form, tokenizer, promised)
    return job, mesh


def _make_algorithm(
    options: flags.FlagValues, data: Loaded, tokenizer: Any, *, room: int, longest: int
) -> tuple[Algorithm, dp.Guarantee | None]:
    """The algorithm with all that stands around it, and what it promises of clients' privacy."""
    population = len(data.clients)
    algorithm = methods.make_algorithm(
        options,
        participation=_participation(options, population),
        loss_of=lambda made: (
            objectives.loss_of(options, made)
            or prompts.loss_of(options, made, tokenizer, longest=longest)
        ),
        given=prompts.offered(options, factories.find_factory(options.algorithm), tokenizer),
    )
    behind = room - data.report["max_length"] + 1  # a row without its last token
    algorithm = objectives.around(options, algorithm, tokenizer, room=behind, longest=longest)
    algorithm = wires.around(algorithm, options, population=population)
    cohort_size = _cohort_size(options, population)
    return dp.around(algorithm, options, population=population, cohort_size=cohort_size)


def find_tokenizer(options: flags.FlagValues) -> Any:
    """Returns the target's tokenizer, which ends a response as the flags say.

    Raises:
      ValueError: for an end that is no token.
    """
    tokenizer = load_tokenizer(options.model)
    if options.end_token is not None:
        if options.end_token not in tokenizer.get_vocab():
            raise ValueError(
                f"--end_token={options.end_token} is no token of --model={options.model}; its "
                f"special tokens are {', '.join(tokenizer.all_special_tokens)}"
            )
        tokenizer.eos_token = options.end_token
    return tokenizer


def load_target(options: flags.FlagValues, tokenizer: Any, mesh: Any) -> Any:
    """Returns the model that is adapted: its weights, or where to ask it."""
    if hosting.is_hosted(options):
        return hosting.model_of(options, tokenizer, directory=None)
    where = devices.loading(mesh)
    model = load_model(options.model, dtype=options.dtype, quantise=options.quantise, **where)
    if options.remat is None:
        return model
    return dataclasses.replace(model, config=dataclasses.replace(model.config, remat=options.remat))


def load_data(options: flags.FlagValues, tokenizer: Any, *, context_length: int) -> Loaded:
    """Returns the clients and the held-out rows that the flags describe."""
    load = load_clients
    if options.objective == "dpo":
        load = partial(load_pairs, rejected=options.rejected_column)
    data = load(
        options.dataset,
        tokenizer,
        batch_size=options.batch_size,
        local_steps=options.local_steps,
        local_epochs=options.local_epochs,
        split=options.split,
        text=Text(
            columns=Columns(**{role: options[f"{role}_column"].value for role in Columns._fields}),
            template=prompts.template_of(options),
            max_length=options.max_length,
            context_length=context_length,
            pack_length=options.pack_length,
            response_words=response_words(options),
        ),
        population=population_of(options),
    )
    if data.heldout is None:
        raise ValueError(
            f"--heldout_fraction={options.heldout_fraction:g} leaves no rows to score on, and "
            f"--dataset={options.dataset} holds none out; raise it"
        )
    return data


def population_of(options: flags.FlagValues) -> Population:
    """Returns who holds the rows."""
    return Population(
        partition=options.partition,
        num_clients=options.num_clients,
        alpha=options.partition_alpha,
        heldout_fraction=options.heldout_fraction,
        seed=options.seed,
    )


def response_words(options: flags.FlagValues) -> dict[str, str] | None:
    """Returns what each label is called in responses; None where they stand as they are.

    Raises:
      ValueError: for an entry that is no label=word.
    """
    pairs = [entry.partition("=") for entry in options.response_words]
    wrong = [label + sign + word for label, sign, word in pairs if not (label and word)]
    if wrong:
        raise ValueError(
            f"--response_words has {wrong[0]!r}, which is no label=word; such as 0=sad,1=happy"
        )
    return {label: word for label, _, word in pairs} or None


def make_sampler(options: flags.FlagValues, population: int) -> Sampler:
    """Returns the sampler of the flags, tried once on the population."""
    if options.sampling == "full":
        return fedjax_post.full()
    samplers = {"uniform": fedjax_post.uniform, "poisson": fedjax_post.poisson}
    sampler = samplers[options.sampling](_cohort_size(options, population))
    draw(sampler, population, seed=options.seed, round=0)
    return sampler


def make_trainable(
    options: flags.FlagValues, model: LanguageModel, tokenizer: Any
) -> tuple[LanguageModel, PyTree]:
    """Returns the frozen model and the parameters that the federation trains, at their start."""
    if options.adapter in prompts.ADAPTERS:
        return model, prompts.make_start(options, model, tokenizer)
    if options.adapter == "full":
        # float32, so that small updates of a bfloat16 model are not rounded away
        weights = jax.tree.map(lambda leaf: leaf.astype("float32"), model.variables["params"])
        return dataclasses.replace(model, variables={}), {"params": weights}
    targets = options.lora_targets
    return add_lora(
        model,
        jax.random.key(options.seed),
        rank=options.lora_rank,
        alpha=options.lora_alpha,
        targets=targets[0] if len(targets) == 1 else targets,
        layers=layer_range(options.lora_layers, model.config.num_layers),
        dropout=options.lora_dropout,
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
            f"--lora_layers={text} is no range of layers; write first:end, such as 4: or 2:6"
        ) from None
    return first or 0, num_layers if end is None else end


def make_heldout(options: flags.FlagValues, data: Loaded, tokenizer: Any) -> HeldOut:
    """Returns what the model is scored on at the start and at the end."""
    table = data.heldout
    return HeldOut(
        table=table,
        rows=choose_rows(len(table.length), options.eval_examples, seed=options.seed),
        decode_fn=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        eos_id=tokenizer.eos_token_id,
        exact_match=options.exact_match == "on"
        or (options.exact_match == "auto" and not why_no_match(table)),
        loss=not hosting.is_hosted(options),
        labels=tuple(options.labels),
        rejected=data.rejected,
        batch_size=options.eval_batch_size,
    )


def why_no_match(table: TokenTable) -> str:
    """Returns why answers to held-out rows are not compared by default; empty if they are."""
    longest = longest_response(table)
    if longest > _SHORT:
        return f"held-out responses have up to {longest} tokens, more than {_SHORT}"
    if table.fit.num_truncated:
        return f"{table.fit.num_truncated} held-out responses are cut by max_length"
    return ""


def _check_trainable(options: flags.FlagValues) -> None:
    """Refuses to train weights that would be codes, before they are read."""
    if options.quantise != "none" and options.adapter != "lora":
        raise ValueError(
            f"--quantise={options.quantise} freezes the weights that --adapter={options.adapter} "
            "would train; use --adapter=lora, or leave --quantise out"
        )
    if options.quantise != "none" and options.remat is False:
        raise ValueError(
            f"--quantise={options.quantise} reads its layers' weights back in the backward pass, "
            "which --noremat would keep; leave one of them out"
        )


def _chunk_size(options, algorithm, model, params, data) -> int | None:
    """The chunk size of the flags; `auto` is put in their place, so that a resumed run keeps it."""
    if options.chunk_size != "auto":
        return options.chunk_size and int(options.chunk_size)
    most = _cohort_size(options, len(data.clients))
    size = largest_chunk(algorithm, model, data.clients, params=params, at_most=most)
    options["chunk_size"].value = str(size)
    return size


def _check_population(options: flags.FlagValues) -> None:
    """Refuses data that is not there, and too large a cohort, before any library is loaded."""
    check_source(options.dataset)
    population = count_clients(options.dataset, population_of(options))
    if population is not None:
        make_sampler(options, population)


def _check_chunk_size(options: flags.FlagValues) -> None:
    given = options.chunk_size
    if given not in (None, "auto") and not (given.isdecimal() and int(given) >= 1):
        raise ValueError(f"--chunk_size={given} must be a number of at least 1, or auto")


def _participation(options: flags.FlagValues, population: int) -> float:
    return _cohort_size(options, population) / population


def _cohort_size(options: flags.FlagValues, population: int) -> int:
    if options.sampling == "full":
        return population
    return options.buffer_size or options.cohort_size or min(16, population)


def _find_start(
    options: flags.FlagValues, algorithm: Algorithm, params: PyTree
) -> tuple[State, int]:
    """The state to go on from, and the rounds behind it."""
    snapshot = None
    if options.resume and (Path(options.output_dir) / "checkpoints").exists():
        snapshot = fedjax_post.restore(options.output_dir, algorithm, params)
    if snapshot is None:
        return init(algorithm, params), 0
    if snapshot.rounds_done > options.num_rounds:
        raise ValueError(
            f"--num_rounds={options.num_rounds}: the run in {options.output_dir} has "
            f"{snapshot.rounds_done} rounds already; give at least as many"
        )
    return snapshot.state, snapshot.rounds_done
