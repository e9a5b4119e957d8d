"""From flags to a target behind a provider's API: where it is asked, and on what terms."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from fedjax_post.core.access import Access
from fedjax_post.provider.hosted import Hosted, connect, show_queries
from fedjax_post.provider.journal import spent
from fedjax_post.provider.terms import Terms

_NEEDS = {"executor": "host", "adapter": "text_prompt"}


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    give = {"flag_values": values}
    url = "ask the target at an OpenAI-compatible API, http://host:port/v1; --model: its tokenizer"
    flags.DEFINE_string("provider_url", None, url, **give)
    flags.DEFINE_string("provider_model", None, "its name there (--model)", **give)
    styles = "how it is asked; chats for APIs without completions"
    flags.DEFINE_enum("provider_style", "completions", ["completions", "chat"], styles, **give)
    most = "queries sent in the whole run, evaluation and repeats too; none after them"
    flags.DEFINE_integer("max_queries", None, most, lower_bound=1, **give)
    cost = "money of the whole run, at --price, or as the provider bills if that is more"
    flags.DEFINE_float("max_cost", None, cost, lower_bound=0.0, **give)
    patience = "seconds that a call may take, from the connection to the last byte"
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


def check_typed(typed: Sequence[str], used: Sequence[str]) -> None:
    """Refuses an address that a file names: a host gets the key when it is typed, and then only.

    Args:
      typed: words of a command line, flag files among them unread.
      used: flags that count, from wherever they came.

    Raises:
      ValueError: with the flag to type.
    """
    for url in set(_urls(used)) - set(_urls(typed)):
        raise ValueError(
            f"--provider_url={url} comes from a file, and private text and OPENAI_API_KEY would "
            f"go there; if you trust it, type --provider_url={shlex.quote(url)} on this command "
            "line"
        )


def _urls(words: Sequence[str]) -> Iterator[str]:
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in ("--provider_url", "-provider_url"):
            yield value if equals else "".join(words[i + 1 : i + 2])


def given(options: flags.FlagValues) -> list[str]:
    """Returns what has to be typed again where a run goes on."""
    url = options.provider_url
    return [] if url is None else [f"--provider_url={url}"]


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
        watch=None if directory is None else show_queries(options.max_queries),
    )


def told(directory: Path) -> dict[str, Any] | None:
    """Returns what the provider was asked for and billed, by the journal; None without one."""
    path = directory / "journal.jsonl"
    return spent(path)._asdict() if path.exists() else None
