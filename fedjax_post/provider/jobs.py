"""Fine-tuning jobs on the server side, as `/v1/fine_tuning/jobs` has them.

Jobs are trained in the background, one after another. What they learn stays with the provider: the
result is served under a name of its own, `ft:base:suffix:id`, and there is no way to export it.
"""

import atexit
import collections
import logging
import re
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_post.provider import listing
from fedjax_post.provider.job_requests import Ordered
from fedjax_post.provider.refusals import Refusal
from fedjax_post.provider.served import Served
from fedjax_post.provider.training import Recipe, train
from fedjax_post.provider.training_rows import Learned

COST = "fedjax_post_cost"  # an extension: what a job costs, in the currency of the prices
_MOST_WAITING = 16  # jobs
_MOST_STEPS = 200  # that a job's events tell of
_ENDED = ("succeeded", "failed", "cancelled")


class Job(NamedTuple):
    """A job at some time."""

    id: str
    created: int  # seconds since 1970
    served: Served  # the base
    ordered: Ordered
    rows: Sequence[Learned]
    status: str = "queued"  # then running, and succeeded, failed or cancelled
    made: str | None = None  # name of the result
    finished: int | None = None
    trained_tokens: int | None = None
    cost: float | None = None
    error: str = ""
    events: tuple[dict[str, Any], ...] = ()

    @property
    def card(self) -> dict[str, Any]:
        """The JSON of the job."""
        schedule = self.ordered.schedule
        hyper = {
            "n_epochs": schedule.num_epochs,
            "batch_size": schedule.batch_size,
            "learning_rate_multiplier": schedule.multiplier,
        }
        failed = self.status == "failed"
        error = {"code": "training_failed", "message": self.error, "param": None}
        return {
            "id": self.id, "object": "fine_tuning.job", "created_at": self.created,
            "finished_at": self.finished, "model": self.served.name, "status": self.status,
            "fine_tuned_model": self.made, "training_file": self.ordered.files[0],
            "validation_file": None, "hyperparameters": hyper, "seed": schedule.seed,
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyper}},
            "trained_tokens": self.trained_tokens, "error": error if failed else None,
            "organization_id": "fedjax_post", "result_files": [], "integrations": [],
            "estimated_finish": None, "metadata": None, COST: self.cost,
        }  # fmt: skip


class _CancelledError(Exception):
    """A job was cancelled while it was trained."""


