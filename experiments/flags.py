"""The flags of `experiments.train`."""

from collections.abc import Callable, Sequence

from absl import flags

from algorithms import ALGORITHMS
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
    prompts,
    roles,
    wires,
)
from experiments.optimizers import CLIENT_OPTIMIZERS, SCHEDULES, SERVER_OPTIMIZERS
from fedjax_post.data.columns import Columns
from fedjax_post.data.population import PARTITIONS, Population
from fedjax_post.data.source import BUILTIN
from fedjax_post.hub.files import BUILTIN as MODELS
from fedjax_post.model.codes import KINDS

# What depends on --num_rounds, unless it is as here
_BY_ROUNDS = {"client_schedule": "constant", "dp_epsilon": None}
# What may differ when a run is resumed; --num_rounds may too, where nothing is scheduled by it.
_FREE = (
    *("output_dir", "resume", "eval_every", "curve_examples", "eval_examples", "help"),
    *("telemetry_clients", "mesh", "chunk_size", "remat", "checkpoint_every", *distributed.FLAGS),
    *("provider_url", "provider_timeout", "on_provider_failure"),
    *("max_queries", "max_cost", "ask_again"),
)


def parse(argv: Sequence[str]) -> flags.FlagValues:
    """Returns the flags of a command line; with `--resume`, those left out come from the run.

    Args:
      argv: program name and flags.

    Raises:
      flags.Error: for a flag that does not exist or cannot have its value.
      ValueError: for words that are no flags, an unknown algorithm, a flag that the
        algorithm does not take, and flags that differ from the resumed run's.
    """
    first = define()
    first(argv, known_only=True)
    stored = folder.read_flags(first.output_dir) if first.resume and not first.help else []
    if stored and not first["algorithm"].present:
        first(["", *stored], known_only=True)
    name = first.algorithm
    known = {**ALGORITHMS, name: factories.find_factory(name)}
    options = define(known)
    rest = options(argv)[1:]
    if rest:
        raise ValueError(f"{rest[0]!r} is no flag; write --name=value")
    if stored:
        before = define(known)
        before(["", *stored])
        _continue(options, before)
    hosting.check_typed(
        argv, [f"--provider_url={options.provider_url}"] * bool(options.provider_url)
    )
    factories.check_taken(options, known)
    methods.fill_defaults(options, known[name])
    return options


def define(known: factories.Factories = ALGORITHMS) -> flags.FlagValues:
    """Returns the flags of the program, nothing parsed yet."""
    values = flags.FlagValues()
    _define_run(values)
    _define_data(values)
    _define_training(values)
    factories.define_own(known, values)
    return values


def _continue(options: flags.FlagValues, before: flags.FlagValues) -> None:
    """Takes over a stored run's flags, and refuses those that were given anew and differ."""
    scheduled = [name for name, usual in _BY_ROUNDS.items() if before[name].value != usual]
    free = _FREE if scheduled else [*_FREE, "num_rounds"]
    for name in before:
        given, stored = options[name].value, before[name].value
        if not options[name].present and name not in ("output_dir", "resume"):
            options[name].value = stored
        elif given != stored and name not in free:
            why = f" and --{scheduled[0]} depends on it" if name == "num_rounds" else ""
            raise ValueError(
                f"--{name}={given} differs from the run in {options.output_dir}, which has "
                f"{stored}{why}; leave it out to resume, or give another --output_dir"
            )


def _define_run(values: flags.FlagValues) -> None:
    text, whole, _, choice = _definers(values)
    flags.DEFINE_bool("help", False, "print the flags", flag_values=values)
    text(
        "algorithm",
        "fed_adam_optax",
        f"{', '.join(ALGORITHMS)}; ditto(one of these); or package.module:factory",
    )
    choice("baseline", "none", ["none", "central", "local"], "a reference on the same tokens")
    text("model", "builtin", f"{', '.join(MODELS)}, a Hugging Face folder, or a hub name")
    choice("dtype", "float32", ["float32", "bfloat16"], "of base weights and matrix products")
    choice("quantise", "none", ["none", *KINDS], "codes for the frozen layers, as in QLoRA")
    remat = "recompute layers in the backward pass: less memory, more time (with --quantise only)"
    flags.DEFINE_bool("remat", None, remat, flag_values=values)
    whole("num_rounds", 60, "rounds in all", 1)
    choice("sampling", "uniform", ["uniform", "poisson", "full"], "how a cohort is drawn")
    whole("cohort_size", None, "clients in a round, under poisson on average (16, or all)", 1)
    pace.define(values)
    text("chunk_size", None, "clients in one compiled unit, or auto (the cohort, at most 32)")
    roles.define(values)
    disclosure.define(values)
    hosting.define(values)
    choice("executor", "device", ["device", "host"], "compiled, or eager and client by client")
    devices.define(values)
    distributed.define(values)
    whole("seed", 0, "of data, partition, cohorts, batches and the adapter's start", 0)
    text("output_dir", None, "a new folder (runs/<time>-<algorithm>)")
    flags.DEFINE_bool("resume", False, "continue the run in --output_dir", flag_values=values)
    often = "rounds between checkpoints (as many as keep saving to a fiftieth of the time)"
    whole("checkpoint_every", None, often, 1)
    whole("eval_every", 5, "rounds between points of the learning curve; 0: none", 0)
    whole("curve_examples", 96, "held-out rows behind a point of the curve", 1)
    whole("eval_examples", 0, "held-out rows behind the table; 0: all", 0)
    whole("eval_clients", 8, "personal models that are scored, where any are", 1)
    own = "score clients' own models too, each on the tasks that its client holds"
    flags.DEFINE_bool("score_personal", False, own, flag_values=values)
    whole("eval_batch_size", 32, "rows scored side by side", 1)
    choice("exact_match", "auto", ["auto", "on", "off"], "score answers; auto: if short")


