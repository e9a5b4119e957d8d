"""What a change of parameters says of the inputs of a layer's attention.

The projections to queries, keys and values read the same inputs x. Their gradients show:

| trained | gradient | what can be checked | if |
| --- | --- | --- | --- |
| the matrices W | `[in, out]` | x | fewer tokens than `in` |
| a LoRA's A | `[in, R]` | x | B is not 0, and fewer tokens than the ranks together |
| a LoRA's B | `[R, out]` | x A, for the A that clients received | fewer tokens than R |

"Tokens" are the different inputs: different tokens in the first layer of a model with rotary
positions, different beginnings of rows above it. The gradients of W and of A are put side by side,
so that ranks add up. B is 0 before the first round, and the gradient of A is 0 then.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_post.attacks import span
from fedjax_post.attacks.seen import Public, Sent

PyTree = Any
# The first key and value of a row have a gradient; its first query, which sees itself alone, has
# none
_READERS = ("k_proj", "v_proj", "qkv_proj", "q_proj")


class Check(NamedTuple):
    """A space, and the matrix that takes an input to it; None for the input itself."""

    space: span.Space
    through: np.ndarray | None = None  # [in, dim]


def adapted(public: Public, sent: Sent) -> list[int]:
    """Returns the numbers of the layers whose attention was trained, ascending; of all layers."""
    first = 0 if "params" in sent.change else (public.model.lora_layers or (0, 0))[0]
    parts = _readers(sent.change)
    if not parts:
        return []
    leaf = next(iter(next(iter(parts.values())).values()))
    return list(range(first, first + len(leaf)))


def checks(sent: Sent, place: int) -> list[Check]:
    """Returns what the inputs of an attention can be checked with; empty if with nothing.

    A space that is whole distinguishes nothing and is left out. Of the matrices or A on one side
    and B on the other, those are taken that show more inputs, and of equals those farther above
    the noise: a gradient so small that rounding hides a part of it would rule out true inputs.

    Args:
      sent: a change.
      place: which of the adapted layers, from 0.
    """
    both = (_joined(sent, place), _of_b(sent, place))
    parts = [[check for check in found if not check.space.is_whole] for found in both]
    shown = lambda found: (
        max((check.space.rank for check in found), default=-1),
        min((check.space.margin for check in found), default=0.0),
    )
    return max(parts, key=shown)


def ranks(sent: Sent, place: int) -> dict[str, Any]:
    """Returns ranks and sizes of the spaces of a layer, also of those that are whole.

    Args:
      sent: a change.
      place: which of the adapted layers, from 0.
    """
    found = [*_joined(sent, place), *_of_b(sent, place)]
    return {
        "rank": [check.space.rank for check in found],
        "room": [check.space.basis.shape[0] for check in found],
    }


def distance(found: Sequence[Check], inputs: np.ndarray) -> np.ndarray:
    """Returns how far each input is from what the checks allow, `[...]`: the largest distance.

    It is 0 in the space and about 1 for a vector of any direction, whatever the rank.

    Args:
      found: at least one check.
      inputs: of the layer's attention, `[..., in]`.
    """
    inputs = np.asarray(inputs, np.float64)

    def one(check: Check) -> np.ndarray:
        seen = inputs if check.through is None else inputs @ check.through
        usual = np.sqrt(1 - check.space.rank / check.space.basis.shape[0])
        return span.distances(check.space, seen) / usual

    return np.max([one(check) for check in found], axis=0)


def _joined(sent: Sent, place: int) -> list[Check]:
    """Returns the check by W or A, the gradients of all readers side by side."""
    before, change = _readers(sent.start), _readers(sent.change)
    name = "kernel" if "params" in sent.change else "a"
    parts = [
        (np.asarray(leaves[name][place], np.float64), np.asarray(before[reader][name][place]))
        for reader, leaves in change.items()
        if name in leaves and np.any(leaves[name][place])
    ]
    if not parts:
        return []
    noise = max(span.rounding_of(start, sent.num_steps) for _, start in parts)
    return [Check(span.space_of(np.concatenate([x for x, _ in parts], axis=1), noise=noise))]


def _of_b(sent: Sent, place: int) -> list[Check]:
    """Returns the checks by B, of keys and values where these are adapted, else of queries."""
    if "params" in sent.change:
        return []
    before, found = _readers(sent.start), list[Check]()
    for reader, leaves in _readers(sent.change).items():
        if "b" not in leaves or not np.any(leaves["b"][place]):
            continue
        if reader == "q_proj" and found:
            continue
        noise = span.rounding_of(before[reader]["b"][place], sent.num_steps)
        a = np.asarray(before[reader]["a"][place], np.float64)
        if sent.num_steps == 1 or "a" not in leaves or not np.any(leaves["a"][place]):
            found.append(Check(span.space_of(leaves["b"][place], noise=noise), a))
    return found


def _readers(tree: PyTree) -> dict[str, PyTree]:
    """Returns the leaves of the projections that read an attention's inputs, by name."""
    layers = tree.get("lora", tree.get("params", {})).get("layers", {})
    attention = layers.get("attention", {})
    return {name: attention[name] for name in _READERS if name in attention}
