"""A model behind a provider's API, with the methods that algorithms use.

Only the text of a client's questions, and of the prompt before them, is sent; tokens are used only
on the client side, with the local tokenizer. For the same model, results equal those of the local
one with two exceptions: a prompt or answer that is not in the tokenizer's own tokenisation, and a
candidate that is not among the most likely tokens that the provider returns. Such a candidate gets
the largest log-probability that it can have: at most the last returned one, and at most that of
the remaining probability.

Under a trace, when only shapes are determined, a hosted model returns zeros and sends nothing.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from fedjax_post.core.access import Access, check_call, check_restriction
from fedjax_post.core.traced import is_traced
from fedjax_post.core.view import View
from fedjax_post.disclosure.meter import Meter, add
from fedjax_post.disclosure.metered import question_rows, real_rows
from fedjax_post.provider import codec, soft_prompts, tuning
from fedjax_post.provider.address import check_url, read_key
from fedjax_post.provider.calls import Caller, Provider, rows_per_call
from fedjax_post.provider.journal import OUTSIDE, Journal
from fedjax_post.provider.replies import Reply
from fedjax_post.provider.requests import Query
from fedjax_post.provider.spent import Spent
from fedjax_post.provider.terms import Terms, check_terms
from fedjax_post.provider.training import Schedule

PyTree = Any


@jax.tree_util.register_static
class Hosted(View):
    """A model at a provider with at most EMBEDDINGS and FINETUNE access, a tree without leaves.

    Use `connect` to create one.
    """

    def __init__(
        self,
        caller: Caller,
        tokenizer: Any,
        *,
        access: Access = Access.LOGITS,
        place: tuple[int, int] = (OUTSIDE, OUTSIDE),
        calls: itertools.count | None = None,
    ):
        self._access = access
        self._caller, self._tokenizer, self._place = caller, tokenizer, place
        self._calls = itertools.count() if calls is None else calls

    @property
    def access(self) -> Access:
        """The access that this side of the API grants."""
        return self._access

    def restrict(self, tier: Access) -> "Hosted":
        """Returns the same model with access limited to `tier`."""
        check_restriction(tier, self.access)
        return Hosted(
            self._caller, self._tokenizer, access=tier, place=self._place, calls=self._calls
        )

    def at(self, round: int, client_id: int) -> "Hosted":
        """Returns the model bound to one client's visit, under which calls are journalled.

        `at(round, -1)` is for evaluation after `round` rounds. Its calls are not paid again
        either when a resumed run repeats them.
        """
        place = (int(round), int(client_id))
        return Hosted(self._caller, self._tokenizer, access=self.access, place=place)

    def spent(self) -> Spent:
        """Returns the totals of the run's calls so far."""
        return self._caller.journal.spent()

    def answer(
        self,
        params: PyTree,
        prompts: Int[Array, "B L"],
        prompt_mask: Bool[Array, "B L"],
        *,
        max_new_tokens: int,
        eos_id: int | tuple[int, ...],
        pad_id: int,
        prefix: Int[Array, " F"] | None = None,
    ) -> Int[Array, "B T"]:
        """Returns answers as `LanguageModel.answer` does; rows of padding alone are not sent.

        End tokens other than the tokenizer's own are sent as stop texts.

        Args:
          params: an adapter with a prompt, or {}.
          prompts: `[B, L]` token ids.
          prompt_mask: `[B, L]`, True for real tokens.
          max_new_tokens: maximum number of tokens of an answer.
          eos_id: tokens that end an answer.
          pad_id: fills rows after their answers.
          prefix: tokens that precede every prompt.

        Returns:
          `[B, T]` token ids, T equal to `max_new_tokens`.

        Raises:
          AccessError: if the model does not grant TEXT.
        """
        check_call("answer", Access.TEXT, self.access, params)
        if is_traced(params, prompts, prompt_mask, prefix):
            return jnp.zeros((prompts.shape[0], max_new_tokens), jnp.int32)
        ends = (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
        own = self._tokenizer.eos_token_id
        stop = tuple(codec.token_text(self._tokenizer, end) for end in ends if end != own)
        rows = np.full((len(prompts), max_new_tokens), pad_id, np.int32)
        asked = {"max_tokens": max_new_tokens, "stop": stop}
        for i, reply in self._ask(params, prompts, prompt_mask, prefix, asked):
            ids = self._encode(reply.text)
            ids = [*ids, own if own in ends else ends[0]] if reply.ended else ids
            rows[i, : len(ids)] = ids[:max_new_tokens]
        return jnp.asarray(rows)

    def next_scores(
        self,
        params: PyTree,
        prompts: Int[Array, "B L"],
        prompt_mask: Bool[Array, "B L"],
        candidates: Int[Array, " A"],
        *,
        prefix: Int[Array, " F"] | None = None,
    ) -> Float[Array, "B A"]:
        """Returns scores as `LanguageModel.next_scores`; rows of padding alone are not sent.

        Args:
          params: an adapter with a prompt, or {}.
          prompts: `[B, L]` token ids.
          prompt_mask: `[B, L]`, True for real tokens.
          candidates: `[A]` token ids.
          prefix: tokens that precede every prompt.

        Returns:
          `[B, A]` log-probabilities of the candidates as next tokens.

        Raises:
          AccessError: if the model does not grant LOGITS.
        """
        return self.next_bounds(params, prompts, prompt_mask, candidates, prefix=prefix)[1]

    def next_bounds(
        self,
        params: PyTree,
        prompts: Int[Array, "B L"],
        prompt_mask: Bool[Array, "B L"],
        candidates: Int[Array, " A"],
        *,
        prefix: Int[Array, " F"] | None = None,
    ) -> tuple[Float[Array, "B A"], Float[Array, "B A"]]:
        """Returns the least and the largest log-probability that each candidate can have.

        The two are equal for a candidate that the provider returns; of any other, the least is
        -inf. Arguments, shapes and errors are those of `next_scores`.
        """
        check_call("next_scores", Access.LOGITS, self.access, params)
        least, largest = np.zeros((2, len(prompts), len(candidates)), np.float32)
        if is_traced(params, prompts, prompt_mask, candidates, prefix):
            return jnp.asarray(least), jnp.asarray(largest)
        names = [codec.token_text(self._tokenizer, i) for i in np.asarray(candidates).tolist()]
        is_chat = self._caller.terms.style == "chat"
        asked = {"max_tokens": 1, "num_top": self._caller.terms.top_logprobs}
        for i, reply in self._ask(params, prompts, prompt_mask, prefix, asked):
            assert reply.top is not None  # guaranteed by `read_answer`
            most = most_left(reply.top)
            found = [given_score(name, reply.top, is_start=is_chat) for name in names]
            least[i] = [-math.inf if value is None else value for value in found]
            largest[i] = [most if value is None else value for value in found]
        return jnp.asarray(least), jnp.asarray(largest)

    def upload(
        self,
        params: PyTree,
        tokens: Int[Array, "B L"],
        question_mask: Bool[Array, "B L"],
        answer_mask: Bool[Array, "B L"],
    ) -> None:
        """Uploads rows as a file that the provider may train on; rows of padding are not sent.

        Args:
          params: {} or a prompt, which goes before every question.
          tokens: `[B, L]` token ids.
          question_mask: `[B, L]`, True for tokens of the question.
          answer_mask: `[B, L]`, True for tokens of the answer.

        Raises:
          AccessError: if the model does not grant FINETUNE.
        """
        check_call("upload", Access.FINETUNE, self.access, params)
        if is_traced(params, tokens, question_mask, answer_mask):
            return
        questions, answers = question_rows(tokens, question_mask, answer_mask)
        if not questions:
            return
        carries = add(self._caller.meter.file(params, questions, answers))
        rows = [
            (self._text(params, ids), codec.decode_after(self._tokenizer, ids, more))
            for ids, more in zip(questions, answers, strict=True)
        ]
        tuning.upload(self._caller, rows, self._place, next(self._calls), carries)

    def tuned(
        self, uploaded: Int[Array, " N"], *, num_epochs: int, batch_rows: int, multiplier: float
    ) -> "Hosted":
        """Returns the model that the provider fine-tunes on uploaded rows, after waiting for it.

        The same uploads and settings are one job, also in a resumed run.

        Args:
          uploaded: int32, 1 plus the round in which each client has uploaded; 0 for none.
          num_epochs: passes over all rows.
          batch_rows: rows of one step.
          multiplier: factor of the provider's step size.

        Raises:
          AccessError: if the model does not grant FINETUNE.
          ProviderError: if the job is refused, fails or takes longer than `Terms.max_wait`.
        """
        check_call("tuned", Access.FINETUNE, self.access, {})
        caller, access = self._caller, self.access & ~Access.FINETUNE
        if not is_traced(uploaded) and np.any(uploaded):
            schedule = Schedule(num_epochs, batch_rows, multiplier, caller.terms.tuning_seed)
            caller = caller.of(tuning.tune(caller, np.asarray(uploaded), schedule))
        return Hosted(caller, self._tokenizer, access=access)

    def made_by(self, job: str) -> "Hosted":
        """Returns the model that a fine-tuning job has made, to be asked only.

        Args:
          job: its id, see `journal.last_job`.

        Raises:
          ProviderError: as `tuned`, and for a job that the provider no longer knows.
        """
        caller = self._caller.of(tuning.wait_for(self._caller, job))
        return Hosted(caller, self._tokenizer, access=self.access & ~Access.FINETUNE)

    def _ask(self, params, prompts, prompt_mask, prefix, asked) -> list[tuple[int, Reply]]:
        """Returns pairs of a row's number and the reply to it."""
        caller, prompt = self._caller, params.get("prompt") or {}
        soft = prompt.get("embeddings")
        asked = asked | {"soft_prompt": None if soft is None else soft_prompts.encode(soft)}
        ids = real_rows(prompts, prompt_mask, prefix=prefix)
        carried = caller.meter.read(params, ids, answer=asked["max_tokens"])
        texts = [self._text(params, row) for row in ids]
        replies: list[Reply] = []
        for part in rows_per_call(caller.terms, texts):
            place = slice(len(replies), len(replies) + len(part))
            query, carries = Query(part, **asked), add(carried[place])
            replies += caller.ask(query, self._place, next(self._calls), carries)
        return list(zip(np.flatnonzero(np.any(prompt_mask, axis=1)), replies, strict=True))

    def _text(self, params: Mapping[str, Any], ids: list[int]) -> str:
        added = np.asarray((params.get("prompt") or {}).get("tokens", ())).tolist()
        head = int(codec.is_headed(self._tokenizer, ids))
        return codec.decode_prompt(self._tokenizer, [*ids[:head], *added, *ids[head:]])

    def _encode(self, text: str) -> list[int]:
        if self._caller.terms.style == "chat":  # a separate message
            return self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return codec.encode_after(self._tokenizer, text)


def connect(
    url: str,
    model: str,
    tokenizer: Any,
    *,
    terms: Terms = Terms(),  # noqa: B008 - immutable
    journal: str | Path | None = None,
    access: Access = Access.LOGITS,
    meter: Meter | None = None,
    watch: Callable[[Spent], None] | None = None,
) -> Hosted:
    """Returns a model at an OpenAI-compatible endpoint; sends nothing until it is used.

    The key is read from the environment variable OPENAI_API_KEY. It is sent only to that host and
    written nowhere: in an answer that repeats it, `(key)` replaces it.

    Args:
      url: base URL of the API, `http://.../v1`.
      model: name of the model at the provider.
      tokenizer: a Hugging Face tokenizer of the client side, which defines token ids.
      terms: budget, prices, time limits and failure handling.
      journal: file of the run's calls to this model; None keeps them in memory.
      access: TEXT, LOGITS or, of a provider of this project, EMBEDDINGS (see `soft_prompts`); with
        FINETUNE where the provider fine-tunes models.
      meter: counts what calls carry, for the journal; None counts every token as private.
      watch: called after each answered call, with what is spent.

    Raises:
      ImportError: if the extra `hosted` is not installed.
      ValueError: for invalid terms, an invalid address, or one that would send the key
        unencrypted.
      JournalError: see `Journal`.
    """
    check_terms(terms, access=access)
    key = read_key()
    if check_url(url, has_key=bool(key)):
        warnings.warn(
            f"url={url}: texts are sent unencrypted; write https:// where others may listen",
            stacklevel=2,
        )
    from fedjax_post.provider.line import Line  # needs the extra

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    line = Line(url, headers=headers, timeout=terms.timeout)
    written = Journal(journal, ask_again=terms.ask_again)
    provider = Provider(url, model, key, line.post)
    return make_hosted(
        provider, tokenizer, terms=terms, journal=written, access=access, meter=meter, watch=watch
    )


def make_hosted(
    provider: Provider,
    tokenizer: Any,
    *,
    terms: Terms,
    journal: Journal,
    access: Access,
    meter: Meter | None = None,
    watch: Callable[[Spent], None] | None = None,
) -> Hosted:
    """Returns a model at a provider that is reached in any way, see `connect`.

    Args:
      provider: and how it is reached.
      tokenizer: of the client side.
      terms: budget, prices, time limits and failure handling.
      journal: of the run's calls.
      access: as for `connect`.
      meter: as for `connect`.
      watch: as for `connect`.
    """
    caller = Caller(
        provider, tokenizer, terms=terms, journal=journal, meter=meter or Meter(), watch=watch
    )
    return Hosted(caller, tokenizer, access=access)


def show_queries(total: int | None = None) -> Callable[[Spent], None]:
    """Returns a `watch` for `connect` that shows a progress bar of queries and their cost."""
    bar = tqdm(total=total, unit="query", leave=False, dynamic_ncols=True, mininterval=0)

    def show(spent: Spent) -> None:
        bar.set_postfix({"cost": f"{spent.cost:.4g}"} if spent.cost else {}, refresh=False)
        bar.update(spent.sent - bar.n)

    return show


def given_score(name: str, top: Mapping[str, float], *, is_start: bool = False) -> float | None:
    """Returns the log-probability of a token; None if it is not given.

    Args:
      name: of the token, see `codec.token_text`.
      top: log-probabilities of the most likely tokens, by name.
      is_start: whether the token begins a chat message, where a space before it is ignored.
    """
    if not is_start:
        return top.get(name)
    spelled = [value for key, value in top.items() if key.lstrip(" ") == name.lstrip(" ")]
    return max(spelled, default=None)


def most_left(top: Mapping[str, float]) -> float:
    """Returns the largest log-probability of a token that is not given; see the module's docstring.

    Args:
      top: as for `given_score`.
    """
    left = 1.0 - sum(math.exp(value) for value in top.values())
    return min(*top.values(), math.log(max(left, 1e-10)))
