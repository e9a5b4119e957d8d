"""What is learned: rows' responses (SFT), preferences (DPO), or rewards (GRPO)."""

from collections.abc import Callable
from typing import Any

from fedjax_post.algorithms import on_policy
from fedjax_post.core.access import Access, union
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.hub.tokenizer import pad_id_of
from fedjax_post.objectives.dpo import dpo_loss
from fedjax_post.objectives.grpo import grpo_loss, rollouts
from fedjax_post.objectives.rewards import REWARDS
from fedjax_post.study import factories
from fedjax_post.study.files import load_code
from fedjax_post.study.spec import Spec

# objective -> its own fields, and what they are by default; None depends on the data
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


def filled(spec: Spec) -> Spec:
    """Returns the experiment with the usual values of its objective.

    Raises:
      ValueError: for a field of another objective, naming both.
    """
    for objective, own in _OWN.items():
        for path in own:
            if objective != spec.objective.name and (value := spec.at(path)) is not None:
                name = path.rpartition(".")[2]
                raise ValueError(f"{name}={value} is of objective={objective}; give that too")
    own = _OWN[spec.objective.name]
    return spec.put({path: usual for path, usual in own.items() if spec.at(path) is None})


def check(spec: Spec) -> None:
    """Refuses fields that do not go together.

    Raises:
      ValueError: naming the field and the remedy.
    """
    chosen = spec.objective.name
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
    """Returns what is learned, in words, where it is not the responses of the rows."""
    if spec.objective.name == "sft":
        return []
    if spec.objective.name == "dpo":
        return [f"dpo with beta {spec.objective.dpo_beta:g}"]
    return [
        f"grpo of {spec.objective.group_size} answers to a question",
        f"reward {factories.spoken(spec.objective.reward)}",
        f"clip {spec.objective.grpo_clip:g}",
        f"beta {spec.objective.grpo_beta:g}",
    ]


def find_reward(spec: Spec) -> Callable:
    """Returns the reward of an experiment.

    Raises:
      ValueError: naming the rewards that there are.
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
    """Returns the loss of the objective; None where it is that of the rows' responses.

    Raises:
      ValueError: if a policy cannot be trained by what the algorithm sees of the model.
    """
    if spec.objective.name == "sft":
        return None
    told = f"objective={spec.objective.name}: method={spec.method.name}"
    if Access.READ not in union(algorithm.access):
        raise ValueError(
            f"{told} searches prompts of a model whose weights it does not see; take one that "
            "trains an adapter, such as fed_avg"
        )
    if set(algorithm.access) != {"target"}:
        raise ValueError(
            f"{told} trains a model beside the target, and this objective is of one model; take "
            "one that trains the target, such as fed_avg"
        )
    return _make_loss(spec)


def _make_loss(spec: Spec) -> Callable:
    if spec.objective.name == "dpo":
        return dpo_loss(beta=_set(spec.objective.dpo_beta))
    return grpo_loss(clip=_set(spec.objective.grpo_clip), beta=_set(spec.objective.grpo_beta))


def around(
    spec: Spec, algorithm: Algorithm, tokenizer: Any, *, room: int, longest: int
) -> Algorithm:
    """Returns the algorithm, its clients answering their questions before they train.

    Args:
      spec: the experiment.
      algorithm: given the loss of `loss_of`.
      tokenizer: of the target.
      room: tokens of the model's context behind the longest question.
      longest: tokens of the longest response.

    Raises:
      ValueError: if answers do not fit behind the questions.
    """
    if spec.objective.name != "grpo":
        return algorithm
    length = spec.objective.answer_length or longest
    if length > room:
        raise ValueError(
            f"answer_length={length}: the model's context has room for {room} tokens behind "
            "the longest row; give fewer, or a lower `max_length`"
        )
    rollout = rollouts(
        find_reward(spec),
        group_size=_set(spec.objective.group_size),
        max_new_tokens=length,
        eos_id=tokenizer.eos_token_id,
        pad_id=pad_id_of(tokenizer),
    )
    return on_policy(algorithm, rollout)


def _set(value: Any) -> Any:
    """A value that `filled` saw to."""
    assert value is not None
    return value
