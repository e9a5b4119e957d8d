"""A model behind an interface: its methods without its weights."""

from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

from fedjax_post.core.access import Access, AccessError
from fedjax_post.core.view import View

PyTree = Any


@jax.tree_util.register_pytree_node_class
class Handle:
    """What a sealed model remembers of a prompt: to be handed back, not to be read.

    It can be carried through compiled loops, so that a walk over its leaves shows arrays; no
    attribute names them, and none can be set.
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
    """What an algorithm holds of a model below WEIGHTS: a tree without leaves.

    Made by the engine inside the compiled program, around a model whose weights
    are arguments of that program.
    """

    def __init__(self, model: Any):
        self._model, self.access = model, model.access

    def restrict(self, tier: Access) -> "Sealed":
        """The same view, cut down further."""
        return self._model.restrict(tier & self.access)

    def answer(
        self,
        params: PyTree,
        prompts: Int[Array, "B L"],
        prompt_mask: Bool[Array, "B L"],
        **kwargs: Any,
    ) -> Int[Array, "B T"]:
        """See `LanguageModel.answer`; all that TEXT grants."""
        return self._model.answer(params, prompts, prompt_mask, **kwargs)

    def next_scores(
        self,
        params: PyTree,
        prompts: Int[Array, "B L"],
        prompt_mask: Bool[Array, "B L"],
        candidates: Int[Array, " A"],
    ) -> Float[Array, "B A"]:
        """See `LanguageModel.next_scores`."""
        return self._model.next_scores(params, prompts, prompt_mask, candidates)

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
        """See `LanguageModel.total_loss`."""
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
        """See `LanguageModel.prefill`; the cache is for handing back, not for reading."""
        logits, cache = self._model.prefill(params, tokens, **kwargs)
        return logits, Handle(cache)

    def step(
        self, params: PyTree, tokens: Int[Array, "B L"], *, cache: "Handle", **kwargs: Any
    ) -> tuple[Float[Array, "B V"], "Handle"]:
        """See `LanguageModel.step`."""
        logits, cache = self._model.step(params, tokens, cache=cache._held, **kwargs)
        return logits, Handle(cache)


def reach_model(view: Any) -> Any:
    """The model behind a view, or the tree of models behind views, each at its view's tier.

    For compiled programs of models alone. They take it as an argument, since a `Sealed` that
    were one would make the weights constants of the program, compiled anew for every view.
    """
    is_sealed = lambda node: isinstance(node, Sealed)
    return jax.tree.map(lambda x: x._model if is_sealed(x) else x, view, is_leaf=is_sealed)
