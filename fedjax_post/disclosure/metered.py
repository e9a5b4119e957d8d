"""A view of a model that counts, before each call, what the call carries to the model's host.

| call | what is counted, see `meter` |
| --- | --- |
| `answer`, `next_scores`, `prefill` | the rows with their prefix, without padding |
| `logits`, `scores`, `total_loss`, `embed` | the rows up to their last token that is no padding |
| `step` | its tokens, as private; no query |
| `embed_logits` | all places, as private |
| `upload` | the rows' questions and answers |
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from fedjax_post.core.access import Access, check_restriction
from fedjax_post.core.traced import is_traced
from fedjax_post.core.view import Scores, TotalLoss, View
from fedjax_post.disclosure.meter import OUTSIDE, Carried, Meter, add, digest

PyTree = Any


@jax.tree_util.register_static
class Metered(View):
    """A view whose calls are counted by a meter.

    It is a tree without leaves. `at(round, client_id)` binds it to a visit, as the host executor
    does. Traced calls, of which only shapes are determined, are passed on and not counted.

    Args:
      model: the model, or a view of it.
      meter: that counts.
      pad_id: fills rows on the right in calls without a mask.
      silent: whether calls are answered by zeros, without computing the model. Traced calls are
        then counted when the compiled program runs, each time.
      place: round and client.
    """

    def __init__(
        self,
        model: Any,
        meter: Meter,
        *,
        pad_id: int,
        silent: bool = False,
        place: tuple[int, int] = (OUTSIDE, OUTSIDE),
    ):
        self._model, self._meter, self._place = model, meter, place
        self._pad_id, self._silent = pad_id, silent

    @property
    def access(self) -> Access:
        """The access that this view grants."""
        return self._model.access

    def restrict(self, tier: Access) -> "Metered":
        """Returns the same view with less access."""
        check_restriction(tier, self.access)
        return self._on(self._model.restrict(tier), self._place)

    def at(self, round: int, client_id: int) -> "Metered":
        """Returns the view bound to a client's visit."""
        return self._on(self._model, (int(round), int(client_id)))

    def answer(self, params, prompts, prompt_mask, *, max_new_tokens, **kwargs) -> jax.Array:
        """See `View.answer`."""
        carried = params, prompts, prompt_mask, kwargs.get("prefix")
        self._count(partial(self._masked, answer=max_new_tokens), *carried)
        given = {"max_new_tokens": max_new_tokens, **kwargs}
        return self._call("answer", params, prompts, prompt_mask, **given)

    def next_scores(self, params, prompts, prompt_mask, candidates, **kwargs) -> jax.Array:
        """See `View.next_scores`."""
        self._count(self._masked, params, prompts, prompt_mask, kwargs.get("prefix"))
        return self._call("next_scores", params, prompts, prompt_mask, candidates, **kwargs)

    def logits(self, params, tokens, **kwargs) -> jax.Array:
        """See `View.logits`."""
        self._count(self._unmasked, params, tokens)
        return self._call("logits", params, tokens, **kwargs)

    def scores(self, params, tokens, **kwargs) -> Scores:
        """See `View.scores`."""
        self._count(self._unmasked, params, tokens)
        return self._call("scores", params, tokens, **kwargs)

    def total_loss(self, params, tokens, loss_mask, **kwargs) -> TotalLoss:
        """See `View.total_loss`."""
        self._count(self._unmasked, params, tokens)
        return self._call("total_loss", params, tokens, loss_mask, **kwargs)

    def embed(self, params, tokens) -> jax.Array:
        """See `View.embed`."""
        self._count(self._unmasked, {}, tokens)
        return self._call("embed", params, tokens)

    def embed_logits(self, params, embeddings, **kwargs) -> jax.Array:
        """See `View.embed_logits`."""
        self._count(_embedded, embeddings)
        return self._call("embed_logits", params, embeddings, **kwargs)

    def prefill(self, params, tokens, *, mask, **kwargs) -> tuple[jax.Array, PyTree]:
        """See `View.prefill`."""
        self._count(self._masked, params, tokens, mask, kwargs.get("prefix"))
        return self._call("prefill", params, tokens, mask=mask, **kwargs)

    def step(self, params, tokens, *, mask, **kwargs) -> tuple[jax.Array, PyTree]:
        """See `View.step`."""
        self._count(_stepped, mask)
        return self._call("step", params, tokens, mask=mask, **kwargs)

    def upload(self, params, tokens, question_mask, answer_mask) -> None:
        """See `View.upload`."""
        self._count(self._filed, params, tokens, question_mask, answer_mask)
        self._call("upload", params, tokens, question_mask, answer_mask)

    def tuned(self, uploaded, **kwargs) -> "Metered":
        """See `View.tuned`."""
        return self._on(self._model.tuned(uploaded, **kwargs), self._place)

    def _count(self, read: Callable[..., Carried], *arrays: Any) -> None:
        """Counts a call, or notes that its count is not known yet."""
        round, client_id = self._place
        note = lambda *known: self._meter.note(read(*known), round=round, client_id=client_id)
        if self._silent:
            self._meter.num_traced += 1
            io_callback(note, None, *arrays)
        elif is_traced(arrays):
            self._meter.num_traced += 1
        else:
            note(*arrays)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        method = getattr(self._model, name)
        if not self._silent:
            return method(*args, **kwargs)
        fixed = {key: value for key, value in kwargs.items() if isinstance(value, int | tuple)}
        arrays = {key: value for key, value in kwargs.items() if key not in fixed}
        shapes = jax.eval_shape(partial(method, **fixed), *args, **arrays)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def _masked(self, params, tokens, mask, prefix, *, answer: int = 1) -> Carried:
        rows = real_rows(tokens, mask, prefix=prefix)
        return add(self._meter.read(params, rows, answer=answer))

    def _filed(self, params, tokens, question_mask, answer_mask) -> Carried:
        rows = question_rows(tokens, question_mask, answer_mask)
        return add(self._meter.file(params, *rows))

    def _unmasked(self, params, tokens) -> Carried:
        real = np.asarray(tokens) != self._pad_id
        upto = np.cumsum(real[:, ::-1], axis=1)[:, ::-1] > 0
        return add(self._meter.read(params, real_rows(tokens, upto)))

    def _on(self, model: Any, place: tuple[int, int]) -> "Metered":
        pad_id, silent = self._pad_id, self._silent
        return Metered(model, self._meter, pad_id=pad_id, silent=silent, place=place)


