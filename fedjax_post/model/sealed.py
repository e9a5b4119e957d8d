"""A view of a model that offers its methods but not its weights."""

from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

from fedjax_post.core.access import Access, AccessError
from fedjax_post.core.view import View

PyTree = Any


@jax.tree_util.register_pytree_node_class
class Handle:
    """An opaque cache of a sealed model: it can be passed back to the model, but not read.

    It can be carried through compiled loops, so its leaves are arrays; but no public attribute
    gives access to them, and no attribute can be set.
    """

    __slots__ = ("_held",)

    def __init__(self, held: PyTree):
        object.__setattr__(self, "_held", held)

    def __repr__(self) -> str:
        return "Handle()"

    def __getattr__(self, name: str) -> Any:
        raise AccessError(f"a cache's {name} is inside the model, which needs READ; hand it back")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AccessError(f"a cache's {name} is inside the model, which needs READ; hand it back")

    def tree_flatten(self) -> tuple[tuple[PyTree], None]:
        """Returns the arrays, for compiled loops."""
        return (self._held,), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[PyTree]) -> "Handle":
        """Returns the handle that `tree_flatten` took apart."""
        del aux
        return cls(*children)


@jax.tree_util.register_static
class Sealed(View):
    """The view of a model that an algorithm with less access than WEIGHTS gets.

    It is a tree without leaves. The engine makes it inside the compiled program, from a model
    whose weights are arguments of that program.
    """

    def __init__(self, model: Any):
        self._model = model

    @property
    def access(self) -> Access:
        """The access that this view grants."""
        return self._model.access

    def restrict(self, tier: Access) -> "Sealed":
        """Returns the same view with less access."""
        return self._model.restrict(tier & self.access)

    def answer(
        self,
        params: PyTree,
        prompts: Int[Array, "B L"],
        prompt_mask: Bool[Array, "B L"],
        **kwargs: Any,
    ) -> Int[Array, "B T"]:
        """Returns the greedy continuations of left-padded prompts; needs TEXT.

        Args:
          params: `{}` or a prompt of tokens.
          prompts: int32, padded on the left.
          prompt_mask: False for padding.
          **kwargs: max_new_tokens, eos_id, pad_id and prefix, as in `LanguageModel.answer`.
        """
        return self._model.answer(params, prompts, prompt_mask, **kwargs)

    def next_scores(
        self,
        params: PyTree,
        prompts: Int[Array, "B L"],
        prompt_mask: Bool[Array, "B L"],
        candidates: Int[Array, " A"],
        **kwargs: Any,
    ) -> Float[Array, "B A"]:
        """Returns the log-probability of each candidate as the next token; needs LOGITS.

        Args:
          params: as in `LanguageModel`, restricted by the access of this view.
          prompts: int32, padded on the left.
          prompt_mask: False for padding.
          candidates: int32, the tokens to score.
          **kwargs: prefix, as in `LanguageModel.next_scores`.
        """
        return self._model.next_scores(params, prompts, prompt_mask, candidates, **kwargs)

    def logits(
        self, params: PyTree, tokens: Int[Array, "B L"], **kwargs: Any
    ) -> Float[Array, "B L V"]:
        """See `LanguageModel.logits`."""
        return self._model.logits(params, tokens, **kwargs)

    def scores(self, params: PyTree, tokens: Int[Array, "B L"], **kwargs: Any) -> Any:
        """See `LanguageModel.scores`."""
        return self._model.scores(params, tokens, **kwargs)

    def total_loss(
        self, params: PyTree, tokens: Int[Array, "B L"], loss_mask: Array, **kwargs: Any
    ) -> Any:
        """Returns the summed loss of the tokens that `loss_mask` marks; needs LOGITS.

        Args:
          params: as in `LanguageModel`, restricted by the access of this view.
          tokens: int32.
          loss_mask: bool `[B, L]`; token 0 is left out.
          **kwargs: targets, positions, segments and key, as in `LanguageModel.total_loss`.
        """
        return self._model.total_loss(params, tokens, loss_mask, **kwargs)

    def embed(self, params: PyTree, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """See `LanguageModel.embed`; needs EMBEDDINGS."""
        return self._model.embed(params, tokens)

    def embed_logits(
        self, params: PyTree, embeddings: Float[Array, "B L D"], **kwargs: Any
    ) -> Float[Array, "B L V"]:
        """See `LanguageModel.embed_logits`; needs EMBEDDINGS."""
        return self._model.embed_logits(params, embeddings, **kwargs)

    def prefill(
        self, params: PyTree, tokens: Int[Array, "B L"], **kwargs: Any
    ) -> tuple[Float[Array, "B V"], Any]:
        """See `LanguageModel.prefill`; the cache is a `Handle`."""
        logits, cache = self._model.prefill(params, tokens, **kwargs)
        return logits, Handle(cache)

    def step(
        self, params: PyTree, tokens: Int[Array, "B L"], *, cache: "Handle", **kwargs: Any
    ) -> tuple[Float[Array, "B V"], "Handle"]:
        """Returns the logits after the last new token, and the cache; needs LOGITS.

        Args:
          params: as in `LanguageModel`, restricted by the access of this view.
          tokens: int32, the new tokens.
          cache: from `prefill` or `step`.
          **kwargs: positions and mask, as in `LanguageModel.step`.
        """
        logits, cache = self._model.step(params, tokens, cache=cache._held, **kwargs)
        return logits, Handle(cache)


def reach_model(view: Any) -> Any:
    """Returns the model of a view, or a tree of models of views, each with its view's access.

    Only for compiled functions of models, which take the result as an argument. A `Sealed` as an
    argument would make the weights constants of the program, which would be compiled again for
    every view.
    """
    is_sealed = lambda node: isinstance(node, Sealed)
    return jax.tree.map(lambda x: x._model if is_sealed(x) else x, view, is_leaf=is_sealed)
