"""A target behind a provider's API: where it is asked, and on what terms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedjax_post.core.access import Access, spoken
from fedjax_post.provider.hosted import Hosted, connect, show_queries
from fedjax_post.provider.journal import Spent, spent
from fedjax_post.provider.terms import Terms
from fedjax_post.simulate import stopping
from fedjax_post.study.spec import Spec

# what asking a provider takes: field -> the value it must have
_NEEDS = {"execution.executor": "host", "adapter.kind": "text_prompt"}


def filled(spec: Spec) -> Spec:
    """Returns the experiment with what holds of any target that a provider is asked for."""
    if not is_hosted(spec):
        return spec
    granted = spoken(Access.LOGITS & Access[spec.hosting.access])
    return spec.put({"hosting.inference": "provider", "hosting.access": granted})


def check(spec: Spec) -> None:
    """Refuses what a provider cannot be asked.

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
        if (value := spec.at(path)) != needed:
            raise ValueError(
                f"{name}={value} cannot be used with `hosting.url`; give `{name}={needed}`"
            )


def is_hosted(spec: Spec) -> bool:
    """Returns whether the target is asked over a network."""
    return spec.hosting.url is not None


def model_of(
    spec: Spec, tokenizer: Any, *, directory: Path | None, ask_again: bool = False
) -> Hosted:
    """Returns the target at its provider; nothing is sent yet.

    Args:
      spec: the experiment.
      tokenizer: of this side.
      directory: of the run, for its journal; None while the run is only prepared.
      ask_again: whether calls that may have been paid are sent again.

    Raises:
      ImportError: without the extra, naming it.
      ValueError, JournalError: for terms or a journal that will not do.
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
    )
    assert spec.hosting.url is not None  # whoever asks has seen to it
    return connect(
        spec.hosting.url,
        spec.hosting.model or spec.model.name,
        tokenizer,
        terms=terms,
        journal=None if directory is None else directory / "journal.jsonl",
        ask_again=ask_again,
        access=Access[spec.hosting.access],
        watch=None if directory is None else _watch(spec),
    )


def told(directory: Path) -> dict[str, Any] | None:
    """Returns what the provider was asked for and billed, by the journal; None without one."""
    path = directory / "journal.jsonl"
    return spent(path)._asdict() if path.exists() else None


def _watch(spec: Spec) -> Callable[[Spent], None]:
    """Shows what is spent, and ends a run that was interrupted once an answer is in the journal."""
    show = show_queries(spec.hosting.max_queries)

    def watch(so_far: Spent) -> None:
        show(so_far)
        stopping.check()

    return watch
