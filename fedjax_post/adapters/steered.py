"""Proxy-tuning: steers a closed model by the change that tuning made to a small open model.

Liu et al., "Tuning Language Models by Proxy", COLM 2024, arXiv:2401.08565, equation 1, without
the chat templates of its experts:

    logits = target + alpha (tuned proxy - untuned proxy)

for every next token. Only logits of the target are used. The target is not trained, and it is
not used while the proxy is trained.
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
    """A target and its proxy, with the methods of a `LanguageModel` that need logits only.

    `params` of every method are the proxy's. The logits of all three models are in memory at
    once: three times those of the target at the positions that are evaluated. With alpha = 0, or
    an untrained proxy, the result is that of the target.
    """

    target: LanguageModel | Sealed  # with access LOGITS or more
    proxy: LanguageModel
    config: DecoderConfig = dataclasses.field(metadata={"static": True})
    alpha: float = dataclasses.field(default=1.0, metadata={"static": True})

    @property
    def access(self) -> Access:
        """The access that it grants: logits, whatever the two models grant."""
        return Access.LOGITS

    def prompt_length(self, params: PyTree) -> int:
        """See `LanguageModel.prompt_length`; only the tuned proxy has a prompt."""
        return self.proxy.prompt_length(params)

    def logits(
        self, params: PyTree, tokens: Int[Array, "B L"], **where: Any
    ) -> Float[Array, "B L V"]:
        """See `LanguageModel.logits`."""
        three = self._models(params)
        return self._combine(*(model.logits(own, tokens, **where) for model, own in three))

    def scores(self, params: PyTree, tokens: Int[Array, "B L"], **where: Any) -> Scores:
        """See `LanguageModel.scores`."""
        return score_tokens(self.logits(params, tokens, **where)[:, :-1], tokens[:, 1:])

    def total_loss(
        self,
        params: PyTree,
        tokens: Int[Array, "B L"],
        loss_mask: Bool[Array, "B L"],
        *,
        targets: Int[Array, "B L"] | None = None,
        **where: Any,
    ) -> TotalLoss:
        """Returns the summed loss of the tokens that `loss_mask` marks, token 0 left out.

        Args:
          params: the parameters of the tuned proxy.
          tokens: int32.
          loss_mask: True where a token counts.
          targets: as in `LanguageModel.total_loss`.
          **where: positions, segments and key, as in `LanguageModel.total_loss`.
        """
        logits = self.logits(params, tokens, **where)
        if targets is None:
            logits, targets, loss_mask = logits[:, :-1], tokens[:, 1:], loss_mask[:, 1:]
        scores = score_tokens(logits, targets)
        total = lambda x: jnp.sum(jnp.where(loss_mask, x, 0), dtype=jnp.float32)
        return TotalLoss(total(-scores.log_probs), total(scores.is_most_likely), total(1))

    def prefill(
        self, params: PyTree, tokens: Int[Array, "B L"], **where: Any
    ) -> tuple[Float[Array, "B V"], PyTree]:
        """See `LanguageModel.prefill`; the cache holds one for each of the three models."""
        three = self._models(params)
        logits, caches = zip(*(m.prefill(own, tokens, **where) for m, own in three), strict=True)
        return self._combine(*logits), caches

    def step(
        self, params: PyTree, tokens: Int[Array, "B L"], *, cache: PyTree, **where: Any
    ) -> tuple[Float[Array, "B V"], PyTree]:
        """Returns the logits after the last new token, and the caches with the new tokens.

        Args:
          params: the parameters of the tuned proxy.
          tokens: int32, the new tokens.
          cache: the caches of the three models, from `prefill` or `step`.
          **where: positions and mask, as in `LanguageModel.step`.
        """
        each = zip(self._models(params), cache, strict=True)
        stepped = (m.step(own, tokens, cache=one, **where) for (m, own), one in each)
        logits, caches = zip(*stepped, strict=True)
        return self._combine(*logits), caches

    def answer(
        self,
        params: PyTree,
        prompts: Int[Array, "B L"],
        prompt_mask: Bool[Array, "B L"],
        **how: Any,
    ) -> Int[Array, "B T"]:
        """Returns the greedy continuations of left-padded prompts.

        Args:
          params: the parameters of the tuned proxy.
          prompts: int32, padded on the left.
          prompt_mask: False for padding.
          **how: max_new_tokens, eos_id, pad_id and prefix, as in `LanguageModel.answer`.
        """
        model: Any = self  # it has every method that generation uses
        return generate(model, params, prompts, prompt_mask, **how)

    def next_scores(
        self,
        params: PyTree,
        prompts: Int[Array, "B L"],
        prompt_mask: Bool[Array, "B L"],
        candidates: Int[Array, " A"],
        *,
        prefix: Int[Array, " F"] | None = None,
    ) -> Float[Array, "B A"]:
        """Returns the log-probability of each candidate as the next token, nats, float32.

        Args:
          params: the parameters of the tuned proxy.
          prompts: int32, padded on the left.
          prompt_mask: False for padding.
          candidates: int32, the tokens to score.
          prefix: as in `LanguageModel.next_scores`.
        """
        where = {"mask": prompt_mask, "num_slots": prompts.shape[1], "prefix": prefix}
        logits, _ = self.prefill(params, prompts, **where)
        return jax.nn.log_softmax(logits)[:, candidates]

    def _models(self, params):
        """Returns the three models, each with its parameters."""
        return (self.target, {}), (self.proxy, params), (self.proxy, {})

    def _combine(self, target, tuned, untuned):
        return target + self.alpha * (tuned - untuned)


def steer(target: LanguageModel | Sealed, proxy: LanguageModel, *, alpha: float = 1.0) -> Steered:
    """Returns the target model steered by a proxy.

    >>> import jax
    >>> from fedjax_post.adapters.steered import steer
    >>> from fedjax_post.testing.models import tiny_model
    >>> model = steer(tiny_model(0), tiny_model(1, num_layers=1), alpha=0.5)
    >>> model.logits({}, jax.numpy.array([[1, 2, 3]])).shape
    (1, 3, 32)

    Args:
      target: the closed model; a view that grants LOGITS is sufficient.
      proxy: the small open model that is tuned, with the target's vocabulary.
      alpha: the strength of steering; 0 gives the target itself.

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
