"""What an algorithm may do with a language model: one protocol for all kinds of models.

| method | needs |
| --- | --- |
| `answer` | TEXT |
| `next_scores`, `logits`, `scores`, `total_loss`, `prefill`, `step` | LOGITS |
| `embed`, `embed_logits` | EMBEDDINGS |
| `upload`, `tuned` | FINETUNE |

Weights are read, and losses differentiated, by way of `params` and `jax.grad`; that needs WEIGHTS
and GRADIENTS. `core.access.views` builds a view for each role of an algorithm.
"""

from typing import Any, NamedTuple, NoReturn, Protocol

import jax

from fedjax_post.core.access import Access, AccessError, spoken

PyTree = Any


class Scores(NamedTuple):
    """How a model predicts the tokens 1 .. L - 1 of rows of L tokens; M is L - 1."""

    log_probs: jax.Array  # [B, M], float32: of each token given those before it, nats
    is_most_likely: jax.Array  # [B, M], bool: no other token is more likely


class TotalLoss(NamedTuple):
    """The loss of a batch as sums, so that the mean of any group of batches can be taken."""

    nats: jax.Array  # (), float32: negative log-likelihood
    num_correct: jax.Array  # (), float32: predicted tokens that no other token exceeds
    num_tokens: jax.Array  # (), float32: tokens that were to be predicted


class View(Protocol):
    """A language model as an algorithm holds it.

    Classes inherit from it explicitly. A method that one does not define refuses with
    `AccessError`; so does a method that needs more than `access`, and one whose `params` do
    (see `core.access.check_params`). `params` is merged over the frozen model: `{}` for the
    model itself, else collections such as `{"lora": tree}`, `{"params": tree}`, `{"prompt": tree}`.

    Arguments: `tokens`, `prompts`, `positions` and `segments` are int32, `[B, L]`; `loss_mask`,
    `prompt_mask` and `mask` are bool, `[B, L]`; `key` is a PRNG key for dropout, None for
    evaluation. `prefix`, int32 `[F]`, are tokens that precede every prompt, which a model reads
    once for all rows; None for none.
    """

    @property
    def access(self) -> Access:
        """What the view grants; it cannot be assigned."""
        _refuse(self, "access")

    def restrict(self, access: Access, /) -> "View":
        """Returns the same model with `access` only; AccessError if it does not grant that."""
        _refuse(self, "restrict")

    def answer(
        self,
        params: PyTree,
        prompts: jax.Array,
        prompt_mask: jax.Array,
        *,
        max_new_tokens: int,
        eos_id: int | tuple[int, ...],
        pad_id: int,
        prefix: jax.Array | None = None,
    ) -> jax.Array:
        """Returns greedy continuations of left-padded prompts, `[B, max_new_tokens]` int32."""
        _refuse(self, "answer")

    def next_scores(
        self,
        params: PyTree,
        prompts: jax.Array,
        prompt_mask: jax.Array,
        candidates: jax.Array,
        *,
        prefix: jax.Array | None = None,
    ) -> jax.Array:
        """Returns log-probabilities of candidate next tokens, `[B, len(candidates)]`, nats."""
        _refuse(self, "next_scores")

    def logits(
        self,
        params: PyTree,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the logits of the token after each token, `[B, L, V]` float32."""
        _refuse(self, "logits")

    def scores(
        self,
        params: PyTree,
        tokens: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Scores:
        """Returns how likely the tokens 1 .. L - 1 are, without holding all logits."""
        _refuse(self, "scores")

    def total_loss(
        self,
        params: PyTree,
        tokens: jax.Array,
        loss_mask: jax.Array,
        *,
        targets: jax.Array | None = None,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> TotalLoss:
        """Returns the summed loss of the tokens that `loss_mask` marks, token 0 left out.

        With `targets`, int32 `[B, L]`, these are the tokens that follow each token, and are marked.
        """
        _refuse(self, "total_loss")

    def embed(self, params: PyTree, tokens: jax.Array) -> jax.Array:
        """Returns the tokens' input embeddings, `[B, L, D]`."""
        _refuse(self, "embed")

    def embed_logits(
        self,
        params: PyTree,
        embeddings: jax.Array,
        *,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the logits after input embeddings `[B, L, D]`, `[B, L, V]` float32."""
        _refuse(self, "embed_logits")

    def prefill(
        self,
        params: PyTree,
        tokens: jax.Array,
        *,
        mask: jax.Array,
        num_slots: int,
        prefix: jax.Array | None = None,
    ) -> tuple[jax.Array, PyTree]:
        """Returns logits `[B, V]` after left-padded prompts, and a cache to hand to `step`."""
        _refuse(self, "prefill")

    def step(
        self,
        params: PyTree,
        tokens: jax.Array,
        *,
        positions: jax.Array,
        mask: jax.Array,
        cache: PyTree,
    ) -> tuple[jax.Array, PyTree]:
        """Returns logits `[B, V]` after the last of some new tokens, and the new cache."""
        _refuse(self, "step")

    def upload(
        self,
        params: PyTree,
        tokens: jax.Array,
        question_mask: jax.Array,
        answer_mask: jax.Array,
    ) -> None:
        """Sends rows to the model's host, which may train on them; rows of padding are not sent.

        `params` are {} or a prompt, which goes before every question. The masks mark the
        question and the answer of each row.
        """
        _refuse(self, "upload")

    def tuned(
        self, uploaded: jax.Array, *, num_epochs: int, batch_rows: int, multiplier: float
    ) -> "View":
        """Returns the model that its host trains on uploaded rows, with TEXT and SCORES.

        `uploaded`, int32 `[clients]`, is 1 plus the round in which each client has uploaded its
        rows, 0 for none. Where all are 0, it is the model itself. The other arguments are those of
        the host's training: epochs, rows of a step, and a factor of its usual step size.
        """
        _refuse(self, "tuned")


def _refuse(view: View, method: str) -> NoReturn:
    granted = "nothing" if method == "access" else spoken(view.access)
    raise AccessError(
        f"{method} needs the model itself, which a {type(view).__name__} model does not give; "
        f"it grants {granted}"
    )
