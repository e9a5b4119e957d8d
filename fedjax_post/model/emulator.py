"""An owner's stand-in for a closed model: its true ends, and a middle with fewer layers.

Xiao et al., "Offsite-Tuning: Transfer Learning without Full Model", 2023, arXiv:2302.04870.
The owner hands out the first and last layers as they are (the *adapter*, which is trained),
and in the place of those between them an evenly spaced choice (the *emulator* in the narrow
sense, which is frozen). What was trained goes back into the model that nobody else has seen.

    target    0 1 | 2 3 4 5 6 7 8 9 | 10 11
    stand-in  0 1 | 2       5     9 | 10 11      first = last = 2, keep_every = 3

Embeddings, final norm and head are those of the target and frozen. How the middle is made
more alike: `model/alignment.py`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_post.core.access import Access
from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.views import LanguageModel, merge_collections

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Emulator:
    """A stand-in, and the way back from it.

    What the federation trains are the *ends*: `{"lora": tree}` or `{"params": tree}` whose
    leaves, all below "layers", are `[first + last, ...]`. They hold no middle, so that it can
    be neither trained nor sent.
    """

    model: LanguageModel  # what a client runs
    layers: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # of the target
    num_layers: int = dataclasses.field(metadata={"static": True})  # of the target
    first: int = dataclasses.field(metadata={"static": True})  # true layers in front
    last: int = dataclasses.field(metadata={"static": True})  # true layers behind

    @property
    def access(self) -> Access:
        """The tier that the stand-in is open to."""
        return self.model.access

    def restrict(self, tier: Access) -> "Emulator":
        """The same stand-in, open to `tier` only."""
        view: Any = self.model.restrict(tier)
        return dataclasses.replace(self, model=view)

    def ends(self, params: PyTree) -> PyTree:
        """Returns the ends of the target's `params`, leaves `[num_layers, ...]` below "layers".

        What does not belong to a layer is left out.
        """
        behind = self.num_layers - self.last
        pick = lambda leaf: jnp.concatenate([leaf[: self.first], leaf[behind:]])
        return {name: jax.tree.map(pick, _of_layers(tree)) for name, tree in params.items()}

    def middle(self, params: PyTree) -> PyTree:
        """Returns the kept layers between the ends of the target's `params`, see `ends`."""
        kept = jnp.array(self.layers[self.first : len(self.layers) - self.last])
        return {n: jax.tree.map(lambda x: x[kept], _of_layers(t)) for n, t in params.items()}

    def spread(self, ends: PyTree, middle: PyTree | None = None) -> PyTree:
        """Returns the stand-in's `params` of its ends.

        Between them, where `middle` says nothing, stand the stand-in's own weights, and
        factors that are zero and hence change nothing.

        Args:
          ends: leaves `[first + last, ...]`.
          middle: leaves `[layers kept, ...]`; None is none.
        """
        at = len(self.layers), self.first, self.last
        return _join(ends, middle or {}, self.model.variables, at)

    def plug(self, target: LanguageModel, ends: PyTree) -> PyTree:
        """Returns the target's `params` of trained ends: all other layers as they were.

        Raises:
          ValueError: if the target is not the one that the stand-in was made of, or the ends
            are no ends.
        """
        frozen = getattr(target, "variables", {})  # factors go into a sealed one too
        depth = {leaf.shape[0] for leaf in jax.tree.leaves(_of_layers(frozen.get("params", {})))}
        if depth - {self.num_layers}:
            raise ValueError(
                f"the stand-in is of a model of {self.num_layers} layers, this one has "
                f"{depth.pop()}; plug into the model that it was made of"
            )
        return _join(ends, {}, frozen, (self.num_layers, self.first, self.last))


