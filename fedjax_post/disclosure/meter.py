"""The meter: counts what each call carries to the party that hosts a model.

It stands at the model's boundary, so that it sees the tokens of a call whatever an algorithm says
of itself. `metered.Metered` counts the calls to a model in this process, and a hosted model counts
each request before it is sent, repeated ones too. The text of rows is private; templates and the
method's own prompt are public.

| part of a call | what is counted |
| --- | --- |
| a row of padding alone | nothing: it is not sent |
| a row, also one that was cut, masked, shuffled or reworded | all tokens but the template's |
| a prompt that contains rows of clients, see `examples` | the tokens of these rows, and labels |
| any other prompt of tokens or embeddings | its places, as public |
| a row that is uploaded to be trained on | as a row, and its answer as a label; read in no call |
"""

import enum
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_post.disclosure.examples import Examples

OUTSIDE = -1  # the round of a use, and the client of a call that is no visit
SERVER = -2  # the "client" of a call by the federation's server in training


class DisclosureError(Exception):
    """Private text would leave the federation."""


class Purpose(enum.StrEnum):
    """Why a host was called."""

    TRAINING = "training"
    EVALUATION = "evaluation"
    USE = "use"


class Form(NamedTuple):
    """Numbers of tokens that are the same in every query of a run."""

    template: int = 0  # around a row's question, including the beginning-of-sequence token
    prompt: int = 0  # added in front by the method
    answer: int = 0  # the longest answer that may be billed
    shot: int = 0  # around a row's question and answer where they are shown as an example


class Carried(NamedTuple):
    """What calls carry to a host; numbers are sums over them."""

    queries: int = 0  # rows that were sent
    tokens: int = 0  # of these rows, and of clients' rows in prompts
    private_tokens: int = 0  # of them, without templates
    labels: int = 0  # answers of rows, sent with their questions
    places: int = 0  # of the method's own prompts: tokens or embeddings
    answers: int = 0  # tokens that may come back at most
    distinct: Mapping[str, int] = {}  # digest of each question -> its private tokens
    filed: int = 0  # of `tokens`, those in files, which no call reads
    trained: int = 0  # that the host trains on, each as often as it does


class Meter:
    """Counts calls, and keeps the sums by purpose until they are taken.

    Args:
      form: of the run's queries; by default every token is private.
      examples: finds rows of clients in prompts.
      refuses: whether a call that carries private text raises an error and is not made.
    """

    def __init__(
        self,
        form: Form = Form(),  # noqa: B008 - immutable
        examples: Examples = Examples(()),  # noqa: B008 - immutable
        *,
        refuses: bool = False,
    ):
        self.form, self.examples, self.refuses = form, examples, refuses
        self.num_traced = 0  # calls of which only shapes were determined
        self._noted: dict[Purpose, list[Carried]] = {}

    def read(
        self, params: Mapping[str, Any], rows: Sequence[Sequence[int]], *, answer: int = 1
    ) -> list[Carried]:
        """Returns what each of some rows carries; nothing is added to the sums.

        Args:
          params: of the call; its prompt goes with every row.
          rows: token ids without padding, at least one each.
          answer: longest answer to a row, in tokens.
        """
        prompt = params.get("prompt") or {}
        places = max((len(value) for value in prompt.values()), default=0)
        ids = np.asarray(prompt["tokens"]) if "tokens" in prompt else ()
        shown = self.examples.find(ids)
        private_shown = shown.tokens - shown.num_rows * self.form.shot
        found = []
        for row in rows:
            private = max(0, len(row) - self.form.template)
            one = Carried(
                queries=1,
                tokens=len(row) + shown.tokens,
                private_tokens=private + private_shown,
                labels=shown.labels,
                places=places - shown.tokens,
                answers=answer,
                distinct={digest(row): private},
            )
            found.append(one)
        return found

    def file(
        self,
        params: Mapping[str, Any],
        questions: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
    ) -> list[Carried]:
        """Returns what each row of a file carries that its host may train on; see `read`.

        Args:
          params: the prompt before every question.
          questions: token ids without padding.
          answers: to these questions, without special tokens.
        """
        found = []
        for one, answer in zip(self.read(params, questions, answer=0), answers, strict=True):
            size, private = one.tokens + len(answer), one.private_tokens + len(answer)
            told: dict[str, Any] = {"tokens": size, "private_tokens": private, "filed": size}
            found.append(one._replace(**told, labels=one.labels + 1, places=0))
        return found

    def check(self, carried: Carried) -> None:
        """Checks that a call may be made.

        Raises:
          DisclosureError: if it carries private text and the meter refuses that. The message
            contains none of it.
        """
        if self.refuses and carried.private_tokens:
            raise DisclosureError(
                f"a call of {carried.queries} queries carries {carried.private_tokens} private "
                f"tokens and {carried.labels} labels, and nothing was sent; use a model inside "
                "the federation (inference=client), or leave `fail_on_disclosure` out"
            )

    def note(self, carried: Carried, *, round: int, client_id: int) -> None:
        """Adds a call that is about to be made.

        Args:
          carried: by the call.
          round: in which it is made, or `OUTSIDE`.
          client_id: that makes it, or `OUTSIDE`.

        Raises:
          DisclosureError: as `check`.
        """
        self.check(carried)
        self._noted.setdefault(purpose_of(round, client_id), []).append(carried)

    def take(self) -> dict[Purpose, Carried]:
        """Returns the sums by purpose since they were taken last."""
        noted, self._noted = self._noted, {}
        return {purpose: add(parts) for purpose, parts in noted.items()}


def add(parts: Sequence[Carried]) -> Carried:
    """Returns the sum; a question in several parts is distinct once.

    >>> add([Carried(queries=1, distinct={"a": 3}), Carried(queries=2, distinct={"a": 3})])[0]
    3
    """
    distinct: dict[str, int] = {}
    for part in parts:
        distinct |= part.distinct
    names = [name for name in Carried._fields if name != "distinct"]
    sums = {name: sum(getattr(part, name) for part in parts) for name in names}
    return Carried(**sums, distinct=distinct)


def purpose_of(round: int, client_id: int) -> Purpose:
    """Returns the purpose of a call in a round by a client; either may be `OUTSIDE`."""
    if client_id != OUTSIDE:  # a client, or `SERVER`
        return Purpose.TRAINING
    return Purpose.USE if round == OUTSIDE else Purpose.EVALUATION


def digest(ids: Sequence[int] | np.ndarray) -> str:
    """Returns the identifier of a question: 64 bits of a hash of its token ids."""
    return hashlib.sha256(np.asarray(ids, np.int32).tobytes()).hexdigest()[:16]
