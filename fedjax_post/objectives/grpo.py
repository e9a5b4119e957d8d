"""GRPO: a policy learns from the rewards of its answers, compared within a group.

Shao et al., "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language
Models", 2024, arXiv:2402.03300, equations 3 and 4.

`rollouts` answers each question of a visit G times, with the model that the client holds, and
rewards the answers; `grpo_loss` is the loss over the resulting batches. `algorithms.on_policy`
combines the two: it wraps any algorithm that is given the loss. A visit's rows
are `{"tokens", "loss_mask"}` as in `objectives/sft.py`; its batches are then

| name | shape, dtype | meaning |
| --- | --- | --- |
| tokens | [B G, W + T] int32 | a question and an answer of at most T tokens |
| loss_mask | the same, bool | True on the answer, including its end; False in padding |
| advantages | [B G] float32 | (reward - mean of its group) / deviation of its group |
| old_log_probs | [B G, W + T - 1] float32 | by the model that gave the answer, nats |

Deviations: answers are drawn once for a visit, so that step k of it is k steps off-policy; the
clipped ratio is meant for this. The standard deviation is that of the population. trl takes that
of the sample and adds 1e-4, so that its advantages are sqrt((G - 1) / G) times these where
rewards differ by much more than 1e-4, and vanish where they do not. Here the unit of rewards does
not matter: multiplying rewards by a positive number or adding a constant does not change the
advantages. Rewards that differ only by rounding count as equal, with advantages of 0. The
reference is the model as it was loaded, without a second copy.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fedjax_post.core.algorithm import ClientData
from fedjax_post.model.generate import Sampling, sample
from fedjax_post.objectives.choice import cut_at_end, questions, responses, shared
from fedjax_post.objectives.tokens import masked_mean, reference_of

PyTree = Any
# (answer, wanted) -> (), for one answer; see `objectives.rewards`
RewardFn = Callable[[Array, Array], Array]
_ROUNDING = 4 * float(jnp.finfo(jnp.float32).eps)  # relative difference of equal rewards, at most


def rollouts(
    reward_fn: RewardFn,
    *,
    group_size: int,
    max_new_tokens: int,
    eos_id: int | tuple[int, ...],
    pad_id: int,
    prefix: Sequence[int] = (),
) -> Callable:
    """Returns `(model, params, data, key) -> (data, metrics)`, which replaces rows by answers.

    Answers are drawn from the model's distribution, one step's batch after another, so that
    the memory needed is that of B G answers.

    Args:
      reward_fn: the reward of an answer, from its tokens and those of the row's response.
      group_size: G, answers to a question, at least 2.
      max_new_tokens: T, the longest answer, including its end.
      eos_id: end token or tokens.
      pad_id: the token that fills a row after its answer.
      prefix: as for `choice_loss`: the tokens with which every question begins.

    Returns:
      A function from a visit's data to data with the batches above. `num_tokens` is then the
      number of questions, since the loss is a mean over these. Metrics, means over the
      questions: "reward"; "answer_tokens", the length of an answer; "even_groups", the share of
      questions whose answers all have the same reward, from which nothing is learned.

    Raises:
      ValueError: if `group_size` is below 2 or `max_new_tokens` below 1. The returned function
        raises it for packed rows, and where question and answer exceed the model's context.
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
        rest = map(repeat, questions(batch, num_shared=len(prefix)))
        answers = sample(model, params, *rest, rule=rule, key=key, **shared(prefix))
        ended = cut_at_end(answers, eos_id)
        rewards = jax.vmap(reward_fn)(ended, repeat(cut_at_end(responses(batch), eos_id)))
        rewards = rewards.reshape(-1, group_size).astype(jnp.float32)
        rows = _join_rows(prompts, mask, answers, ended, pad_id=pad_id)
        old = model.scores(params, rows["tokens"]).log_probs
        rows |= {"advantages": advantages(rewards).reshape(-1), "old_log_probs": old}
        return jax.lax.stop_gradient((rows, _metrics(asked, rewards, rows)))

    def prepare(model: Any, params: PyTree, data: ClientData, key: Array):
        keys = jax.random.split(key, jnp.shape(data.step_mask)[0])
        one = lambda step: answer(model, params, *step)
        batches, sums = jax.lax.map(one, (jax.tree.map(jnp.asarray, data.batches), keys))
        sums = {
            name: jnp.where(jnp.asarray(data.step_mask), x, 0).sum() for name, x in sums.items()
        }
        asked = sums.pop("asked")
        data = data._replace(batches=batches, num_tokens=asked)
        return data, {name: total / jnp.maximum(asked, 1) for name, total in sums.items()}

    return prepare


