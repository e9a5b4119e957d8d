"""Sections of an experiment on what is learned: the model, the rows, the adapter, the method.

A field whose default is None depends on others, as its help says in parentheses. A field marked
`free` changes how a run is carried out, not what comes of it, and may differ when it is resumed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fedjax_post.data.population import PARTITIONS, Population
from fedjax_post.data.source import BUILTIN as TASKS
from fedjax_post.hub.files import BUILTIN as MODELS
from fedjax_post.model.codes import KINDS
from fedjax_post.study.fields import check, replaced, setting

_USUAL = Population()


@dataclasses.dataclass(frozen=True)
class Model:
    """The open model that is adapted, and models that help to adapt it."""

    name: Any = setting(
        "builtin",
        f"{', '.join(MODELS)}, a Hugging Face folder, or a hub name",
        flag="model",
        common=True,
    )
    dtype: str = setting(
        "float32", "of base weights and matrix products", choices=("float32", "bfloat16")
    )
    quantize: str = setting(
        "none", "codes for the frozen layers, as in QLoRA", choices=("none", *KINDS)
    )
    remat: bool | None = setting(
        None,
        "recompute layers in the backward pass: less memory, more time (with quantize only)",
        free=True,
    )
    end_token: str | None = setting(
        None, "token that ends a response, where a base never saw its tokenizer's (the tokenizer's)"
    )
    proxy: str | None = setting(
        None,
        "a small open model of the same vocabulary, for methods that steer the target by one",
        flag="proxy_model",
    )
    embeddings: str | None = setting(
        None, "a small open model of the same vocabulary, by whose embeddings tokens are alike"
    )
    emulator_first: int | None = setting(
        None, "layers at the front that a stand-in of the target keeps (1)", low=0
    )
    emulator_last: int | None = setting(
        None, "layers at the end that a stand-in of the target keeps (1)", low=1
    )
    emulator_keep_every: int | None = setting(
        None, "of the layers between, a stand-in keeps one in so many (2)", low=1
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Data:
    """The rows, what of them is learned, and who holds them."""

    source: Any = setting(
        "builtin",
        f"{', '.join(TASKS)}, a file, a folder with a file per client, or a hub name",
        flag="dataset",
        common=True,
    )
    split: str | None = setting(None, "the split to train on, where there are several (train)")
    partition: str | None = setting(
        _USUAL.partition,
        "who holds what (natural where there is a column of clients, else iid)",
        choices=PARTITIONS,
        common=True,
    )
    partition_alpha: float = setting(_USUAL.alpha, "of dirichlet; less is more skew", above=0)
    num_clients: int | None = setting(
        None, "clients of iid, dirichlet and the built-in tasks (128)", low=1, common=True
    )
    heldout_fraction: float = setting(
        _USUAL.heldout_fraction, "share of rows set aside where the data hold none out", low=0
    )
    prompt_column: str | None = setting(None, "column of the prompt (by its usual names)")
    response_column: str | None = setting(None, "column of the response (by its usual names)")
    context_column: str | None = setting(None, "column of further input (by its usual names)")
    messages_column: str | None = setting(None, "column of whole chats (by its usual names)")
    label_column: str | None = setting(None, "column of the label (by its usual names)")
    client_column: str | None = setting(None, "column of the client (by its usual names)")
    system_column: str | None = setting(None, "column of the system's turn (by its usual names)")
    history_column: str | None = setting(None, "column of earlier turns (by its usual names)")
    tools_column: str | None = setting(None, "column of tools (by its usual names)")
    rejected_column: str | None = setting(
        None, "with objective dpo, column of what is not preferred (rejected)"
    )
    response_words: Mapping[str, str] = setting(
        {}, "what labels are called in responses, such as 0=sad,1=happy"
    )
    labels: tuple[str, ...] = setting(
        (), "the answers that there are, for methods that see scores but no weights"
    )
    template: str = setting("auto", "chat, plain, auto, or a format string over columns")
    max_length: int = setting(0, "tokens of a row; 0: the longest", low=0, common=True)
    pack_length: int = setting(
        0, "tokens of a row that several examples share; 0: one example a row", low=0
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What is trained and sent."""

    kind: str = setting(
        "lora",
        "what is trained and sent",
        choices=("lora", "full", "soft_prompt", "text_prompt"),
        flag="adapter",
        common=True,
    )
    init: str = setting(
        "",
        "the folder of a PEFT adapter or of a run whose adapter training starts from (a new one)",
        flag="init_adapter",
    )
    rank: int = setting(8, "components of a LoRA adapter", low=1, flag="lora_rank", common=True)
    alpha: float = setting(
        16.0, "a LoRA adapter's factor is alpha over rank", low=0, flag="lora_alpha"
    )
    targets: tuple[str, ...] = setting(
        ("all-linear",), "names or patterns of the linear layers with LoRA", flag="lora_targets"
    )
    layers: str = setting(
        ":", "layers with LoRA, first:end from 0, such as 4: or 2:6", flag="lora_layers"
    )
    dropout: float = setting(
        0.0, "share of a LoRA adapter's inputs left out in training", low=0, flag="lora_dropout"
    )
    client_ranks: tuple[int, ...] = setting(
        (), "LoRA ranks of the clients in turn, such as 2,4,8 (all of rank)", low=1
    )
    prompt_length: int = setting(10, "tokens of a soft prompt", low=1)
    prompt_text: str = setting(
        "", "text before every row; what is trained where a text prompt is the adapter"
    )
    candidates: tuple[str, ...] = setting(
        (), "words that a search may put into a prompt (every word of the vocabulary)"
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Objective:
    """What clients learn from."""

    name: str = setting(
        "sft",
        "what is learned: responses (sft), which of two is preferred (dpo), rewards (grpo)",
        choices=("sft", "dpo", "grpo"),
        flag="objective",
        common=True,
    )
    dpo_beta: float | None = setting(
        None, "dpo: strength of the pull to the frozen model (0.1)", above=0
    )
    reward: Any = setting(None, "grpo: exact, head, or package.module:function (exact)")
    group_size: int | None = setting(
        None, "grpo: answers to a question that are compared (8)", low=2
    )
    answer_length: int | None = setting(
        None, "grpo: tokens of an answer, its end included (those of the longest response)", low=1
    )
    grpo_clip: float | None = setting(
        None,
        "grpo: how far a token's ratio may go before it counts no more (0.2)",
        above=0,
        below=1,
    )
    grpo_beta: float | None = setting(
        None, "grpo: strength of the pull to the frozen model (0)", low=0
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Method:
    """The federated algorithm, its optimizers, and what stands around it."""

    name: Any = setting(
        "fed_adam_optax",
        "an algorithm's name, ditto(a name), or package.module:factory",
        flag="algorithm",
        common=True,
    )
    params: Mapping[str, Any] = setting({}, "hyper-parameters of the algorithm, by its arguments")
    baseline: str = setting(
        "none",
        "a reference trained on the same tokens in the algorithm's place",
        choices=("none", "central", "local"),
    )
    client_optimizer: str | None = setting(
        None, "local optimizer (sgd)", choices=("sgd", "momentum", "adamw"), common=True
    )
    client_lr: float | None = setting(None, "local step size (by optimizer)", low=0, common=True)
    client_schedule: str | None = setting(
        None,
        "of the local step size, by round (constant)",
        choices=("constant", "cosine", "linear"),
    )
    weight_decay: float | None = setting(None, "of the local optimizer (0)", low=0)
    grad_clip: float | None = setting(None, "largest norm of a local gradient; 0: any (1)", low=0)
    server_optimizer: str | None = setting(
        None, "of the mean update (sgd)", choices=("sgd", "momentum", "nesterov", "adam")
    )
    server_lr: float | None = setting(
        None, "server step size (by optimizer or algorithm)", low=0, common=True
    )
    client_weight: str | None = setting(
        None, "what a client counts by (tokens)", choices=("tokens", "examples", "uniform")
    )
    uplink: Any = setting(
        None, "links to the server, such as clip(1.0), error_feedback(top_k(0.01), cast(bfloat16))"
    )
    aggregate: Any = setting(None, "a rule in place of the mean, such as trimmed_mean(0.2)")

    replace = replaced

    def __post_init__(self) -> None:
        check(self)
