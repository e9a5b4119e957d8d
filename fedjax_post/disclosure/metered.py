"""A view of a model that counts, before each call, what the call carries to the model's host.

| call | what is counted, see `meter` |
| --- | --- |
| `answer`, `next_scores`, `prefill` | the rows with their prefix, without padding |
| `logits`, `scores`, `total_loss`, `embed` | the rows up to their last token that is no padding |
| `step` | its tokens, as private; no query |
| `embed_logits` | all places, as private |
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core.access import Access, check_restriction
from fedjax_post.core.traced import is_traced
from fedjax_post.core.view import Scores, TotalLoss, View
from fedjax_post.disclosure.meter import OUTSIDE, Carried, Meter, add, digest

PyTree = Any


@jax.tree_util.register_static
class Metered(View):
    """A view whose calls are counted by a meter, for runs without compilation.

    It is a tree without leaves. Under a trace, when only shapes are determined, calls are passed on
    and are not counted. `at(round, client_id)` binds it to a visit, as the host executor does.

    Args:
      model: the model, or a view of it.
      meter: that counts.
      pad_id: fills rows on the right in calls without a mask.
      answer_fn: `(name, method, params, *args, **kwargs)` -> result, which makes the call; None
        calls the method. `silence()` answers zeros.
      place: round and client.
    """

    def __init__(
        self,
        model: Any,
        meter: Meter,
        *,
        pad_id: int,
        answer_fn: Callable | None = None,
        place: tuple[int, int] = (OUTSIDE, OUTSIDE),
    ):
        self._model, self._meter, self._place = model, meter, place
        self._pad_id, self._answer_fn = pad_id, answer_fn

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
        read = partial(self._masked, params, prompts, prompt_mask, kwargs, answer=max_new_tokens)
        kwargs = {"max_new_tokens": max_new_tokens, **kwargs}
        return self._call("answer", read, params, prompts, prompt_mask, **kwargs)

    def next_scores(self, params, prompts, prompt_mask, candidates, **kwargs) -> jax.Array:
        """See `View.next_scores`."""
        read = partial(self._masked, params, prompts, prompt_mask, kwargs)
        return self._call("next_scores", read, params, prompts, prompt_mask, candidates, **kwargs)

    def logits(self, params, tokens, **kwargs) -> jax.Array:
        """See `View.logits`."""
        return self._call(
            "logits", partial(self._unmasked, params, tokens), params, tokens, **kwargs
        )

    def scores(self, params, tokens, **kwargs) -> Scores:
        """See `View.scores`."""
        return self._call(
            "scores", partial(self._unmasked, params, tokens), params, tokens, **kwargs
        )

    def total_loss(self, params, tokens, loss_mask, **kwargs) -> TotalLoss:
        """See `View.total_loss`."""
        read = partial(self._unmasked, params, tokens)
        return self._call("total_loss", read, params, tokens, loss_mask, **kwargs)

    def embed(self, params, tokens) -> jax.Array:
        """See `View.embed`."""
        return self._call("embed", partial(self._unmasked, {}, tokens), params, tokens)

    def embed_logits(self, params, embeddings, **kwargs) -> jax.Array:
        """See `View.embed_logits`."""

        def read():
            (batch, length), rows = embeddings.shape[:2], np.asarray(embeddings, np.float32)
            distinct = {digest(row.view(np.int32)): length for row in rows}
            return Carried(batch, batch * length, batch * length, answers=batch, distinct=distinct)

        return self._call("embed_logits", read, params, embeddings, **kwargs)

    def prefill(self, params, tokens, *, mask, **kwargs) -> tuple[jax.Array, PyTree]:
        """See `View.prefill`."""
        read = partial(self._masked, params, tokens, mask, kwargs)
        return self._call("prefill", read, params, tokens, mask=mask, **kwargs)

    def step(self, params, tokens, *, mask, **kwargs) -> tuple[jax.Array, PyTree]:
        """See `View.step`."""

        def read():
            sent = int(np.asarray(mask).sum())
            return Carried(tokens=sent, private_tokens=sent, answers=len(tokens))

        return self._call("step", read, params, tokens, mask=mask, **kwargs)

    def _call(self, name: str, read: Callable[[], Carried], *args: Any, **kwargs: Any) -> Any:
        method = getattr(self._model, name)
        if is_traced(args, kwargs):
            self._meter.num_traced += 1
            return method(*args, **kwargs)
        round, client_id = self._place
        self._meter.note(read(), round=round, client_id=client_id)
        if self._answer_fn is None:
            return method(*args, **kwargs)
        return self._answer_fn(name, method, *args, **kwargs)

    def _masked(self, params, tokens, mask, kwargs, *, answer: int = 1) -> Carried:
        rows = real_rows(tokens, mask, prefix=kwargs.get("prefix"))
        return add(self._meter.read(params, rows, answer=answer))

    def _unmasked(self, params, tokens) -> Carried:
        real = np.asarray(tokens) != self._pad_id
        upto = np.cumsum(real[:, ::-1], axis=1)[:, ::-1] > 0
        return add(self._meter.read(params, real_rows(tokens, upto)))

    def _on(self, model: Any, place: tuple[int, int]) -> "Metered":
        pad_id, answer_fn = self._pad_id, self._answer_fn
        return Metered(model, self._meter, pad_id=pad_id, answer_fn=answer_fn, place=place)


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


def silence() -> Callable:
    """Returns an `answer_fn` for `Metered`: zeros of the right shapes, computed by no model."""
    shapes: dict[Any, PyTree] = {}

    def answer(name, method, *args, **kwargs):
        fixed = {key: value for key, value in kwargs.items() if isinstance(value, int | tuple)}
        arrays = {key: value for key, value in kwargs.items() if key not in fixed}
        leaves, form = jax.tree.flatten((args, arrays))
        sizes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
        key = name, form, sizes, *sorted(fixed.items())
        if key not in shapes:
            shapes[key] = jax.eval_shape(partial(method, **fixed), *args, **arrays)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[key])

    return answer