class Jobs:
    """The jobs of a provider and their results, in memory.

    Args:
      recipe: how models are trained.
      price: of a million trained tokens.
      note: called with facts of a job that has ended, for the provider's log.
    """

    def __init__(self, recipe: Recipe, *, price: float, note: Callable[..., None]):
        self.recipe, self._price, self._note = recipe, price, note
        self.models: dict[str, Served] = {}  # results by name
        self._jobs: dict[str, Job] = {}
        self._waiting: collections.deque[str] = collections.deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None  # while any job waits or is trained
        _open.add(self)

    def create(self, served: Served, ordered: Ordered, rows: Sequence[Learned]) -> dict[str, Any]:
        """Returns the card of a new job.

        Args:
          served: the model to train.
          ordered: the request.
          rows: of tokens, at least one.

        Raises:
          Refusal: 429, if too many jobs wait.
        """
        with self._lock:
            self.check_room()
            id = listing.make_id("ftjob", len(self._jobs), repr(ordered).encode())
            self._jobs[id] = Job(id, int(time.time()), served, ordered, rows)
        self._change(id, "The job waits for its turn.")
        with self._lock:
            self._waiting.append(id)
            if self._thread is None:
                thread = threading.Thread(target=self._work, daemon=True)
                thread.start()
                self._thread = thread
        return self.get(id).card

    def check_room(self) -> None:
        """Raises Refusal, 429, if too many jobs wait."""
        if sum(job.status == "queued" for job in [*self._jobs.values()]) >= _MOST_WAITING:
            what = f"At most {_MOST_WAITING} jobs may wait; come again once one has ended."
            raise Refusal(429, what, code="rate_limit_exceeded", headers={"retry-after": "10"})

    def get(self, id: str) -> Job:
        """Returns a job; raises Refusal, 404, if there is none."""
        if id not in self._jobs:
            what = f"There is no fine-tuning job {id[:64]!r}."
            raise Refusal(404, what, code="job_not_found", param="fine_tuning_job_id")
        return self._jobs[id]

    def page(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Returns a page of the list of jobs; raises Refusal, naming the parameter."""
        listing.check_query(query, ("after", "limit"))
        with self._lock:
            cards = [job.card for job in self._jobs.values()]
        return listing.page(cards, query)

    def events(self, id: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Returns a page of what happened to a job; raises Refusal as `get` and `page` do."""
        listing.check_query(query, ("after", "limit"))
        return listing.page(self.get(id).events, query)

    def cancel(self, id: str) -> dict[str, Any]:
        """Returns the card of a job, which stops before its next step.

        Raises:
          Refusal: 404 if there is no such job, 400 if it has ended.
        """
        with self._lock:
            if (status := self.get(id).status) in _ENDED:
                what = f"The job {id} has {status}; only a job that waits or runs is cancelled."
                raise Refusal(400, what, code="job_ended", param="fine_tuning_job_id")
            self._jobs[id] = self._jobs[id]._replace(status="cancelled", finished=int(time.time()))
        self._change(id, "The job was cancelled.")
        return self.get(id).card

    def close(self) -> None:
        """Cancels all jobs, and returns once none is trained."""
        with self._lock:
            for id, job in self._jobs.items():
                if job.status not in _ENDED:
                    self._jobs[id] = job._replace(status="cancelled")
            thread = self._thread
        if thread is not None:
            thread.join()

    def _next(self) -> Job | None:
        """Returns the next job, which runs from now on; without one, the thread is to end."""
        with self._lock:
            while self._waiting:
                job = self._jobs[self._waiting.popleft()]
                if job.status == "queued":
                    self._jobs[job.id] = job._replace(status="running")
                    return job
            self._thread = None
            return None

    def _work(self) -> None:
        while (job := self._next()) is not None:
            id = job.id
            self._change(id, f"Training on {len(job.rows)} rows begins.")
            try:
                self._train(job)
            except _CancelledError:
                continue
            except Exception as error:
                logging.getLogger(__name__).exception("job %s failed", id)
                self._end(
                    id,
                    "failed",
                    f"The job failed: {error!r:.200}",
                    error="the training failed at the provider",
                )

    def _train(self, job: Job) -> None:
        schedule, name = job.ordered.schedule, name_of(job)
        total = schedule.steps(len(job.rows))
        every = -(-total // _MOST_STEPS)

        def watch(step: int, loss: float) -> None:
            if self._jobs[job.id].status == "cancelled":
                raise _CancelledError
            if step % every == 0 or step == total:
                self._change(job.id, f"Step {step}/{total}: training loss={loss:.4f}")

        made = train(job.served, job.rows, schedule, recipe=self.recipe, name=name, watch=watch)
        tokens = trained_tokens(job.rows, schedule.num_epochs)
        paid = {"trained_tokens": tokens, "cost": tokens * self._price / 1e6}
        with self._lock:
            if self._jobs[job.id].status == "cancelled":
                raise _CancelledError
            self.models[name] = made
            self._jobs[job.id] = self._jobs[job.id]._replace(status="succeeded")
        self._note(job=job.id, made=name, files=list(job.ordered.files), **paid)
        self._end(job.id, "succeeded", f"The model {name} is served.", made=name, **paid)

    def _end(self, id: str, status: str, message: str, **changes: Any) -> None:
        self._change(id, message, status=status, finished=int(time.time()), **changes)

    def _change(self, id: str, message: str, **changes: Any) -> None:
        """Adds an event to a job, together with other changes."""
        with self._lock:
            job, now = self._jobs[id], int(time.time())
            event = {
                "id": f"{id}-{len(job.events)}", "object": "fine_tuning.job.event",
                "created_at": now, "level": "info", "message": message, "type": "message",
            }  # fmt: skip
            self._jobs[id] = job._replace(events=(*job.events, event), **changes)


# Providers whose threads may be training. They are waited for: a thread that the interpreter ends
# inside a compiled program takes the whole process down with it
_open: weakref.WeakSet[Jobs] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for jobs in list(_open):
        jobs.close()


def name_of(job: Job) -> str:
    """Returns the name under which the result of a job is served."""
    return f"ft:{job.served.name}:{job.ordered.suffix}:{re.sub('^ftjob-', '', job.id)[:8]}"


def trained_tokens(rows: Sequence[Learned], num_epochs: int) -> int:
    """Returns the tokens that a job is billed for: all of its rows, in each epoch."""
    return num_epochs * sum(len(row.ids) for row in rows)