def _embedded(embeddings: Any) -> Carried:
    (batch, length), rows = embeddings.shape[:2], np.asarray(embeddings, np.float32)
    distinct = {digest(row.view(np.int32)): length for row in rows}
    return Carried(batch, batch * length, batch * length, answers=batch, distinct=distinct)


def _stepped(mask: Any) -> Carried:
    sent = int(np.asarray(mask).sum())
    return Carried(tokens=sent, private_tokens=sent, answers=len(mask))


def real_rows(tokens: Any, mask: Any, *, prefix: Any = None) -> list[list[int]]:
    """Returns the token ids of rows, with the prefix; rows of padding alone are left out.

    Args:
      tokens: int `[B, L]`.
      mask: bool `[B, L]`, False for padding.
      prefix: int `[F]`, or None.
    """
    tokens, mask = np.asarray(tokens), np.asarray(mask, bool)
    front = [] if prefix is None else np.asarray(prefix).tolist()
    pairs = zip(tokens, mask, strict=True)
    return [front + row[kept].tolist() for row, kept in pairs if kept.any()]


def question_rows(
    tokens: Any, question_mask: Any, answer_mask: Any
) -> tuple[list[list[int]], list[list[int]]]:
    """Returns the token ids of questions and of their answers; rows without either are left out.

    Args:
      tokens: int `[B, L]`.
      question_mask: bool `[B, L]`.
      answer_mask: bool `[B, L]`.
    """
    questions = np.asarray(question_mask, bool)
    questions = questions & np.any(np.asarray(answer_mask, bool), axis=1, keepdims=True)
    answers = np.asarray(answer_mask, bool) & questions.any(axis=1, keepdims=True)
    return real_rows(tokens, questions), real_rows(tokens, answers)
