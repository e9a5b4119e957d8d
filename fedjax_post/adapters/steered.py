"""Proxy-tuning: a closed model steered by the difference that tuning made to a small open one.

Liu et al., "Tuning Language Models by Proxy", COLM 2024, arXiv:2401.08565, equation 1; without
its experts' chat templates:

    logits = target + alpha (proxy tuned - proxy as it was)

for every next token. The target is asked for its logits alone; nothing of it is trained, and
nothing is asked of it while the proxy is.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedjax_post.core.access import Access
from fedjax_post.core.view import Scores, TotalLoss, View
from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.decoder import score_tokens
from fedjax_post.model.generate import generate
from fedjax_post.model.sealed import Sealed, reach_model
from fedjax_post.model.views import LanguageModel

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Steered(View):
    """A target and its proxy, with the methods of a `LanguageModel` that give logits.

    `params` of every method are the proxy's. All three models hold their logits at once: three
    times the memory of the target's at the positions that are looked at. With alpha = 0, or an
    untrained proxy, it is the target.
    """

    target: LanguageModel | Sealed  # open to LOGITS or more
    proxy: LanguageModel
    config: DecoderConfig = dataclasses.field(metadata={"static": True})
    alpha: float = dataclasses.field(default=1.0, metadata={"static": True})
    access = Access.LOGITS  # and no more, whatever the two models grant; not a field

    def prompt_length(self, params: PyTree) -> int:
        """See `LanguageModel.prompt_length`; a prompt is the tuned proxy's alone."""
        return self.proxy.prompt_length(params)

    def logits(
        self, params: PyTree, tokens: Int[Array, "B L"], **where: Any
    ) -> Float[Array, "B L V"]:
        """See `LanguageModel.logits`."""
        three = self._three(params)
        return self._steered(*(model.logits(held, tokens, **where) for model, held in three))

    def scores(self, params: PyTree, tokens: Int[Array, "B L"], **where: Any) -> Scores:
        """See `LanguageModel.scores`."""
        return score_tokens(self.logits(params, tokens, **where)[:, :-1], tokens[:, 1:])

    def total_loss(
        self,
        params: PyTree,
        tokens: Int[Array, "B L"],
        loss_mask: Bool[Array, "B L"],
        **where: Any,
    ) -> TotalLoss:
        """See `LanguageModel.total_loss`."""
        scores, is_counted = self.scores(params, tokens, **where), loss_mask[:, 1:]
        total = lambda x: jnp.sum(jnp.where(is_counted, x, 0), dtype=jnp.float32)
        return TotalLoss(total(-scores.log_probs), total(scores.is_most_likely), total(1))

    def prefill(
        self, params: PyTree, tokens: Int[Array, "B L"], **where: Any
    ) -> tuple[Float[Array, "B V"], PyTree]:
        """See `LanguageModel.prefill`; the cache is one for each of the three."""
        three = self._three(params)
        logits, caches = zip(*(m.prefill(held, tokens, **where) for m, held in three), strict=True)
        return self._steered(*logits), caches

    def step(
        self, params: PyTree, tokens: Int[Array, "B L"], *, cache: PyTree, **where: Any
    ) -> tuple[Float[Array, "B V"], PyTree]:
        """See `LanguageModel.step`."""
        each = zip(self._three(params), cache, strict=True)
        stepped = (m.step(held, tokens, cache=own, **where) for (m, held), own in each)
        logits, caches = zip(*stepped, strict=True)
        return self._steered(*logits), caches

    def answer(
        self,
        params: PyTree,
        prompts: Int[Array, "B L"],
        prompt_mask: Bool[Array, "B L"],
        **how: Any,
    ) -> Int[Array, "B T"]:
        """See `LanguageModel.answer`."""
        model: Any = self  # it has all that generation asks of a model
        return generate(model, params, prompts, prompt_mask, **how)

    def next_scores(
        self,
        params: PyTree,
        prompts: Int[Array, "B L"],
        prompt_mask: Bool[Array, "B L"],
        candidates: Int[Array, " A"],
    ) -> Float[Array, "B A"]:
        """See `LanguageModel.next_scores`."""
        logits, _ = self.prefill(params, prompts, mask=prompt_mask, num_slots=prompts.shape[1])
        return jax.nn.log_softmax(logits)[:, candidates]

    def _three(self, params):
        """The models and what is merged over each."""
        return (self.target, {}), (self.proxy, params), (self.proxy, {})

    def _steered(self, target, tuned, untuned):
        return target + self.alpha * (tuned - untuned)


def steer(target: LanguageModel | Sealed, proxy: LanguageModel, *, alpha: float = 1.0) -> Steered:
    """Returns the target as its proxy steers it.

    Args:
      target: the closed model; a view that grants LOGITS will do.
      proxy: the small open model that is tuned, with the target's vocabulary.
      alpha: how far it is steered; 0 is the target alone.

    Raises:
      ValueError: if the two vocabularies differ in size.
    """
    config, own = reach_model(target).config, proxy.config
    if config.vocab_size != own.vocab_size:
        raise ValueError(
            f"`proxy` has {own.vocab_size} tokens and the target {config.vocab_size}; "
            "their logits are added, so give a proxy with the target's tokenizer"
        )
    context = min(config.max_positions, own.max_positions)
    return Steered(target, proxy, dataclasses.replace(config, max_positions=context), alpha)
