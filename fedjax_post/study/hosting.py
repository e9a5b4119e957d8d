"""A target model behind a provider's API: its address and the terms of use.

A method that has the host fine-tune its model runs at a provider too: at that of `hosting.url`, or
without an address at this project's own, in this process.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedjax_post.core.access import Access, spoken
from fedjax_post.disclosure.meter import Meter
from fedjax_post.hub.load import load_model
from fedjax_post.provider.calls import Provider
from fedjax_post.provider.hosted import Hosted, connect, make_hosted, show_queries
from fedjax_post.provider.inside import PEER, Inside, restore
from fedjax_post.provider.job_requests import MOST
from fedjax_post.provider.journal import Journal, Spent, spent
from fedjax_post.provider.served import make_served
from fedjax_post.provider.service import Provider as Service
from fedjax_post.provider.service import Settings
from fedjax_post.provider.terms import Terms
from fedjax_post.simulate import stopping
from fedjax_post.simulate.progress import is_redrawn
from fedjax_post.study import factories
from fedjax_post.study.spec import Spec

# In the folder of a run: of a provider in this process, and of the calls to any
LOG, JOURNAL = "provider.jsonl", "journal.jsonl"
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
                f"{name}={value} cannot be used with a target at a provider (`hosting.url`, or a "
                f"method that has the target's host fine-tune it); give `{name}="
                f"{' or '.join(needed)}`"
            )
    if spec.adapter.kind == "soft_prompt" and spec.hosting.style != "completions":
        raise ValueError(
            f"style={spec.hosting.style} cannot carry adapter=soft_prompt; give style=completions "
            "at a provider of this project, which reads soft prompts"
        )
    if spec.hosting.url is None:
        _check_job(spec.method.params)


def _check_job(params: Mapping[str, Any]) -> None:
    """Raises ValueError for a job that a provider in this process would refuse after the upload."""
    for name, limited in (("num_epochs", "n_epochs"), ("batch_rows", "batch_size")):
        value, most = params.get(name), MOST[limited]
        if value is not None and value > most:
            raise ValueError(
                f"{name}={value}: a host takes at most {most} (`{limited}` in its format); give "
                "less, or a larger `multiplier`"
            )


def is_hosted(spec: Spec) -> bool:
    """Returns whether the target is at a provider, which may be in this process."""
    return spec.hosting.url is not None or tunes(spec)


def tunes(spec: Spec) -> bool:
    """Returns whether the target's host fine-tunes it in training."""
    return spec.method.baseline == "none" and factories.is_tuned_by_host(spec.method.name)


def granted(spec: Spec) -> Access:
    """Returns what the target grants; whether a provider fine-tunes models is known once asked."""
    access = Access[spec.hosting.access]
    return access | Access.FINETUNE if tunes(spec) else access


def grants(spec: Spec) -> Access | None:
    """Returns what the target's provider grants; None if the target is in this process."""
    return granted(spec) if is_hosted(spec) else None


def address_of(spec: Spec) -> str:
    """Returns where the provider is, for messages."""
    return spec.hosting.url or PEER


def model_of(
    spec: Spec,
    tokenizer: Any,
    *,
    directory: Path | None,
    meter: Meter,
    ask_again: bool = False,
    change_fn: Callable[[Any], Any] | None = None,
) -> Hosted:
    """Returns the hosted target; sends nothing yet.

    Args:
      spec: the experiment.
      tokenizer: that of the clients.
      directory: of the run, for its journal; None while the run is only prepared.
      meter: of the run.
      ask_again: whether to repeat calls that may have been paid for already; those to a provider in
        this process, which nobody pays, always are.
      change_fn: returns the model that a provider in this process serves from the loaded one; what
        it has fine-tuned before keeps its adapter. None: it serves the loaded one.

    Raises:
      ImportError: if the extra that it needs is not installed, naming it.
      ValueError, JournalError: for invalid terms or a journal that does not match.
    """
    inside = None
    if spec.hosting.url is None:
        inside = make_inside(spec, tokenizer, log=_in(directory, LOG), change_fn=change_fn)
    return asked_at(
        spec,
        tokenizer,
        inside,
        journal=_in(directory, JOURNAL),
        meter=meter,
        access=granted(spec),
        ask_again=ask_again,
        watch=None if directory is None else watch(spec),
    )


def make_inside(
    spec: Spec,
    tokenizer: Any,
    *,
    log: Path | None,
    change_fn: Callable[[Any], Any] | None = None,
) -> Inside:
    """Returns a provider in this process, made once it is asked; with a log, as at its end."""
    return Inside(lambda: _serve(spec, tokenizer, _name_of(spec), log, change_fn))


def asked_at(
    spec: Spec,
    tokenizer: Any,
    inside: Inside | None,
    *,
    journal: Path | None,
    meter: Meter,
    access: Access,
    ask_again: bool,
    watch: Callable[[Spent], None] | None,
) -> Hosted:
    """Returns the target at a provider, on the terms of an experiment; sends nothing yet.

    Args:
      spec: the experiment.
      tokenizer: that of the clients.
      inside: the provider; None for that at `hosting.url`.
      journal: file of the calls; None keeps them in memory.
      meter: counts what calls carry.
      access: that the target grants.
      ask_again: as for `model_of`.
      watch: called after each answered call.

    Raises:
      ImportError, ValueError, JournalError: as `model_of`.
    """
    price = spec.hosting.price or None
    terms = Terms(
        style=spec.hosting.style,
        max_queries=spec.hosting.max_queries,
        max_cost=spec.hosting.max_cost,
        price_prompt=price,
        price_completion=price,
        price_training=price,
        tuning_seed=spec.seed,
        timeout=spec.hosting.timeout,
        on_failure=spec.hosting.on_failure,
        ask_again=ask_again,
    )
    given: dict[str, Any] = {"terms": terms, "access": access, "meter": meter, "watch": watch}
    if inside is None:
        url = spec.hosting.url
        assert url is not None  # a provider in this process is given as `inside`
        return connect(url, _name_of(spec), tokenizer, journal=journal, **given)
    provider = Provider(PEER, _name_of(spec), "", inside.post)
    return make_hosted(provider, tokenizer, journal=Journal(journal, ask_again=True), **given)


def _name_of(spec: Spec) -> str:
    """Returns the name of the target at its provider."""
    return spec.hosting.model or spec.model.name


def _in(directory: Path | None, name: str) -> Path | None:
    return None if directory is None else directory / name


def _serve(
    spec: Spec, tokenizer: Any, name: str, log: Path | None, change_fn: Callable[[Any], Any] | None
) -> Service:
    """Returns the provider in this process; with a log, as it was at its end."""
    price = spec.hosting.price
    settings = Settings(price_prompt=price, price_completion=price, price_training=price)
    model = load_model(spec.model.name, dtype=spec.model.dtype)
    service = Service(make_served(name, model, tokenizer), settings)
    if log is not None:
        restore(service, log)
    if change_fn is not None:
        service.replace_weights(change_fn)
    return service


def provider_summary(directory: Path) -> dict[str, Any] | None:
    """Returns the queries and costs recorded in the journal; None without a journal."""
    path = directory / JOURNAL
    return spent(path)._asdict() if path.exists() else None


def watch(spec: Spec) -> Callable[[Spent], None]:
    """Shows what is spent; stops an interrupted run only once an answer is in the journal."""
    show = show_queries(spec.hosting.max_queries) if is_redrawn(sys.stderr) else None

    def note(so_far: Spent) -> None:
        if show is not None:
            show(so_far)
        stopping.check()

    return note
