"""The meter against a provider's own log: a run of each method that asks, counted twice.

    python -c "from fedjax_post.study import reconciled; print(reconciled.table())"

The meter counts what each call carries before it is sent. The log is read without the run: it is
searched for the complete text of each private row. The provider refuses one client (403), and takes
one request at a time (429), after which a call is sent again: both accounts count what arrived,
answered or not. It needs the extra [hosted].
"""

import itertools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.data.builtin.corpus import build_tokenizer
from fedjax_post.disclosure.arrivals import Private, arrivals, index_of, offsets_of
from fedjax_post.provider.log import read_texts
from fedjax_post.provider.served import load_served
from fedjax_post.provider.service import Provider, Settings
from fedjax_post.provider.serving import serve
from fedjax_post.study.carry_out import carry_out
from fedjax_post.study.job import prepare
from fedjax_post.study.spec import Spec

_REFUSED = "client-1"
# At most one request in 20 ms of a clock that ticks once a request, so that the machine's speed
# decides nothing: each call but the first is refused once, and sent again.
_RATE, _TICK = (1, 0.02), 0.012
_WORDS = ("cat", "dog", "hen", "pig", "cow")
_TEXT = {"adapter.kind": "text_prompt", "adapter.prompt_text": "name the kind of these words:"}
_SOFT = {"adapter.kind": "soft_prompt", "adapter.prompt_length": 2}
_CMA = {"method.params": {"search_dim": 2, "generations": 1, "num_points": 2}}
_EDITS = {
    "adapter.candidates": ("name", "kind", "these", "words"),
    "method.params": {"num_edits": 2},
}
# method -> its own fields, small enough that its run takes seconds
ASKING: Mapping[str, Mapping[str, Any]] = {
    "manual_prompt": _TEXT,
    "in_context": _TEXT
    | {"method.params": {"num_shots": 2, "num_sets": 2, "shots_length": 12}}
    | {"scoring.personal": True},
    "host_tuning": _TEXT | {"method.params": {"num_epochs": 1}},
    "synthetic_tuning": _TEXT | {"method.params": {"num_epochs": 1, "num_synthetic": 9}},
    "fed_dtpt": _TEXT | _EDITS,
    "fed_prompt_search": _TEXT | _EDITS,
    "bdpl": _TEXT | _EDITS | {"method.params": {"num_samples": 2}},
    "fed_bpt": _SOFT | _CMA,
    "fed_avg_bbt": _SOFT | _CMA,
    "fed_bbpt": _SOFT | {"method.params": {"generator_rank": 2, "num_directions": 1}},
}


class Account(NamedTuple):
    """What a provider was shown, by one of the two accounts."""

    queries: int
    private_tokens: int
    labels: int


class Reconciled(NamedTuple):
    """A run at a provider: both accounts, and what the provider refused."""

    meter: Account
    log: Account
    num_refused: int  # requests of a client that is shut out, answered 403
    num_retried: int  # requests beyond the rate, answered 429
    summary: Mapping[str, Any]

    @property
    def told(self) -> str:
        """Both accounts and the refusals, as cells of a table."""
        pairs = zip(self.meter, self.log, strict=True)
        both = [f"{metered:,}, {logged:,}" for metered, logged in pairs]
        return " | ".join([*both, str(self.num_refused), str(self.num_retried)])


def spec_of(method: str, model: str, rows: Path) -> Spec:
    """Returns a short run of a method that asks: two rounds of two clients, and evaluation.

    Args:
      method: a key of `ASKING`.
      model: a name or folder, with the built-in tokenizer.
      rows: a file of JSON lines with instruction, response and client.
    """
    return Spec().put(
        {
            "method.name": method,
            "model.name": model,
            "data.source": str(rows),
            "data.template": "{instruction}\\n",
            "data.labels": _WORDS,
            "data.heldout_fraction": 0.25,
            "training.batch_size": 2,
            "training.rounds": 2,
            "training.cohort_size": 2,
            "training.local_steps": 2,
            "scoring.every": 1,
            "scoring.batch_size": 4,
            "execution.executor": "host",
            "hosting.on_failure": "drop",
            **ASKING[method],
        }
    )


def reconcile(spec: Spec, directory: Path) -> Reconciled:
    """Returns both accounts of a run at a provider of this process, which refuses and delays.

    Args:
      spec: as returned by `spec_of`.
      directory: a new folder, for the run and the provider's log.

    Raises:
      ImportError: without the extra [hosted].
    """
    log = Path(directory) / "provider.jsonl"
    log.parent.mkdir(parents=True)
    served = load_served(spec.model.name)._replace(name="served")
    terms = Settings(log=log, refused_clients=(_REFUSED,), rate_limit=_RATE)
    ticks = itertools.count()
    with serve(Provider(served, terms, clock_fn=lambda: _TICK * next(ticks))) as url:
        hosted = spec.put({"hosting.url": url, "hosting.model": "served"})
        job = prepare(hosted, directory=Path(directory) / "run")
        summary = carry_out(job)
    ledger = _lines(job.directory / "disclosure.jsonl")
    meter = [sum(line[name] for line in ledger if line["outside"]) for name in Account._fields]
    answers = [line["status"] for line in _lines(log) if line["event"] == "settled"]
    found = counted_in(log, Path(spec.data.source))
    return Reconciled(Account(*meter), found, answers.count(403), answers.count(429), summary)


def counted_in(log: Path, rows: Path) -> Account:
    """Returns what a provider's log shows of the rows of a file, by its content alone."""
    private = [Private(row["instruction"], row["response"], "\n ") for row in _lines(rows)]
    offsets_fn = offsets_of(build_tokenizer())
    found = arrivals(read_texts(log), index_of(private), offsets_fn=offsets_fn)
    return Account(found.queries, found.private_tokens, found.labels)


def write_rows(path: Path) -> None:
    """Writes four clients of six rows, of which no two can be crossed."""
    rows = [
        {"instruction": f"say {_WORDS[i % 5]}", "response": _WORDS[(i + k) % 5], "client": k}
        for k in range(4)
        for i in range(6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def table(model: str = "builtin-instruct") -> str:
    """Returns both accounts of all methods that ask, as a Markdown table.

    Args:
      model: that the provider serves; a name or folder, with the built-in tokenizer.
    """
    lines = [
        "| method | queries, meter and log | private tokens, meter and log | labels, meter and log "
        "| refused (403) | sent again (429) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as where:
        rows = Path(where) / "rows.jsonl"
        write_rows(rows)
        for method in ASKING:
            found = reconcile(spec_of(method, model, rows), Path(where) / method)
            lines.append(f"| {method} | {found.told} |")
    return "\n".join(lines)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
