"""Sections of an experiment on how it is run: rounds, privacy, hosting, scores and devices.

See `learning` for the meaning of defaults of None and of `free`.
"""

import dataclasses
from typing import Any

from fedjax_post.core.access import LEVELS
from fedjax_post.study.fields import check, replaced, setting


@dataclasses.dataclass(frozen=True)
class Training:
    """Number of rounds, the clients that take part, and their local work."""

    rounds: int = setting(60, "total number of rounds", low=1, flag="num_rounds", common=True)
    sampling: str = setting(
        "uniform",
        "how the clients of a round are drawn",
        choices=("uniform", "poisson", "cyclic", "full"),
    )
    cohort_size: int | None = setting(
        None,
        "clients in a round, with poisson or cyclic on average (16, or all if fewer)",
        low=1,
        common=True,
    )
    local_steps: int | None = setting(
        None, "local steps of a client in a round (5, if no local_epochs)", low=1, common=True
    )
    local_epochs: int | None = setting(
        None, "local epochs of a client in a round, in place of local_steps", low=1, common=True
    )
    batch_size: int = setting(8, "rows in a client's batch", low=1, common=True)
    microbatch: int | None = setting(
        None,
        "rows of a batch computed at once, for less memory; divides batch_size (all)",
        low=1,
    )
    buffer_size: int | None = setting(
        None, "asynchronous: number of updates in a server step", low=1
    )
    concurrency: int | None = setting(
        None, "asynchronous: number of clients that train at the same time (buffer_size)", low=1
    )
    staleness_exponent: float | None = setting(
        None, "asynchronous: a in the factor (1 + staleness)^-a of a weight (0.5)", low=0
    )
    client_speeds: str | None = setting(
        None, "seconds per client visit: lognormal:<sigma>, or a .npy or .jsonl file"
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Privacy:
    """Differential privacy of clients or rows, off without a noise, and secure sums of uploads."""

    epsilon: float | None = setting(
        None,
        "epsilon of the privacy after all rounds; sets the noise",
        above=0,
        flag="dp_epsilon",
    )
    noise_multiplier: float | None = setting(
        None,
        "noise of a round as a multiple of the clip norm, in place of epsilon",
        low=0,
        flag="dp_noise_multiplier",
    )
    clip: float | None = setting(
        None,
        "maximum norm of a client's message under privacy, or of a row's gradient",
        above=0,
        flag="dp_clip",
    )
    clip_quantile: float | None = setting(
        None,
        "quantile of clients' norms that the clip norm follows, from clip on (it stays)",
        above=0,
        below=1,
        flag="dp_clip_quantile",
    )
    delta: float | None = setting(
        None,
        "delta: probability with which epsilon may not hold (number of clients ^ -1.1)",
        above=0,
        flag="dp_delta",
    )
    noise_at: str = setting(
        "server",
        "who adds noise, and to what: the server to a mean of clients, each client to its upload, "
        "or each client to the gradients of its local steps, which hides single rows",
        choices=("server", "client", "step"),
        flag="dp_noise_at",
    )
    bands: int | None = setting(
        None,
        "bands of noise that is correlated over rounds, as DP-FTRL has it; needs sampling cyclic, "
        "whose groups are as many (independent noise)",
        low=1,
        flag="dp_bands",
    )
    noise_cohort: int | None = setting(
        None,
        "simulate the noise of a cohort of this size in the run's smaller one, which is then less "
        "private than what it simulates (the run's own)",
        low=1,
        flag="dp_noise_cohort",
    )
    noise_population: int | None = setting(
        None,
        "number of clients from which the simulated cohort is drawn (as the run's own share)",
        low=1,
        flag="dp_noise_population",
    )
    canaries: int | None = setting(
        None,
        "clients that audit the privacy: half of them, by coin, send a random direction of the "
        "clip norm, and the others nothing; summaries then bound epsilon from below (none)",
        low=16,
        flag="dp_canaries",
    )
    secure: bool = setting(
        False,
        "clients mask their uploads, so that the server can read only their sum; under privacy "
        "they add the noise as well",
        flag="secure_sum",
    )
    secure_threshold: float | None = setting(
        None,
        "least share of a cohort that must stay for a secure sum to be opened (2/3)",
        above=0,
        high=1,
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Hosting:
    """Access to the target model, where it runs, and how a provider is queried."""

    access: str = setting(
        "GRADIENTS",
        "access to the target; algorithms that need more are refused",
        choices=tuple(str(level.name) for level in LEVELS),
    )
    inference: str = setting(
        "client",
        "where the target runs, for algorithms that do not hold its weights",
        choices=("client", "server", "provider"),
    )
    fail_on_disclosure: bool = setting(
        False, "refuse runs that send private text out of the federation", free=True
    )
    price: float = setting(0.0, "provider's price of a million tokens", low=0)
    url: str | None = setting(
        None,
        "OpenAI-compatible API that serves the target, as in http://host:port/v1",
        flag="provider_url",
        free=True,
    )
    model: str | None = setting(
        None, "name of the target at the provider (that of model)", flag="provider_model"
    )
    style: str = setting(
        "completions",
        "kind of API calls; chat is for providers without completions",
        choices=("completions", "chat"),
        flag="provider_style",
    )
    max_queries: int | None = setting(
        None,
        "maximum queries of the whole run, evaluation and repeats included",
        low=1,
        free=True,
    )
    max_cost: float | None = setting(
        None,
        "maximum cost of the whole run, at price or as billed, whichever is more",
        above=0,
        free=True,
    )
    timeout: float = setting(
        60.0,
        "maximum seconds of a call, from the connection to the last byte",
        above=0,
        flag="provider_timeout",
        free=True,
    )
    on_failure: str = setting(
        "stop",
        "if the provider does not answer: stop the run, or drop the client from the round",
        choices=("stop", "drop"),
        flag="on_provider_failure",
        free=True,
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What is scored on held-out rows, and when."""

    every: int = setting(
        5,
        "rounds between points of the learning curve; 0: no curve",
        low=0,
        flag="eval_every",
        common=True,
        free=True,
    )
    curve_examples: int = setting(
        96, "held-out rows scored for each point of the learning curve", low=1, free=True
    )
    examples: int = setting(
        0,
        "held-out rows scored before and after training; 0: all",
        low=0,
        flag="eval_examples",
        free=True,
    )
    patience: int | None = setting(
        None,
        "points of the learning curve without a better score after which training stops (never)",
        low=1,
    )
    patience_score: str = setting(
        "loss",
        "held-out score that patience watches",
        choices=("loss", "exact_match", "accuracy", "preference"),
    )
    clients: int | None = setting(
        None,
        "clients in the tables of scores; 0: all (all that have held-out rows, 8 personal models)",
        low=0,
        flag="eval_clients",
        free=True,
    )
    personal: bool = setting(
        False,
        "also score personal models, each on the held-out rows of its client",
        flag="score_personal",
        free=True,
    )
    batch_size: int = setting(
        32, "rows in a batch of evaluation", low=1, flag="eval_batch_size", free=True
    )
    exact_match: str = setting(
        "auto",
        "generate answers and compare them; auto: only if responses are short",
        choices=("auto", "on", "off"),
        free=True,
    )
    telemetry_clients: int | None = setting(
        None,
        "clients used to compute aggregation_error; 0: no telemetry (16, or 0 with secure_sum)",
        low=0,
        free=True,
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class Execution:
    """Devices and the division of work; changes results only by rounding."""

    chunk_size: Any = setting(
        None,
        "clients computed together in one program, or auto (the cohort, at most 32)",
        free=True,
    )
    executor: str = setting(
        "device",
        "device: compiled; host: not compiled, one client at a time",
        choices=("device", "host"),
    )
    mesh: str | None = setting(
        None, "devices by axis, such as clients:4,model:2 (one device)", free=True
    )
    watch: tuple[str, ...] = setting(
        (),
        "where records are shown as well, beside the run's folder",
        choices=("tensorboard", "wandb", "mlflow"),
        free=True,
    )
    checkpoint_every: int | None = setting(
        None,
        "rounds between checkpoints (saving takes at most a fiftieth of the time)",
        low=1,
        free=True,
    )
    record_wire: str | None = setting(
        None,
        "rounds whose messages are recorded for attacks, first:end from 0, such as 0:1 (none)",
        free=True,
    )
    record_wire_clients: tuple[int, ...] = setting(
        (), "ids of the clients whose uploads are recorded (all of the round)", low=0, free=True
    )

    replace = replaced

    def __post_init__(self) -> None:
        check(self)
