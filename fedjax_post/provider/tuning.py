"""The client side of fine-tuning: uploads rows, starts a job and waits for its model.

An upload and the start of a job are calls in the journal: they are recorded with what they carry
before they are sent, and a resumed run repeats neither. In the journal the reply to each row is the
id of its file, and the reply to a job is its id. Waiting costs nothing and is not recorded.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from fedjax_post.disclosure.meter import SERVER, Carried
from fedjax_post.provider import forms
from fedjax_post.provider.calls import JSON, Caller, Errand, ProviderError
from fedjax_post.provider.codec import encode_after, encode_prompt
from fedjax_post.provider.job_requests import FILES
from fedjax_post.provider.journal import UPLOAD, digest
from fedjax_post.provider.replies import Bill, MalformedError, Reply
from fedjax_post.provider.terms import Terms
from fedjax_post.provider.training import Schedule
from fedjax_post.provider.uploads import PURPOSE

_NO_SERVICE = (
    "it does not fine-tune models; give the `url` of a provider that does, or use a method that "
    "needs TEXT alone"
)
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 5.0  # seconds between two looks at a job
_SPACING = 30.0  # seconds between two lines on a job


def upload(
    caller: Caller,
    rows: Sequence[tuple[str, str]],
    place: tuple[int, int],
    call: int,
    carries: Carried,
) -> str:
    """Returns the id of a file of rows, from the journal if it was uploaded before.

    Args:
      caller: of the provider.
      rows: questions and answers, at least one.
      place: round and client.
      call: number of the call in that visit.
      carries: by the meter.

    Raises:
      ProviderError, BudgetError, DisclosureError, JournalError: as `Caller.ask`.
    """
    chat = caller.terms.style == "chat"
    content = b"".join(json.dumps(_row(*row, chat=chat)).encode() + b"\n" for row in rows)

    def write(user: str | None) -> tuple[str, bytes, str]:
        file = forms.Field(content, f"{user or 'rows'}.jsonl")
        return "/files", *forms.write({"purpose": forms.Field(PURPOSE.encode()), "file": file})

    def read(answer: Any) -> tuple[list[Reply], Bill]:
        return [Reply(_id(answer), True)] * len(rows), _bill(0, cost=0.0)

    request = digest({"model": caller.provider.model, "file": [list(row) for row in rows]})
    tokens = sum(_size(caller.tokenizer, *row) for row in rows)
    facts = {"kind": UPLOAD, "file_tokens": tokens}
    errand = Errand(request, len(rows), 0.0, carries, write, read, _NO_SERVICE, facts)
    return caller.do(errand, place, call)[0].text


def tune(caller: Caller, uploaded: np.ndarray, schedule: Schedule) -> str:
    """Returns the name of the model that is trained on uploaded files, once it is.

    Args:
      caller: of the provider.
      uploaded: int `[clients]`, 1 plus the round in which each has uploaded; 0 for none.
      schedule: of the job.

    Raises:
      ProviderError, BudgetError, JournalError: as `Caller.ask`; ProviderError also if the job fails
        or takes longer than `Terms.max_wait`.
    """
    clients = np.flatnonzero(uploaded).tolist()
    files, tokens = [], 0
    for client in clients:
        for id, size in caller.journal.files(int(uploaded[client]) - 1, client):
            files.append(id)
            tokens += size
    trained = tokens * schedule.num_epochs
    cost = _cost(trained, caller.terms)
    hyper = {
        "n_epochs": schedule.num_epochs,
        "batch_size": schedule.batch_size,
        "learning_rate_multiplier": schedule.multiplier,
    }
    body: dict[str, Any] = {
        "model": caller.provider.model,
        "training_file": files[0],
        "seed": schedule.seed,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyper}},
    }
    body |= {FILES: files[1:]} if files[1:] else {}

    def read(answer: Any) -> tuple[list[Reply], Bill]:
        return [Reply(_id(answer), True)], _bill(trained, cost=cost)

    write = lambda user: ("/fine_tuning/jobs", json.dumps(body).encode(), JSON)
    carries = Carried(trained=trained)
    errand = Errand(digest(body), 1, cost, carries, write, read, _NO_SERVICE)
    (reply,) = caller.do(errand, (int(uploaded.max()) - 1, SERVER), 0)
    return wait_for(caller, reply.text)


def wait_for(caller: Caller, job: str) -> str:
    """Returns the name of a job's model, once it is trained; shows how far it is meanwhile.

    Raises:
      ProviderError: if the job fails, takes longer than `Terms.max_wait`, or does not exist.
    """
    until, pause = time.monotonic() + caller.terms.max_wait, _FIRST_WAIT
    shown = time.monotonic()
    while True:
        found = caller.look(f"/fine_tuning/jobs/{job}")
        found = found if isinstance(found, dict) else {}
        status, made = found.get("status"), found.get("fine_tuned_model")
        if status == "succeeded" and isinstance(made, str):
            return made
        if status in ("failed", "cancelled"):
            told = json.dumps(found.get("error"))[:300]
            raise caller.error(f"has {status} the job {job} ({told}); start a new run")
        if time.monotonic() > until:
            raise caller.error(
                f"has not ended the job {job} in {caller.terms.max_wait:g} s; `resume` waits for it"
            )
        if time.monotonic() - shown > _SPACING:
            shown = time.monotonic()
            line = f"{json.dumps(status)[:30]}, {_latest(caller, job)}"
            tqdm.write(f"fine-tuning job: {line}", file=sys.stderr)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_WAIT)


def _latest(caller: Caller, job: str) -> str:
    """Returns what the host last told of a job, without control characters of its choice."""
    try:
        found = caller.look(f"/fine_tuning/jobs/{job}/events?limit=1")
    except ProviderError as error:
        return f"no events ({error})"
    events = found.get("data") if isinstance(found, dict) else None
    last = events[0] if isinstance(events, list) and events else None
    return json.dumps(last.get("message"))[:300] if isinstance(last, dict) else "no events"


def _row(question: str, answer: str, *, chat: bool) -> dict[str, Any]:
    if not chat:
        return {"prompt": question, "completion": answer}
    turns = (("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def _size(tokenizer: Any, question: str, answer: str) -> int:
    """Returns the tokens of a row that is trained on, its end included."""
    return len(encode_prompt(tokenizer, question)) + len(encode_after(tokenizer, answer)) + 1


def _id(answer: Any) -> str:
    found = answer.get("id") if isinstance(answer, dict) else None
    if not isinstance(found, str) or not 0 < len(found) <= 200 or "/" in found:
        raise MalformedError("no id of what was made")
    return found


def _bill(tokens: int, *, cost: float | None) -> Bill:
    return Bill(tokens, 0, cost, "", None)


def _cost(tokens: int, terms: Terms) -> float | None:
    return None if terms.price_training is None else tokens * terms.price_training / 1e6
