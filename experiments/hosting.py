"""From flags to a target behind a provider's API: where it is asked, and on what terms."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from fedjax_post.core.access import Access
from fedjax_post.openness.calls import Terms
from fedjax_post.openness.hosted import Hosted, connect, show_queries
from fedjax_post.openness.journal import Spent, spent
from fedjax_post.simulate import stopping

_NEEDS = {"executor": "host", "adapter": "text_prompt"}


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    give = {"flag_values": values}
    url = "ask the target at an OpenAI-compatible API, http://host:port/v1; --model: its tokenizer"
    flags.DEFINE_string("provider_url", None, url, **give)
    flags.DEFINE_string("provider_model", None, "its name there (--model)", **give)
    styles = "how it is asked; chats for APIs without completions"
    flags.DEFINE_enum("provider_style", "completions", ["completions", "chat"], styles, **give)
    most = "queries of the whole run, evaluation too; none after them"
    flags.DEFINE_integer("max_queries", None, most, lower_bound=1, **give)
    cost = "money of the whole run, at --price or as the provider bills"
    flags.DEFINE_float("max_cost", None, cost, lower_bound=0.0, **give)
    patience = "seconds that an answer may take"
    flags.DEFINE_float("provider_timeout", 60.0, patience, lower_bound=0.001, **give)
    fails = "where it does not answer: stop, to be resumed, or drop the client from the round"
    flags.DEFINE_enum("on_provider_failure", "stop", ["stop", "drop"], fails, **give)
    twice = "with --resume: send calls again that may have been paid already"
    flags.DEFINE_bool("ask_again", False, twice, **give)


def check(options: flags.FlagValues) -> None:
    """Fills in what asking a provider takes, and refuses what cannot be asked.

    Raises:
      ValueError: naming the flag and the remedy.
    """
    if not is_hosted(options):
        for name in ("provider_model", "max_queries", "max_cost"):
            if options[name].value is not None:
                raise ValueError(f"--{name}={options[name].value} needs --provider_url")
        return
    for name, needed in _NEEDS.items():
        if options[name].value != needed:
            raise ValueError(
                f"--{name}={options[name].value} cannot be used with --provider_url; "
                f"give --{name}={needed}"
            )
    options.inference = "provider"
    options.access = min(Access.LOGITS, Access[options.access]).name


def is_hosted(options: flags.FlagValues) -> bool:
    """Returns whether the target is asked over a network."""
    return options.provider_url is not None


def model_of(options: flags.FlagValues, tokenizer: Any, *, directory: Path | None) -> Hosted:
    """Returns the target at its provider; nothing is sent yet.

    Args:
      options: parsed flags.
      tokenizer: of this side.
      directory: of the run, for its journal; None while the run is only prepared.

    Raises:
      ImportError: without the extra, naming it.
      ValueError, JournalError: for terms or a journal that will not do.
    """
    price = options.price or None
    terms = Terms(
        style=options.provider_style,
        max_queries=options.max_queries,
        max_cost=options.max_cost,
        price_prompt=price,
        price_completion=price,
        timeout=options.provider_timeout,
        on_failure=options.on_provider_failure,
    )
    return connect(
        options.provider_url,
        options.provider_model or options.model,
        tokenizer,
        terms=terms,
        journal=None if directory is None else directory / "journal.jsonl",
        ask_again=options.ask_again,
        access=Access[options.access],
        watch=None if directory is None else _watch(options),
    )


def _watch(options: flags.FlagValues) -> Callable[[Spent], None]:
    """Shows what is spent, and ends a run that was interrupted once an answer is in the journal."""
    show = show_queries(options.max_queries)

    def watch(so_far: Spent) -> None:
        show(so_far)
        stopping.check()

    return watch


def told(directory: Path) -> dict[str, Any] | None:
    """Returns what the provider was asked for and billed, by the journal; None without one."""
    path = directory / "journal.jsonl"
    return spent(path)._asdict() if path.exists() else None
