"""From flags to a policy that learns from the rewards of its own answers (GRPO)."""

import importlib
from collections.abc import Callable
from typing import Any

from absl import flags

from algorithms import on_policy
from fedjax_post.core.access import Access
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.objectives.grpo import grpo_loss, rollouts
from fedjax_post.objectives.rewards import REWARDS

_OWN = ("reward", "group_size", "answer_length", "grpo_clip", "grpo_beta")
_USUAL = {"reward": "exact", "group_size": 8, "grpo_clip": 0.2, "grpo_beta": 0.0}


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    own = {"flag_values": values}
    what = "what is learned: the responses of the rows (sft), or from rewards of answers (grpo)"
    flags.DEFINE_enum("objective", "sft", ["sft", "grpo"], what, **own)
    reward = f"grpo: {', '.join(REWARDS)}, or package.module:function ({_USUAL['reward']})"
    flags.DEFINE_string("reward", None, reward, **own)
    group = f"grpo: answers to a question that are compared ({_USUAL['group_size']})"
    flags.DEFINE_integer("group_size", None, group, lower_bound=2, **own)
    longest = "grpo: tokens of an answer, its end included (those of the longest response)"
    flags.DEFINE_integer("answer_length", None, longest, lower_bound=1, **own)
    clip = f"grpo: how far a token's ratio may go before it counts no more ({_USUAL['grpo_clip']})"
    flags.DEFINE_float("grpo_clip", None, clip, **own)
    beta = f"grpo: strength of the pull to the frozen model ({_USUAL['grpo_beta']:g})"
    flags.DEFINE_float("grpo_beta", None, beta, **own)


def check(options: flags.FlagValues) -> None:
    """Refuses flags that do not go together, and fills in the usual values.

    Raises:
      ValueError: naming the flag and the remedy.
    """
    if options.objective != "grpo":
        for name in _OWN:
            if (value := options[name].value) is not None:
                raise ValueError(f"--{name}={value} is of --objective=grpo; give that too")
        return
    if options.pack_length:
        raise ValueError(
            f"--pack_length={options.pack_length}: --objective=grpo answers one question a row; "
            "leave it out"
        )
    for name, usual in _USUAL.items():
        if options[name].value is None:
            options[name].value = usual
    find_reward(options)
    grpo_loss(clip=options.grpo_clip, beta=options.grpo_beta)


def describe(options: flags.FlagValues) -> list[str]:
    """Returns what is learned, in words, where it is not the responses of the rows."""
    if options.objective == "sft":
        return []
    return [
        f"{options.objective} of {options.group_size} answers to a question",
        f"reward {options.reward}",
        f"clip {options.grpo_clip:g}",
        f"beta {options.grpo_beta:g}",
    ]


def find_reward(options: flags.FlagValues) -> Callable:
    """Returns the reward of the flags.

    Raises:
      ValueError: naming the rewards that there are.
    """
    name = options.reward
    module, _, attribute = name.partition(":")
    if not attribute:
        if name not in REWARDS:
            raise ValueError(
                f"--reward={name} is unknown; there are {', '.join(REWARDS)}, and your own is "
                "package.module:function"
            )
        return REWARDS[name]
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--reward={name} cannot be loaded: {error}") from error


def loss_of(options: flags.FlagValues, algorithm: Algorithm) -> Callable | None:
    """Returns the loss of the objective; None where it is that of the rows' responses.

    Raises:
      ValueError: if a policy cannot be trained by what the algorithm sees of the model.
    """
    if options.objective == "sft":
        return None
    if max(algorithm.access.values()) < Access.WEIGHTS:
        raise ValueError(
            f"--objective=grpo: --algorithm={options.algorithm} searches prompts of a model whose "
            "weights it does not see; take one that trains an adapter, such as fed_avg"
        )
    return grpo_loss(clip=options.grpo_clip, beta=options.grpo_beta)


def around(
    options: flags.FlagValues, algorithm: Algorithm, tokenizer: Any, *, room: int, longest: int
) -> Algorithm:
    """Returns the algorithm, its clients answering their questions before they train.

    Args:
      options: parsed flags.
      algorithm: given the loss of `loss_of`.
      tokenizer: of the target.
      room: tokens of the model's context behind the longest question.
      longest: tokens of the longest response.

    Raises:
      ValueError: if answers do not fit behind the questions.
    """
    if options.objective == "sft":
        return algorithm
    length = options.answer_length or longest
    if length > room:
        raise ValueError(
            f"--answer_length={length}: the model's context has room for {room} tokens behind "
            "the longest row; give fewer, or a lower --max_length"
        )
    eos_id = tokenizer.eos_token_id
    pad_id = eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    given = {"max_new_tokens": length, "eos_id": eos_id, "pad_id": pad_id}
    return on_policy(
        algorithm, rollouts(find_reward(options), group_size=options.group_size, **given)
    )
