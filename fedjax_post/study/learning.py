"""Sections of an experiment on what is learned: model, data, adapter, objective and method.

A default of None depends on other fields; the help text then gives the default in parentheses.
A field marked `free` changes how a run is carried out but not its result, and may differ when the
run is resumed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fedjax_post.data.population import Population
from fedjax_post.data.rules import RULES
from fedjax_post.data.source import BUILTIN as TASKS
from fedjax_post.hub.files import BUILTIN as MODELS
from fedjax_post.hub.files import PACKAGED
from fedjax_post.model.codes import KINDS
from fedjax_post.study.fields import check, replaced, setting
from fedjax_post.study.optimizers import SCHEDULES

_USUAL = Population()


@dataclasses.dataclass(frozen=True)
class Model:
    """The model that is adapted, and models that help to adapt it."""

    name: Any = setting(
        "builtin",
        f"base model: {', '.join((*MODELS, *PACKAGED))}, a Hugging Face folder, a .gguf file, or a "
        "hub name",
        flag="model",
        common=True,
    )
    dtype: str | None = setting(
        None,
        "dtype of base weights and of products: float32, bfloat16, or mixed, which is bfloat16 "
        "matrices with activations and sums in float32 (mixed for a file of at most 16 bits a "
        "weight, on a processor that multiplies bfloat16; else float32)",
        choices=("float32", "bfloat16", "mixed"),
    )
    quantize: str = setting(
        "none", "quantization of the target's frozen layers, as in QLoRA", choices=("none", *KINDS)
    )
    remat: bool | None = setting(
        None,
        "recompute layers in the backward pass, for less memory and more time (only with quantize)",
        free=True,
    )
    end_token: str | None = setting(None, "token that ends a response (the tokenizer's end token)")
    proxy: str | None = setting(
        None,
        "small open model with the same vocabulary, for methods that steer the target by a proxy",
        flag="proxy_model",
    )
    embeddings: str | None = setting(
        None, "small open model with the same vocabulary, for similarities between tokens"
    )
    emulator_first: int | None = setting(
        None, "number of first layers that the target's emulator keeps (1)", low=0
    )
    emulator_last: int | None = setting(
        None, "number of last layers that the target's emulator keeps (1)", low=1
    )
    emulator_keep_every: int | None = setting(
        None, "the target's emulator keeps one of this many middle layers (2)", low=1
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Data:
    """The rows, how they become prompts and responses, and which client holds which."""

    source: Any = setting(
        "builtin",
        f"{', '.join(TASKS)}, a file, a folder with a file per client, or a hub name",
        flag="dataset",
        common=True,
    )
    split: str | None = setting(None, "split to train on, where the data have several (train)")
    partition: str | None = setting(
        None,
        f"how rows are divided among clients: {', '.join(RULES)}; with settings as in shards(2) "
        "(natural with a client column, else iid)",
        common=True,
    )
    partition_alpha: float | None = setting(
        None, "concentration of partition dirichlet; lower is more skewed (0.3)", above=0
    )
    num_clients: int | None = setting(
        None,
        "number of clients; natural clients and languages have one of their own "
        "(128 for the built-in tasks)",
        low=1,
        common=True,
    )
    max_examples: int = setting(
        _USUAL.max_examples, "maximum rows to train on, chosen at random; 0: all rows", low=0
    )
    heldout_fraction: float = setting(
        _USUAL.heldout_fraction, "share of rows held out, if the data have no held-out split", low=0
    )
    heldout_clients: float = setting(
        _USUAL.heldout_clients,
        "share of clients that never train and are scored apart",
        low=0,
        below=1,
    )
    prompt_column: str | None = setting(None, "column of the prompt (found by common names)")
    response_column: str | None = setting(None, "column of the response (found by common names)")
    context_column: str | None = setting(None, "column of further input (found by common names)")
    messages_column: str | None = setting(None, "column of whole chats (found by common names)")
    label_column: str | None = setting(None, "column of the label (found by common names)")
    client_column: str | None = setting(None, "column of the client (found by common names)")
    system_column: str | None = setting(
        None, "column of the system message (found by common names)"
    )
    history_column: str | None = setting(None, "column of earlier turns (found by common names)")
    tools_column: str | None = setting(None, "column of tools (found by common names)")
    language_column: str | None = setting(
        None, "column of the language, for partition language (found by common names)"
    )
    rejected_column: str | None = setting(
        None, "column of the response that is not preferred, for objective dpo (rejected)"
    )
    response_words: Mapping[str, str] = setting(
        {}, "words that replace labels in responses, such as 0=sad,1=happy"
    )
    labels: tuple[str, ...] = setting(
        (), "all possible answers, for methods that see scores but no weights"
    )
    template: str = setting(
        "auto", "prompt template: chat, plain, auto, or a format string over columns"
    )
    max_length: int = setting(
        0, "maximum tokens in a row; 0: the length of the longest row", low=0, common=True
    )
    pack_length: int = setting(
        0, "tokens in a packed row of several examples; 0: one example per row", low=0
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The parameters that are trained and sent."""

    kind: str = setting(
        "lora",
        "parameters that are trained and sent",
        choices=("lora", "full", "soft_prompt", "text_prompt"),
        flag="adapter",
        common=True,
    )
    init: str = setting(
        "",
        "folder of a PEFT adapter, or of a run, from which training starts (a new adapter)",
        flag="init_adapter",
    )
    rank: int = setting(8, "rank of a LoRA adapter", low=1, flag="lora_rank", common=True)
    alpha: float = setting(
        16.0,
        "alpha of a LoRA adapter, which is scaled by alpha / rank",
        low=0,
        flag="lora_alpha",
    )
    targets: tuple[str, ...] = setting(
        ("all-linear",), "names or patterns of the linear layers with LoRA", flag="lora_targets"
    )
    layers: str = setting(
        ":", "layers with LoRA, first:end from 0, such as 4: or 2:6", flag="lora_layers"
    )
    dropout: float = setting(
        0.0, "dropout of a LoRA adapter's inputs in training", low=0, flag="lora_dropout"
    )
    client_ranks: tuple[int, ...] = setting(
        (), "LoRA ranks of the clients in turn, such as 2,4,8 (all of rank)", low=1
    )
    prompt_length: int = setting(10, "tokens of a soft prompt", low=1)
    prompt_text: str = setting(
        "", "text before every row; with adapter text_prompt, the initial prompt"
    )
    candidates: tuple[str, ...] = setting(
        (), "words that a search may put into a prompt (all words of the vocabulary)"
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss that clients minimise."""

    name: str = setting(
        "sft",
        "what is learned from: responses (sft), preferred pairs (dpo) or rewards (grpo)",
        choices=("sft", "dpo", "grpo"),
        flag="objective",
        common=True,
    )
    dpo_beta: float | None = setting(
        None, "dpo: beta, strength of the pull towards the frozen model (0.1)", above=0
    )
    reward: Any = setting(
        None, "grpo: reward function: exact, head, or package.module:function (exact)"
    )
    group_size: int | None = setting(None, "grpo: answers sampled for each question (8)", low=2)
    answer_length: int | None = setting(
        None, "grpo: maximum tokens of an answer, its end included (the longest response)", low=1
    )
    grpo_clip: float | None = setting(
        None,
        "grpo: clip range of the probability ratio around 1 (0.2)",
        above=0,
        below=1,
    )
    grpo_beta: float | None = setting(
        None, "grpo: beta, strength of the pull towards the frozen model (0)", low=0
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Method:
    """The federated algorithm, its optimizers, and the links and aggregation around it."""

    name: Any = setting(
        "fed_adam_optax",
        "name of an algorithm, ditto(name), or package.module:factory",
        flag="algorithm",
        common=True,
    )
    params: Mapping[str, Any] = setting({}, "hyper-parameters of the algorithm, by argument name")
    baseline: str = setting(
        "none",
        "baseline to train on the same tokens in place of the algorithm",
        choices=("none", "central", "local"),
    )
    client_optimizer: str | None = setting(
        None, "local optimizer (sgd)", choices=("sgd", "momentum", "adamw"), common=True
    )
    client_lr: float | None = setting(
        None, "local step size (depends on the optimizer)", low=0, common=True
    )
    client_schedule: str | None = setting(
        None,
        "schedule of the local step size over rounds (constant)",
        choices=SCHEDULES,
    )
    client_lr_floor: float | None = setting(
        None,
        "last local step size of a cosine or linear schedule, as a share of client_lr (0)",
        low=0,
        high=1,
    )
    weight_decay: float | None = setting(None, "weight decay of the local optimizer (0)", low=0)
    grad_clip: float | None = setting(
        None, "maximum norm of a local gradient; 0: no clipping (1)", low=0
    )
    server_optimizer: str | None = setting(
        None,
        "server optimizer of the mean update (sgd)",
        choices=("sgd", "momentum", "nesterov", "adam"),
    )
    server_lr: float | None = setting(
        None, "server step size (depends on the optimizer or algorithm)", low=0, common=True
    )
    server_schedule: str | None = setting(
        None, "schedule of the server step size over its steps (constant)", choices=SCHEDULES
    )
    server_warmup: int | None = setting(
        None, "server steps over which its step size first grows from 0 (0)", low=0
    )
    client_weight: str | None = setting(
        None,
        "weight of a client in the mean (tokens)",
        choices=("tokens", "examples", "uniform"),
    )
    uplink: Any = setting(
        None, "uplink steps, such as clip(1.0), error_feedback(top_k(0.01), cast(bfloat16))"
    )
    aggregate: Any = setting(
        None, "aggregation rule in place of the mean, such as trimmed_mean(0.2)"
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Poison:
    """Hostile clients, and what they do."""

    attack: Any = setting(
        None,
        "what hostile clients do: sign_flip, scaled(-10), little_is_enough, flip_labels, or "
        "backdoor('trigger', 'target'); two may be joined by a comma (nobody is hostile)",
        flag="poison",
    )
    share: float | None = setting(
        None,
        "share of the clients that are hostile, drawn by seed (0.2)",
        above=0,
        below=1,
        flag="poison_share",
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)
