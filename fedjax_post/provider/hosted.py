"""A model behind a provider's API, as algorithms see one: `answer` and `next_scores`.

Nothing of a client leaves but the text of its questions and of the prompt before them; tokens
are a matter between the algorithm and this side's tokenizer. On the same model the results are
those of the local one, up to two things that text cannot carry: a prompt or answer that is not
in the tokenizer's own spelling, and a candidate that is not among the likeliest tokens which
the provider tells of. Such a candidate counts with the most that it can have: no more than the
last of these, and no more than all that they leave.

While shapes are worked out, under a trace, a hosted model answers zeros and sends nothing.
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

from fedjax_post.core.access import Access, AccessError, check_params, spoken
from fedjax_post.core.view import View
from fedjax_post.provider import codec
from fedjax_post.provider.address import check_url, read_key
from fedjax_post.provider.calls import Caller, Provider, rows_per_call
from fedjax_post.provider.journal import OUTSIDE, Journal
from fedjax_post.provider.replies import Reply
from fedjax_post.provider.requests import Query
from fedjax_post.provider.spent import Spent
from fedjax_post.provider.terms import Terms, check_terms

PyTree = Any


@jax.tree_util.register_static
class Hosted(View):
    """A model at a provider, open to TEXT or LOGITS; a tree without leaves. See `connect`."""

    def __init__(
        self,
        caller: Caller,
        tokenizer: Any,
        *,
        access: Access = Access.LOGITS,
        place: tuple[int, int] = (OUTSIDE, OUTSIDE),
        calls: itertools.count | None = None,
    ):
        self.access = access
        self._caller, self._tokenizer, self._place = caller, tokenizer, place
        self._calls = itertools.count() if calls is None else calls

    def restrict(self, tier: Access) -> "Hosted":
        """The same model, open to `tier` only."""
        if tier & ~self.access:
            raise AccessError(
                f"{spoken(tier)} was asked of a model that grants {spoken(self.access)}"
            )
        return Hosted(
            self._caller, self._tokenizer, access=tier, place=self._place, calls=self._calls
        )

    def at(self, round: int, client_id: int) -> "Hosted":
        """The model as one client asks it in one visit: what the calls are journalled under.

        Evaluation after `round` rounds is `at(round, -1)`: what it asks again after a
        resumption is not paid again either.
        """
        place = (int(round), int(client_id))
        return Hosted(self._caller, self._tokenizer, access=self.access, place=place)

    def spent(self) -> Spent:
        """What the run's calls came to so far."""
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
    ) -> Int[Array, "B T"]:
        """See `LanguageModel.answer`; rows that are padding throughout are not asked.

        End tokens other than the tokenizer's own are sent as stop texts.
        """
        self._need(Access.TEXT, "answer", params)
        if _is_traced(params, prompts, prompt_mask):
            return jnp.zeros((prompts.shape[0], max_new_tokens), jnp.int32)
        ends = (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
        own = self._tokenizer.eos_token_id
        stop = tuple(codec.token_text(self._tokenizer, end) for end in ends if end != own)
        rows = np.full((len(prompts), max_new_tokens), pad_id, np.int32)
        for i, reply in self._ask(params, prompts, prompt_mask, (max_new_tokens, stop, None)):
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
    ) -> Float[Array, "B A"]:
        """See `LanguageModel.next_scores`; rows that are padding throughout are not asked."""
        self._need(Access.LOGITS, "next_scores", params)
        if _is_traced(params, prompts, prompt_mask, candidates):
            return jnp.zeros((prompts.shape[0], candidates.shape[0]), jnp.float32)
        names = [codec.token_text(self._tokenizer, i) for i in np.asarray(candidates).tolist()]
        is_chat = self._caller.terms.style == "chat"
        scores = np.zeros((len(prompts), len(names)), np.float32)
        asked = (1, (), self._caller.terms.top_logprobs)
        for i, reply in self._ask(params, prompts, prompt_mask, asked):
            assert reply.top is not None  # `read_answer` saw to it
            scores[i] = [score_of(name, reply.top, is_start=is_chat) for name in names]
        return jnp.asarray(scores)

    def _ask(self, params, prompts, prompt_mask, asked) -> list[tuple[int, Reply]]:
        """Replies, each with its row."""
        mask = np.asarray(prompt_mask, bool)
        rows = [i for i in range(len(mask)) if mask[i].any()]
        tokens = np.asarray(prompts)
        texts = [self._text(params, tokens[i][mask[i]].tolist()) for i in rows]
        replies: list[Reply] = []
        for part in rows_per_call(self._caller.terms, texts):
            query = Query(part, *asked)
            replies += self._caller.ask(query, self._place, next(self._calls))
        return list(zip(rows, replies, strict=True))

    def _text(self, params: Mapping[str, Any], ids: list[int]) -> str:
        added = np.asarray(params["prompt"]["tokens"]).tolist() if params.get("prompt") else []
        head = int(codec.is_headed(self._tokenizer, ids))
        return codec.decode_prompt(self._tokenizer, [*ids[:head], *added, *ids[head:]])

    def _encode(self, text: str) -> list[int]:
        if self._caller.terms.style == "chat":  # a message of its own
            return self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return codec.encode_after(self._tokenizer, text)

    def _need(self, tier: Access, what: str, params: PyTree) -> None:
        if tier & ~self.access:
            raise AccessError(
                f"{what} needs {spoken(tier)} of the model, which grants {spoken(self.access)}; "
                "declare it in the algorithm's access"
            )
        check_params(params, self.access)


