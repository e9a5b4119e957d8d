"""A target model behind a provider's API: its address and the terms of use."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedjax_post.core.access import Access, spoken
from fedjax_post.disclosure.meter import Meter
from fedjax_post.provider.hosted import Hosted, connect, show_queries
from fedjax_post.provider.journal import Spent, spent
from fedjax_post.provider.terms import Terms
from fedjax_post.simulate import stopping
from fedjax_post.simulate.progress import is_redrawn
from fedjax_post.study.spec import Spec

# field -> the value that it must have for a hosted target
_NEEDS = {"execution.executor": ("host",), "adapter.kind": ("text_prompt", "soft_prompt")}


def fill_defaults(spec: Spec) -> Spec:
    """Returns the experiment with the hosting fields that every hosted target implies."""
    if not is_hosted(spec):
        return spec
    offered = Access.EMBEDDINGS if spec.adapter.kind == "soft_prompt" else Access.LOGITS
    granted = spoken(offered & Access[spec.hosting.access])
    return spec.put({"hosting.inference": "provider", "hosting.access": granted})


def check(spec: Spec) -> None:
    """Checks that fields go together with a hosted target, or that none is configured.

    Raises:
      ValueError: naming the field and the remedy.
    """
    if not is_hosted(spec):
        for name in ("model", "max_queries", "max_cost"):
            if (value := getattr(spec.hosting, name)) is not None:
                raise ValueError(f"hosting.{name}={value} needs `hosting.url`")
        return
    for path, needed in _NEEDS.items():
        name = path.removesuffix(".kind").rpartition(".")[2]
        if (value := spec.at(path)) not in needed:
            raise ValueError(
                f"{name}={value} cannot be used with `hosting.url`; give "
                f"`{name}={' or '.join(needed)}`"
            )
    if spec.adapter.kind == "soft_prompt" and spec.hosting.style != "completions":
        raise ValueError(
            f"style={spec.hosting.style} cannot carry adapter=soft_prompt; give style=completions "
            "at a provider of this project, which reads soft prompts"
        )


def is_hosted(spec: Spec) -> bool:
    """Returns whether the target is queried over a network."""
    return spec.hosting.url is not None


def model_of(
    spec: Spec, tokenizer: Any, *, directory: Path | None, meter: Meter, ask_again: bool = False
) -> Hosted:
    """Returns the hosted target; sends nothing yet.

    Args:
      spec: the experiment.
      tokenizer: that of the clients.
      directory: of the run, for its journal; None while the run is only prepared.
      meter: of the run.
      ask_again: whether to repeat calls that may have been paid for already.

    Raises:
      ImportError: if the extra that it needs is not installed, naming it.
      ValueError, JournalError: for invalid terms or a journal that does not match.
    """
    price = spec.hosting.price or None
    terms = Terms(
        style=spec.hosting.style,
        max_queries=spec.hosting.max_queries,
        max_cost=spec.hosting.max_cost,
        price_prompt=price,
        price_completion=price,
        timeout=spec.hosting.timeout,
        on_failure=spec.hosting.on_failure,
        ask_again=ask_again,
    )
    assert spec.hosting.url is not None  # guaranteed by the caller
    return connect(
        spec.hosting.url,
        spec.hosting.model or spec.model.name,
        tokenizer,
        terms=terms,
        journal=None if directory is None else directory / "journal.jsonl",
        access=Access[spec.hosting.access],
        meter=meter,
        watch=None if directory is None else _watch(spec),
    )


def provider_summary(directory: Path) -> dict[str, Any] | None:
    """Returns the queries and costs recorded in the journal; None without a journal."""
    path = directory / "journal.jsonl"
    return spent(path)._asdict() if path.exists() else None


def _watch(spec: Spec) -> Callable[[Spent], None]:
    """Shows what is spent; stops an interrupted run only once an answer is in the journal."""
    show = show_queries(spec.hosting.max_queries) if is_redrawn(sys.stderr) else None

    def watch(so_far: Spent) -> None:
        if show is not None:
            show(so_far)
        stopping.check()

    return watch