def emulate(model: LanguageModel, *, first: int, last: int, keep_every: int) -> Emulator:
    """Returns an owner's stand-in for a model.

    The middle keeps one layer in `keep_every`, rounded up, as evenly spaced as whole numbers
    allow and with both its ends among them, as in the paper's code; of one layer, the one in
    the centre. With keep_every = 1 nothing is dropped.

    Args:
      model: the target, with `lora_scale` on all layers where factors are to be trained.
      first: true layers in front, at least 0.
      last: true layers behind, at least 1; first + last leaves a middle.
      keep_every: at least 1.

    Raises:
      ValueError: for layers that are not there, a target whose adapter sits on some layers
        only.
    """
    num_layers = model.config.num_layers
    if first < 0 or last < 1 or first + last >= num_layers:
        raise ValueError(
            f"first={first} (at least 0) and last={last} (at least 1) true layers must leave a "
            f"middle of the model's {num_layers} layers"
        )
    if keep_every < 1:
        raise ValueError(f"keep_every must be at least 1, got {keep_every}; 1 keeps all layers")
    if model.lora_layers is not None:
        raise ValueError(
            f"the target's adapter sits on layers {model.lora_layers[0]} to "
            f"{model.lora_layers[1] - 1} only; leave `layers` out, the stand-in chooses them"
        )
    middle = num_layers - first - last
    between = choose_evenly(middle, -(-middle // keep_every))
    layers = (
        *range(first),
        *(first + i for i in between),
        *range(num_layers - last, num_layers),
    )
    return Emulator(pick_layers(model, layers), layers, num_layers, first, last)


def choose_evenly(num_layers: int, num_kept: int) -> tuple[int, ...]:
    """Returns which layers stay: evenly spaced, both ends among them; of one, the centre."""
    if num_kept == 1:
        return ((num_layers - 1) // 2,)
    stride = (num_layers - 1) / (num_kept - 1)
    return tuple(round(i * stride) for i in range(num_kept))


def pick_layers(model: LanguageModel, layers: Sequence[int]) -> LanguageModel:
    """Returns the model of some layers of another, with the windows and positions they had."""
    chosen = jnp.array(layers)
    variables = {
        name: tree | jax.tree.map(lambda leaf: leaf[chosen], _of_layers(tree))
        for name, tree in model.variables.items()
    }
    config = pick_config(model.config, layers)
    return dataclasses.replace(model, variables=variables, config=config)


def pick_config(config: DecoderConfig, layers: Sequence[int]) -> DecoderConfig:
    """Returns the config of some layers of another; those that differ keep their kind."""
    where = lambda kind: tuple(i for i, layer in enumerate(layers) if layer in kind)
    return dataclasses.replace(
        config,
        num_layers=len(layers),
        sliding_layers=where(config.sliding_layers),
        no_rope_layers=where(config.no_rope_layers),
        source="",  # the published file describes another model
    )


def emulator_bytes(emulator: Emulator) -> int:
    """Returns the bytes of weights that the owner hands out, once, before the first round."""
    held = {n: tree for n, tree in emulator.model.variables.items() if n != "lora_scale"}
    return sum(leaf.nbytes for leaf in jax.tree.leaves(held))


def merged(emulator: Emulator, middle: PyTree) -> Emulator:
    """Returns the stand-in with other weights in its middle, leaves `[layers kept, ...]`."""
    model, at = emulator.model, (len(emulator.layers), emulator.first, emulator.last)
    weights = _join({}, middle, model.variables, at)
    variables = merge_collections(model.variables, weights)
    return dataclasses.replace(emulator, model=dataclasses.replace(model, variables=variables))


def _of_layers(tree: PyTree) -> PyTree:
    return {"layers": tree["layers"]} if "layers" in tree else {}


def _join(ends: PyTree, middle: PyTree, frozen: PyTree, at: tuple[int, int, int]) -> PyTree:
    """Stacks of all layers, of trees of dicts; what neither part holds is frozen, or zero."""
    num, first, last = at
    if isinstance(ends, dict) or isinstance(middle, dict):
        found = dict.fromkeys((*(ends or {}), *(middle or {})))
        below = lambda tree, name: (tree or {}).get(name)
        return {n: _join(below(ends, n), below(middle, n), below(frozen, n), at) for n in found}
    for part, size in ((ends, first + last), (middle, num - first - last)):
        if part is not None and part.shape[:1] != (size,):
            raise ValueError(
                f"what is trained must have {size} layers, {first} in front and {last} behind, "
                f"got a leaf of shape {list(part.shape)}; start from Emulator.ends(params)"
            )
    like = middle if ends is None else ends
    if frozen is None:
        frozen = jnp.zeros((num, *like.shape[1:]))
    frozen = frozen.astype(like.dtype)
    front = (frozen if ends is None else ends)[:first]
    back = frozen[num - last :] if ends is None else ends[first:]
    between = frozen[first : num - last] if middle is None else middle
    return jnp.concatenate([front, between, back])