def connect(
    url: str,
    model: str,
    tokenizer: Any,
    *,
    terms: Terms = Terms(),  # noqa: B008 - immutable
    journal: str | Path | None = None,
    ask_again: bool = False,
    access: Access = Access.LOGITS,
    watch: Callable[[Spent], None] | None = None,
) -> Hosted:
    """A model at an OpenAI-compatible endpoint; nothing is sent before it is asked.

    The key is read from the environment variable OPENAI_API_KEY, sent to that host alone, and
    written nowhere: an answer that repeats it is kept with `(key)` in its place.

    Args:
      url: base URL of the API, `http://.../v1`.
      model: name of the model there.
      tokenizer: a Hugging Face tokenizer, of this side: what tokens mean.
      terms: budget, prices, patience, and what follows a failure.
      journal: file of the run's calls to this model; None keeps them in memory.
      ask_again: see `Journal`.
      access: TEXT or LOGITS, as the provider grants.
      watch: called after each call that was sent, with what is spent.

    Raises:
      ImportError: without the extra `hosted`, naming it.
      ValueError: for terms that cannot be kept, an address that is none, or one that would show
        the key on the way.
      JournalError: see `Journal`.
    """
    check_terms(terms, access=access)
    key = read_key()
    if check_url(url, has_key=bool(key)):
        warnings.warn(
            f"url={url}: texts travel in clear; write https:// where others may listen",
            stacklevel=2,
        )
    from fedjax_post.provider.line import Line  # needs the extra

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    line = Line(url, headers=headers, timeout=terms.timeout)
    written = Journal(journal, ask_again=ask_again)
    provider = Provider(url, model, key, line.post)
    caller = Caller(provider, tokenizer, terms=terms, journal=written, watch=watch)
    return Hosted(caller, tokenizer, access=access)


def show_queries(total: int | None = None) -> Callable[[Spent], None]:
    """A `watch` for `connect`: a bar of the queries so far, of `total`, and what they cost."""
    bar = tqdm(total=total, unit="query", leave=False, dynamic_ncols=True, mininterval=0)

    def show(spent: Spent) -> None:
        bar.set_postfix({"cost": f"{spent.cost:.4g}"} if spent.cost else {}, refresh=False)
        bar.update(spent.sent - bar.n)

    return show


def score_of(name: str, top: Mapping[str, float], *, is_start: bool = False) -> float:
    """The log-probability of the token `name`, or the most that it can have; see the head.

    At the start of a chat's message, whether a space stands before the token makes no difference.
    """
    if is_start:
        spelled = [value for key, value in top.items() if key.lstrip(" ") == name.lstrip(" ")]
        value = max(spelled, default=None)
    else:
        value = top.get(name)
    if value is not None:
        return value
    left = 1.0 - sum(math.exp(value) for value in top.values())
    return min(*top.values(), math.log(max(left, 1e-10)))


def _is_traced(*values: PyTree) -> bool:
    """Whether only shapes are wanted: values are, or everything here is, being traced."""
    leaves = [x for x in jax.tree.leaves(values) if isinstance(x, jax.core.Tracer)]
    for leaf in leaves:
        _one_by_one(leaf)
    return bool(leaves) or isinstance(jnp.zeros(()), jax.core.Tracer)


@jax.custom_batching.custom_vmap
def _one_by_one(x: Array) -> Array:
    return x


@_one_by_one.def_vmap
def _refuse(axis_size, in_batched, x):
    del axis_size, in_batched, x
    raise AccessError(
        "a hosted model is asked one call after another and cannot be mapped by jax.vmap; run "
        "with executor=host, and loop in the algorithm by jax.lax.map or jax.lax.scan"
    )
