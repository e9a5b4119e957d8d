"""Sections of an experiment on how it is run: rounds, privacy, hosts, scores and devices.

Fields as in `learning`.
"""

import dataclasses
from typing import Any

from fedjax_post.core.access import LEVELS
from fedjax_post.study.fields import check, replaced, setting


@dataclasses.dataclass(frozen=True)
class Training:
    """How many rounds, who takes part in them, and how much a visit does."""

    rounds: int = setting(60, "rounds in all", low=1, flag="num_rounds", common=True)
    sampling: str = setting(
        "uniform", "how a cohort is drawn", choices=("uniform", "poisson", "full")
    )
    cohort_size: int | None = setting(
        None, "clients in a round, under poisson on average (16, or all)", low=1, common=True
    )
    local_steps: int | None = setting(
        None, "steps of a visit (5, without local_epochs)", low=1, common=True
    )
    local_epochs: int | None = setting(
        None, "passes of a visit over the client's rows", low=1, common=True
    )
    batch_size: int = setting(8, "rows in a client's batch", low=1, common=True)
    buffer_size: int | None = setting(None, "asynchronous: updates before a server step", low=1)
    concurrency: int | None = setting(
        None, "asynchronous: clients at work at once (buffer_size)", low=1
    )
    staleness_exponent: float | None = setting(
        None, "asynchronous: a of the weight's factor (1 + staleness)^-a (0.5)", low=0
    )
    client_speeds: str | None = setting(
        None, "lognormal:<sigma>, or a .npy or .jsonl file of seconds"
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Privacy:
    """Differential privacy of whole clients; off without an epsilon or a noise multiplier."""

    epsilon: float | None = setting(
        None,
        "privacy of clients after all rounds; the noise is calibrated to it",
        above=0,
        flag="dp_epsilon",
    )
    noise_multiplier: float | None = setting(
        None,
        "noise of a round over the clip, in place of epsilon",
        low=0,
        flag="dp_noise_multiplier",
    )
    clip: float | None = setting(
        None, "largest norm of what a client sends, under privacy", above=0, flag="dp_clip"
    )
    delta: float | None = setting(
        None,
        "chance that epsilon may fail with (clients to the power of -1.1)",
        above=0,
        flag="dp_delta",
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Hosting:
    """What the target's host grants and learns, and how a hosted target is asked."""

    access: str = setting(
        "GRADIENTS",
        "what the model is taken to grant; an algorithm that needs more is refused",
        choices=tuple(str(level.name) for level in LEVELS),
    )
    inference: str = setting(
        "client",
        "where the target's inference runs, for algorithms that do not hold its weights",
        choices=("client", "server", "provider"),
    )
    fail_on_disclosure: bool = setting(
        False, "refuse to send private text out of the federation", free=True
    )
    price: float = setting(0.0, "of a million tokens, read or written, at the provider", low=0)
    url: str | None = setting(
        None,
        "ask the target at an OpenAI-compatible API, http://host:port/v1; model: its tokenizer",
        flag="provider_url",
        free=True,
    )
    model: str | None = setting(None, "its name there (that of model)", flag="provider_model")
    style: str = setting(
        "completions",
        "how it is asked; chats for APIs without completions",
        choices=("completions", "chat"),
        flag="provider_style",
    )
    max_queries: int | None = setting(
        None,
        "queries sent in the whole run, evaluation and repeats too; none after them",
        low=1,
        free=True,
    )
    max_cost: float | None = setting(
        None,
        "money of the whole run, at price, or as the provider bills if that is more",
        above=0,
        free=True,
    )
    timeout: float = setting(
        60.0,
        "seconds that a call may take, from the connection to the last byte",
        above=0,
        flag="provider_timeout",
        free=True,
    )
    on_failure: str = setting(
        "stop",
        "where it does not answer: stop, to be resumed, or drop the client from the round",
        choices=("stop", "drop"),
        flag="on_provider_failure",
        free=True,
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What is scored on held-out rows, and how often."""

    every: int = setting(
        5,
        "rounds between points of the learning curve; 0: none",
        low=0,
        flag="eval_every",
        common=True,
        free=True,
    )
    curve_examples: int = setting(
        96, "held-out rows that a point of the curve is computed from", low=1, free=True
    )
    examples: int = setting(
        0, "held-out rows that the table is computed from; 0: all", low=0, flag="eval_examples",
        free=True,
    )  # fmt: skip
    clients: int = setting(
        8, "personal models that are scored, where any are", low=1, flag="eval_clients", free=True
    )
    personal: bool = setting(
        False,
        "score clients' own models too, each on the tasks that its client holds",
        flag="score_personal",
        free=True,
    )
    batch_size: int = setting(
        32, "rows scored side by side", low=1, flag="eval_batch_size", free=True
    )
    exact_match: str = setting(
        "auto",
        "generate answers and compare them; auto: where responses are short",
        choices=("auto", "on", "off"),
        free=True,
    )
    telemetry_clients: int = setting(
        16, "clients that aggregation_error is computed from; 0: no telemetry", low=0, free=True
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Execution:
    """Which devices do the work and in what portions; changes no result beyond rounding."""

    chunk_size: Any = setting(
        None, "clients in one compiled unit, or auto (the cohort, at most 32)", free=True
    )
    executor: str = setting(
        "device", "compiled, or eager and client by client", choices=("device", "host")
    )
    mesh: str | None = setting(
        None, "devices for clients and for the base, such as clients:4,model:2 (one)", free=True
    )
    checkpoint_every: int | None = setting(
        None,
        "rounds between checkpoints (at most a fiftieth of the time)",
        low=1,
        free=True,
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)