def _define_data(values: flags.FlagValues) -> None:
    text, whole, real, choice = _definers(values)
    data = f"{', '.join(BUILTIN)}, a file, a folder with a file per client, or a hub name"
    text("dataset", "builtin", data)
    text("split", None, "the split to train on, where there are several (train)")
    usual = Population()
    held = "who holds what (natural where there is a column of clients, else iid)"
    choice("partition", usual.partition, list(PARTITIONS), held)
    real("partition_alpha", usual.alpha, "of dirichlet; less is more skew")
    whole("num_clients", usual.num_clients, "of iid, dirichlet and the built-in tasks (128)", 1)
    for role in Columns._fields:
        text(f"{role}_column", None, f"column of the {role} (by its usual names)")
    words = "what labels are called in responses, such as 0=sad,1=happy"
    flags.DEFINE_list("response_words", [], words, flag_values=values)
    text("end_token", None, "what ends a response, where a base never saw its tokenizer's end")
    text("template", "auto", "chat, plain, auto, or a format string over columns")
    whole("max_length", 0, "tokens of a row; 0: the longest", 0)
    whole("pack_length", 0, "tokens of a row that several examples share; 0: one a row", 0)
    aside = "share set aside where the data has no held-out rows"
    real("heldout_fraction", usual.heldout_fraction, aside)


def _define_training(values: flags.FlagValues) -> None:
    text, whole, real, choice = _definers(values)
    objectives.define(values)
    whole("local_steps", None, "steps of a visit (5, without --local_epochs)", 1)
    whole("local_epochs", None, "passes of a visit over the client's rows", 1)
    whole("batch_size", 8, "rows in a client's batch", 1)
    trained = ["lora", "full", *prompts.ADAPTERS]
    choice("adapter", "lora", trained, "what is trained and sent")
    prompts.define(values)
    whole("lora_rank", 8, "components of the adapter", 1)
    real("lora_alpha", 16.0, "the adapter's factor is alpha / rank")
    ranks = "ranks of the clients in turn, such as 2,4,8, for algorithms that take unequal ones"
    flags.DEFINE_list("client_ranks", [], ranks, flag_values=values)
    targets = "names or patterns of linear layers"
    flags.DEFINE_list("lora_targets", ["all-linear"], targets, flag_values=values)
    text("lora_layers", ":", "layers that are adapted, first:end from 0, such as 4: or 2:6")
    real("lora_dropout", 0.0, "of the adapter's inputs while training")
    links = "links to the server, such as clip(1.0), error_feedback(top_k(0.01), cast(bfloat16))"
    text("uplink", None, f"{links}; of {', '.join(wires.LINKS)}")
    dp.define(values)
    text("aggregate", None, f"a rule for the mean: {', '.join(wires.RULES)}")
    choice("client_optimizer", None, list(CLIENT_OPTIMIZERS), "local optimizer (sgd)")
    real("client_lr", None, "local step size (by optimizer)")
    choice("client_schedule", None, list(SCHEDULES), "of the local step size, by round (constant)")
    real("weight_decay", None, "of the local optimizer (0)")
    real("grad_clip", None, "largest norm of a local gradient; 0: any (1)")
    choice("server_optimizer", None, list(SERVER_OPTIMIZERS), "of the mean update (sgd)")
    real("server_lr", None, "server step size (by optimizer or algorithm)")
    choice(
        "client_weight", None, ["tokens", "examples", "uniform"], "what a client counts by (tokens)"
    )


def _definers(values: flags.FlagValues) -> tuple[Callable, Callable, Callable, Callable]:
    def text(name, default, doc):
        flags.DEFINE_string(name, default, doc, flag_values=values)

    def whole(name, default, doc, low):
        flags.DEFINE_integer(name, default, doc, lower_bound=low, flag_values=values)

    def real(name, default, doc):
        flags.DEFINE_float(name, default, doc, lower_bound=0.0, flag_values=values)

    def choice(name, default, choices, doc):
        flags.DEFINE_enum(name, default, choices, doc, flag_values=values)

    return text, whole, real, choice