def advantages(rewards: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """Returns rewards minus their group's mean, over its deviation; 0 in a group of equals.

    The least reward of the group is subtracted first. The mean of equal numbers may differ from
    that number in float32, but their differences are exactly 0.

    Example:
      >>> advantages(jnp.array([[0.0, 1.0], [3.0, 3.0]])).tolist()
      [[-1.0, 1.0], [0.0, 0.0]]
    """
    is_even = _is_even(rewards)[:, None]
    # differences of the largest float32 numbers would overflow, and their reciprocals vanish;
    # a power of two scales without rounding
    is_large = jnp.abs(rewards).max(axis=1, keepdims=True) > 1
    rewards = rewards * jnp.where(is_large, 2.0**-20, 1.0)
    above = rewards - rewards.min(axis=1, keepdims=True)
    above = above / jnp.where(is_even, 1.0, above.max(axis=1, keepdims=True))  # within [0, 1]
    centred = above - above.mean(axis=1, keepdims=True)
    deviation = jnp.sqrt(jnp.square(centred).mean(axis=1, keepdims=True))
    return jnp.where(is_even, 0.0, centred / jnp.where(is_even, 1.0, deviation))


def _is_even(rewards: Float[Array, "B G"]) -> Float[Array, " B"]:
    """Returns whether the rewards of a group are equal up to rounding."""
    return jnp.ptp(rewards, axis=1) <= _ROUNDING * jnp.abs(rewards).max(axis=1)


def grpo_loss(*, clip: float = 0.2, beta: float = 0.0) -> Callable:
    """Returns the loss that moves a policy towards its better answers (equation 3, negated).

    It is the mean over answers of the mean over their tokens of

        - min(r A, clamp(r, 1 - clip, 1 + clip) A) + beta (q / p - log(q / p) - 1)

    where p is the token's probability by the policy, q that by the reference, and r is p over the
    probability by the model that gave the answer. With beta 0 the reference is not computed.

    Args:
      clip: how far a token's ratio may be from 1 before it is clipped, in (0, 1).
      beta: strength of the pull towards the reference, not negative.

    Returns:
      `(params, model, batch, key) -> (loss, metrics)` over batches of `rollouts`. Metrics:
      "loss"; "clipped", the share of an answer's tokens whose ratio is clipped; if beta is not 0,
      "kl". All are means over answers.

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
        clipped = jnp.clip(ratio, 1 - clip, 1 + clip) * gain
        losses = by_answer(-jnp.minimum(ratio * gain, clipped))
        is_clipped = by_answer((clipped < ratio * gain).astype(jnp.float32))
        metrics = {"clipped": masked_mean(is_clipped, is_answer)}
        if beta:
            base = reference_of(model).scores({}, batch["tokens"]).log_probs
            base = jax.lax.stop_gradient(base)
            less = jnp.where(mask, base - log_probs, 0.0)
            kl = by_answer(jnp.exp(less) - less - 1)
            losses, metrics["kl"] = losses + beta * kl, masked_mean(kl, is_answer)
        loss = masked_mean(losses, is_answer)
        return loss, {"loss": loss, **metrics}

    return loss_fn


def num_answers(batch: dict[str, Array]) -> Float[Array, ""]:
    """Returns the number of answers over which `grpo_loss` is the mean."""
    return batch["loss_mask"].astype(bool)[:, 1:].any(axis=1).sum(dtype=jnp.float32)


def _join_rows(prompts, prompt_mask, answers, ended, *, pad_id: int) -> dict[str, Array]:
    """Returns rows with a question followed directly by its answer, padded on the right."""
    width, length = prompts.shape[1], prompts.shape[1] + answers.shape[1]
    # the end token is learned; what fills the row after it is not
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


def _metrics(asked, rewards, rows) -> dict[str, Array]:
    """Returns sums over a batch's questions, and their number as "asked"."""
    is_asked = asked.prompt_mask.any(axis=1)
    lengths = rows["loss_mask"].sum(axis=1).reshape(rewards.shape)
    each = {
        "reward": rewards.mean(axis=1),
        "answer_tokens": lengths.mean(axis=1),
        "even_groups": _is_even(rewards).astype(jnp.float32),
    }
    sums = {name: jnp.where(is_asked, value, 0).sum() for name, value in each.items()}
    return sums | {"asked": is_asked.sum(dtype=jnp.float32)}
