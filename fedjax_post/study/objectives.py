"""Objectives: learn the responses of rows (SFT), preferences (DPO), or from rewards (GRPO)."""

from collections.abc import Callable, Sequence
from typing import Any

from fedjax_post.algorithms import on_policy
from fedjax_post.core.access import Access, union
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.hub.tokenizer import pad_id_of
from fedjax_post.objectives.dpo import dpo_loss, num_pairs
from fedjax_post.objectives.grpo import grpo_loss, num_answers, rollouts
from fedjax_post.objectives.microbatch import in_parts
from fedjax_post.objectives.rewards import REWARDS
from fedjax_post.objectives.sft import num_tokens
from fedjax_post.study import factories
from fedjax_post.study.files import load_code
from fedjax_post.study.spec import Spec

# objective -> its own fields and their defaults; None: depends on the data
_OWN: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {"objective.dpo_beta": 0.1, "data.rejected_column": "rejected"},
    "grpo": {
        "objective.reward": "exact",
        "objective.group_size": 8,
        "objective.answer_length": None,
        "objective.grpo_clip": 0.2,
        "objective.grpo_beta": 0.0,
    },
}
# objective -> the number of items of a batch over which its loss is the mean
_COUNTS: dict[str, Callable] = {"sft": num_tokens, "dpo": num_pairs, "grpo": num_answers}


def fill_defaults(spec: Spec) -> Spec:
    """Returns the experiment with the defaults of its objective filled in.

    Raises:
      ValueError: for a field of another objective, naming both.
    """
    for objective, own in _OWN.items():
        for path in own:
            if objective != spec.objective.name and (value := spec.at(path)) is not None:
                name = path.rpartition(".")[2]
                raise ValueError(f"{name}={value} needs objective={objective}; give that too")
    own = _OWN[spec.objective.name]
    return spec.put({path: usual for path, usual in own.items() if spec.at(path) is None})


def check(spec: Spec) -> None:
    """Checks that the fields of the objective go together with all others.

    Raises:
      ValueError: naming the field and the remedy.
    """
    chosen = spec.objective.name
    _check_microbatch(spec)
    if chosen == "sft":
        return
    if spec.data.pack_length:
        raise ValueError(
            f"pack_length={spec.data.pack_length}: rows of objective={chosen} are not packed; "
            "leave it out"
        )
    if spec.adapter.kind == "full" and (chosen == "dpo" or spec.objective.grpo_beta):
        raise ValueError(
            f"adapter=full: objective={chosen} compares with the model as it was loaded, and "
            "would need a second copy; use adapter=lora"
        )
    if chosen == "grpo":
        find_reward(spec)
    _make_loss(spec)


def describe(spec: Spec) -> list[str]:
    """Returns a description of the objective; empty for SFT."""
    if spec.objective.name == "sft":
        return []
    if spec.objective.name == "dpo":
        return [f"dpo with beta {spec.objective.dpo_beta:g}"]
    return [
        f"grpo of {spec.objective.group_size} answers to a question",
        f"reward {factories.display_name(spec.objective.reward)}",
        f"clip {spec.objective.grpo_clip:g}",
        f"beta {spec.objective.grpo_beta:g}",
    ]


def find_reward(spec: Spec) -> Callable:
    """Returns the reward function of an experiment.

    Raises:
      ValueError: for an unknown name, with the names that exist.
    """
    name = spec.objective.reward
    if callable(name):
        return name
    if ":" in name:
        return load_code(name, field="reward")
    if name not in REWARDS:
        raise ValueError(
            f"reward={name} is unknown; there are {', '.join(REWARDS)}, and your own is "
            "package.module:function"
        )
    return REWARDS[name]


def loss_of(spec: Spec, algorithm: Algorithm) -> Callable | None:
    """Returns the loss of the objective; None for SFT, whose loss `prompts.loss_of` chooses.

    Raises:
      ValueError: if the algorithm's access to the model does not allow this objective.
    """
    if spec.objective.name == "sft":
        return None
    given = f"objective={spec.objective.name}: method={spec.method.name}"
    if Access.READ not in union(algorithm.access):
        raise ValueError(
            f"{given} searches prompts of a model whose weights it does not see; use one that "
            "trains an adapter, such as fed_avg"
        )
    if set(algorithm.access) != {"target"}:
        raise ValueError(
            f"{given} trains a model beside the target, and this objective needs a single model; "
            "use one that trains the target, such as fed_avg"
        )
    return _make_loss(spec)


def _check_microbatch(spec: Spec) -> None:
    rows, size = spec.training.microbatch, spec.training.batch_size
    if rows is not None and size % rows:
        fits = ", ".join(str(number) for number in range(1, size + 1) if size % number == 0)
        raise ValueError(f"microbatch={rows} does not divide batch_size={size}; give one of {fits}")


def accumulated(spec: Spec, algorithm: Algorithm, loss_fn: Callable) -> Callable:
    """Returns a loss that computes `training.microbatch` rows at a time, if that is given.

    Args:
      spec: the experiment.
      algorithm: declares its access.
      loss_fn: the loss of whole batches.

    Raises:
      ValueError: if the algorithm trains no weights, whose losses are not means of this kind.
    """
    rows = spec.training.microbatch
    if rows is None or spec.privacy.noise_at == "step":  # which takes every row on its own
        return loss_fn
    if Access.READ not in union(algorithm.access):
        raise ValueError(
            f"microbatch={rows}: method={spec.method.name} does not read the model's weights, and "
            "asks about whole batches; leave it out, or give a lower `batch_size`"
        )
    num_parts = spec.training.batch_size // rows
    return in_parts(loss_fn, _COUNTS[spec.objective.name], num_parts=num_parts)


def _make_loss(spec: Spec) -> Callable:
    if spec.objective.name == "dpo":
        return dpo_loss(beta=_set(spec.objective.dpo_beta))
    return grpo_loss(clip=_set(spec.objective.grpo_clip), beta=_set(spec.objective.grpo_beta))


def around(
    spec: Spec,
    algorithm: Algorithm,
    tokenizer: Any,
    *,
    room: int,
    longest: int,
    prefix: Sequence[int],
) -> Algorithm:
    """Returns the algorithm; for GRPO, its clients sample answers before they train.

    Args:
      spec: the experiment.
      algorithm: trains the loss of `loss_of`.
      tokenizer: of the target.
      room: number of tokens of the model's context after the longest row.
      longest: number of tokens of the longest response.
      prefix: tokens with which all prompts begin.

    Raises:
      ValueError: if answers do not fit into the context.
    """
    if spec.objective.name != "grpo":
        return algorithm
    length = spec.objective.answer_length or longest
    if length > room:
        raise ValueError(
            f"answer_length={length}: the model's context has room for {room} tokens after "
            "the longest row; give fewer, or a lower `max_length`"
        )
    rollout = rollouts(
        find_reward(spec),
        group_size=_set(spec.objective.group_size),
        max_new_tokens=length,
        eos_id=tokenizer.eos_token_id,
        pad_id=pad_id_of(tokenizer),
        prefix=prefix,
    )
    return on_policy(algorithm, rollout)


def _set(value: Any) -> Any:
    """Returns a value that `fill_defaults` has set."""
    assert value is not None
    return value
