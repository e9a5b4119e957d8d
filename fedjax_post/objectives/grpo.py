"""GRPO: a policy learns from the rewards of its own answers, compared within a group.

Shao et al., "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language
Models", 2024, arXiv:2402.03300, equations 3 and 4.

`rollouts` answers the questions of a visit G times each, by the model that the client holds,
and rewards the answers; `grpo_loss` is the loss of the batches that come of it. The two meet in
`algorithms.on_policy`, which goes around any algorithm that is given the loss. A visit's rows
are `{"tokens", "loss_mask"}` as in `objectives/sft.py`; its batches are then

| name | shape, dtype | meaning |
| --- | --- | --- |
| tokens | [B G, W + T] int32 | a question and an answer of at most T tokens |
| loss_mask | the same, bool | True on the answer, its end included; nowhere in padding |
| advantages | [B G] float32 | (reward - mean of its group) / deviation of its group |
| old_log_probs | [B G, W + T - 1] float32 | by the model that answered, nats |

Deviations: answers are drawn once for a visit, so that step k of it is k steps off-policy, which
the clipped ratio is there for. The deviation is that of the population; trl takes the sample's
and adds 1e-4 to it, so that its advantages are sqrt((G - 1) / G) times these where rewards
differ by much more than that, and vanish where they do not. Here units do not matter: rewards
times a number, or plus one, have the same advantages. Rewards that differ by rounding alone are
equal, and have advantages of 0. The reference is the model as it was loaded, without a second copy.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_post.core.algorithm import ClientData
from fedjax_post.model.generate import Sampling, sample
from fedjax_post.objectives.choice import questions, responses, up_to_end
from fedjax_post.objectives.tokens import masked_mean, reference_of

PyTree = Any
# (answer, wanted) -> (): of one answer; see `objectives.rewards`
RewardFn = Callable[[Array, Array], Array]
_ROUNDING = 4 * float(jnp.finfo(jnp.float32).eps)  # of rewards that are equal, over the largest


def rollouts(
    reward_fn: RewardFn,
    *,
    group_size: int,
    max_new_tokens: int,
    eos_id: int | tuple[int, ...],
    pad_id: int,
) -> Callable:
    """Returns `(model, params, data, key) -> (data, metrics)`: answers in the place of rows.

    Answers are drawn from the model's own distribution, one step's batch after another, so that
    memory is that of B G answers.

    Args:
      reward_fn: what an answer is worth, from its tokens and those of the row's response.
      group_size: G, answers to a question, at least 2.
      max_new_tokens: T, the longest answer, its end included.
      eos_id: end token or tokens.
      pad_id: what fills a row behind its answer.

    Returns:
      A function from a visit's data to data of the batches above. `num_tokens` is then the
      number of questions, since the loss is a mean over these. Metrics, means over the
      questions: "reward"; "answer_tokens", an answer's length; "even_groups", the share of
      questions whose answers all earn the same, from which nothing is learned.

    Raises:
      ValueError: if `group_size` is below 2 or `max_new_tokens` below 1; when it is called,
        for packed rows and where question and answer exceed the model's context.
    """
    if group_size < 2:
        raise ValueError(f"group_size={group_size}: answers are compared; give at least 2")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    rule = Sampling(max_new_tokens, eos_id, pad_id)

    def answer(model, params, batch, key):
        asked = questions(batch)
        repeat = lambda x: jnp.repeat(x, group_size, axis=0)
        prompts, mask = repeat(asked.prompts), repeat(asked.prompt_mask)
        answers = sample(model, params, prompts, mask, rule=rule, key=key)
        ended = up_to_end(answers, eos_id)
        rewards = jax.vmap(reward_fn)(ended, repeat(up_to_end(responses(batch), eos_id)))
        rewards = rewards.reshape(-1, group_size).astype(jnp.float32)
        rows = _laid_out(prompts, mask, answers, ended, pad_id=pad_id)
        old = model.scores(params, rows["tokens"]).log_probs
        rows |= {"advantages": advantages(rewards).reshape(-1), "old_log_probs": old}
        return jax.lax.stop_gradient((rows, _told(asked, rewards, rows)))

    def prepare(model: Any, params: PyTree, data: ClientData, key: Array):
        keys = jax.random.split(key, jnp.shape(data.step_mask)[0])
        one = lambda step: answer(model, params, *step)
        batches, told = jax.lax.map(one, (jax.tree.map(jnp.asarray, data.batches), keys))
        told = {
            name: jnp.where(jnp.asarray(data.step_mask), x, 0).sum() for name, x in told.items()
        }
        asked = told.pop("asked")
        data = data._replace(batches=batches, num_tokens=asked)
        return data, {name: total / jnp.maximum(asked, 1) for name, total in told.items()}

    return prepare


def advantages(rewards: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """Returns rewards less their group's mean, over its deviation; 0 in a group of equals.

    Rewards are compared with the group's least first, which rounds little where it matters:
    the mean of equal numbers need not be that number in float32, but their differences are 0.
    """
    is_even = _is_even(rewards)[:, None]
    above = rewards - rewards.min(axis=1, keepdims=True)
    above = above / jnp.where(is_even, 1.0, above.max(axis=1, keepdims=True))  # within [0, 1]
    centred = above - above.mean(axis=1, keepdims=True)
    deviation = jnp.sqrt(jnp.square(centred).mean(axis=1, keepdims=True))
    return jnp.where(is_even, 0.0, centred / jnp.where(is_even, 1.0, deviation))


def _is_even(rewards: Float[Array, "B G"]) -> Float[Array, " B"]:
    """Whether the rewards of a group are equal up to rounding."""
    return jnp.ptp(rewards, axis=1) <= _ROUNDING * jnp.abs(rewards).max(axis=1)


def grpo_loss(*, clip: float = 0.2, beta: float = 0.0) -> Callable:
    """The loss whose gradient moves a policy towards its better answers (equation 3, negated).

    The mean over answers of the mean over their tokens of

        - min(r A, clamp(r, 1 - clip, 1 + clip) A) + beta (q / p - log(q / p) - 1)

    with p, q and r the token's probability by the policy, by the reference, and by the policy
    over that of the model that answered. With beta 0 the reference is not computed.

    Args:
      clip: how far a token's ratio may go before it stops to count, in (0, 1).
      beta: strength of the pull to the reference, not negative.

    Returns:
      `(params, model, batch, key) -> (loss, metrics)` over batches of `rollouts`. Metrics:
      "loss"; "clipped", the share of tokens whose ratio the clip holds; with beta also "kl".

    Raises:
      ValueError: for a `clip` or `beta` out of range.
    """
    if not 0 < clip < 1:
        raise ValueError(f"clip must be in (0, 1), got {clip:g}; 0.2 is usual")
    if beta < 0:
        raise ValueError(f"beta={beta:g} must not be negative; 0 leaves the reference out")

    def loss_fn(params, model, batch, key):
        mask = batch["loss_mask"].astype(bool)[:, 1:]
        by_answer = lambda values: jax.vmap(masked_mean)(values, mask)
        is_answer = mask.any(axis=1)
        log_probs = model.scores(params, batch["tokens"], key=key).log_probs
        ratio = jnp.exp(jnp.where(mask, log_probs - batch["old_log_probs"], 0.0))
        gain = batch["advantages"][:, None]
        held = jnp.clip(ratio, 1 - clip, 1 + clip) * gain
        losses = by_answer(-jnp.minimum(ratio * gain, held))
        told = {"clipped": masked_mean((held < ratio * gain).astype(jnp.float32), mask)}
        if beta:
            base = reference_of(model).scores({}, batch["tokens"]).log_probs
            base = jax.lax.stop_gradient(base)
            less = jnp.where(mask, base - log_probs, 0.0)
            kl = by_answer(jnp.exp(less) - less - 1)
            losses, told["kl"] = losses + beta * kl, masked_mean(kl, is_answer)
        loss = masked_mean(losses, is_answer)
        return loss, {"loss": loss, **told}

    return loss_fn


def _laid_out(prompts, prompt_mask, answers, ended, *, pad_id: int) -> dict[str, Array]:
    """Rows that begin with their question, the answer right behind it, padded on the right."""
    width, length = prompts.shape[1], prompts.shape[1] + answers.shape[1]
    # the end itself is learned; what fills the row behind it is not
    is_answer = jnp.pad(ended[:, :-1] >= 0, ((0, 0), (1, 0)), constant_values=True)
    is_answer &= prompt_mask.any(axis=1, keepdims=True)
    first = width - prompt_mask.sum(axis=1, dtype=jnp.int32)
    place = (jnp.arange(length, dtype=jnp.int32)[None] + first[:, None]) % length
    turn = lambda x: jnp.take_along_axis(x, place, axis=1)
    tokens = jnp.concatenate([prompts, answers], axis=1)
    is_token = jnp.concatenate([prompt_mask, is_answer], axis=1)
    loss_mask = jnp.concatenate([jnp.zeros_like(prompt_mask), is_answer], axis=1)
    return {
        "tokens": turn(jnp.where(is_token, tokens, pad_id).astype(jnp.int32)),
        "loss_mask": turn(loss_mask),
    }


def _told(asked, rewards, rows) -> dict[str, Array]:
    """Sums over a batch's questions."""
    is_asked = asked.prompt_mask.any(axis=1)
    lengths = rows["loss_mask"].sum(axis=1).reshape(rewards.shape)
    each = {
        "reward": rewards.mean(axis=1),
        "answer_tokens": lengths.mean(axis=1),
        "even_groups": _is_even(rewards).astype(jnp.float32),
    }
    told = {name: jnp.where(is_asked, value, 0).sum() for name, value in each.items()}
    return told | {"asked": is_asked.sum(dtype=jnp.float32)}
