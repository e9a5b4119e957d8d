"""Emulators: an owner's substitute for a closed model, with the same ends and fewer layers.

Xiao et al., "Offsite-Tuning: Transfer Learning without Full Model", 2023, arXiv:2302.04870.
The owner gives away the first and last layers unchanged (the *adapter*, which is trained), and
an evenly spaced choice of the layers between them (the *emulator* in the narrow sense, which is
frozen). The trained layers are then put back into the complete model, which only the owner has.

    target    0 1 | 2 3 4 5 6 7 8 9 | 10 11
    emulator  0 1 | 2       6     9 | 10 11      first = last = 2, keep_every = 3

Embeddings, final norm and head are those of the target and frozen. `model/alignment.py` trains
the middle to be closer to the target's.
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
    """An emulator, with functions that convert parameters from and to the target.

    The federation trains the *ends*: `{"lora": tree}` or `{"params": tree}` whose leaves, all
    below "layers", are `[first + last, ...]`. They do not contain the middle, so that it can be
    neither trained nor sent.
    """

    model: LanguageModel  # what a client runs
    layers: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # of the target
    num_layers: int = dataclasses.field(metadata={"static": True})  # of the target
    first: int = dataclasses.field(metadata={"static": True})  # layers before the middle
    last: int = dataclasses.field(metadata={"static": True})  # layers after the middle

    @property
    def access(self) -> Access:
        """The access that the emulator grants."""
        return self.model.access

    def restrict(self, tier: Access) -> "Emulator":
        """Returns the same emulator with access `tier` only."""
        view: Any = self.model.restrict(tier)
        return dataclasses.replace(self, model=view)

    def ends(self, params: PyTree) -> PyTree:
        """Returns the ends of the target's `params`, whose leaves are `[num_layers, ...]`.

        Parameters outside "layers" are left out.
        """
        after = self.num_layers - self.last
        pick = lambda leaf: jnp.concatenate([leaf[: self.first], leaf[after:]])
        return {name: jax.tree.map(pick, _of_layers(tree)) for name, tree in params.items()}

    def middle(self, params: PyTree) -> PyTree:
        """Returns the kept layers between the ends of the target's `params`, see `ends`."""
        numbers = jnp.array(self.layers[self.first : len(self.layers) - self.last])
        return {n: jax.tree.map(lambda x: x[numbers], _of_layers(t)) for n, t in params.items()}

    def spread(self, ends: PyTree, middle: PyTree | None = None) -> PyTree:
        """Returns the emulator's `params`, made from its ends and its middle.

        Where `middle` has no entry, the middle consists of the emulator's own weights, and of
        factors that are zero and have no effect.

        Args:
          ends: leaves `[first + last, ...]`.
          middle: leaves `[layers kept, ...]`; None is none.
        """
        at = len(self.layers), self.first, self.last
        return _join(ends, middle or {}, self.model.variables, at)

    def plug(self, target: LanguageModel, ends: PyTree) -> PyTree:
        """Returns the target's `params` with trained ends; the other layers are unchanged.

        Raises:
          ValueError: if the emulator was made from a model of another depth, or `ends` has
            other shapes than those of `Emulator.ends`.
        """
        frozen = getattr(target, "variables", {})  # {} of a sealed target, which accepts factors
        depth = {leaf.shape[0] for leaf in jax.tree.leaves(_of_layers(frozen.get("params", {})))}
        if depth - {self.num_layers}:
            raise ValueError(
                f"the emulator was made from a model of {self.num_layers} layers, this one has "
                f"{depth.pop()}; plug into the model that it was made from"
            )
        return _join(ends, {}, frozen, (self.num_layers, self.first, self.last))


def emulate(model: LanguageModel, *, first: int, last: int, keep_every: int) -> Emulator:
    """Returns an emulator of a model.

    The middle keeps one in `keep_every` layers, rounded up. They are spaced as evenly as whole
    numbers allow and include the first and last layer of the middle, as in the paper's code; a
    single kept layer is the one in the centre. With keep_every = 1 no layer is dropped.

    >>> from fedjax_post.model.emulator import emulate
    >>> from fedjax_post.testing.models import tiny_model
    >>> emulate(tiny_model(num_layers=12), first=2, last=2, keep_every=3).layers
    (0, 1, 2, 6, 9, 10, 11)

    Args:
      model: the target, with `lora_scale` on all layers if factors are to be trained.
      first: layers before the middle, at least 0.
      last: layers after the middle, at least 1; first + last must leave a middle.
      keep_every: at least 1.

    Raises:
      ValueError: if the layers do not fit the model, or its adapter is on some layers only.
    """
    num_layers = model.config.num_layers
    if first < 0 or last < 1 or first + last >= num_layers:
        raise ValueError(
            f"first={first} (at least 0) and last={last} (at least 1) layers must leave a "
            f"middle of the model's {num_layers} layers; give smaller numbers"
        )
    if keep_every < 1:
        raise ValueError(f"keep_every must be at least 1, got {keep_every}; 1 keeps all layers")
    if model.lora_layers is not None:
        raise ValueError(
            f"the target's adapter is on layers {model.lora_layers[0]} to "
            f"{model.lora_layers[1] - 1} only; leave `layers` out, the emulator chooses them"
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
    """Returns the layers to keep: evenly spaced with both ends, or the centre if it is one."""
    if num_kept == 1:
        return ((num_layers - 1) // 2,)
    stride = (num_layers - 1) / (num_kept - 1)
    return tuple(round(i * stride) for i in range(num_kept))


def pick_layers(model: LanguageModel, layers: Sequence[int]) -> LanguageModel:
    """Returns the model of some layers of another, each with its own windows and positions."""
    chosen = jnp.array(layers)
    variables = {
        name: tree | jax.tree.map(lambda leaf: leaf[chosen], _of_layers(tree))
        for name, tree in model.variables.items()
    }
    config = pick_config(model.config, layers)
    return dataclasses.replace(model, variables=variables, config=config)


def pick_config(config: DecoderConfig, layers: Sequence[int]) -> DecoderConfig:
    """Returns the config of some layers of a model; each layer keeps its kind."""
    where = lambda kind: tuple(i for i, layer in enumerate(layers) if layer in kind)
    return dataclasses.replace(
        config,
        num_layers=len(layers),
        sliding_layers=where(config.sliding_layers),
        no_rope_layers=where(config.no_rope_layers),
        source="",  # the published file describes another model
    )


def emulator_bytes(emulator: Emulator) -> int:
    """Returns the bytes of weights that the owner sends once, before the first round."""
    sent = {n: tree for n, tree in emulator.model.variables.items() if n != "lora_scale"}
    return sum(leaf.nbytes for leaf in jax.tree.leaves(sent))


def replace_middle(emulator: Emulator, middle: PyTree) -> Emulator:
    """Returns the emulator with other weights in its middle, leaves `[layers kept, ...]`."""
    model, at = emulator.model, (len(emulator.layers), emulator.first, emulator.last)
    weights = _join({}, middle, model.variables, at)
    variables = merge_collections(model.variables, weights)
    return dataclasses.replace(emulator, model=dataclasses.replace(model, variables=variables))


def _of_layers(tree: PyTree) -> PyTree:
    return {"layers": tree["layers"]} if "layers" in tree else {}


def _join(ends: PyTree, middle: PyTree, frozen: PyTree, at: tuple[int, int, int]) -> PyTree:
    """Returns stacks of all layers, leaf by leaf; parts that are missing are frozen or zero."""
    num, first, last = at
    if isinstance(ends, dict) or isinstance(middle, dict):
        found = dict.fromkeys((*(ends or {}), *(middle or {})))
        below = lambda tree, name: (tree or {}).get(name)
        return {n: _join(below(ends, n), below(middle, n), below(frozen, n), at) for n in found}
    for part, size in ((ends, first + last), (middle, num - first - last)):
        if part is not None and part.shape[:1] != (size,):
            raise ValueError(
                f"the trained parameters must have {size} layers, {first} before and {last} after "
                f"the middle, got a leaf of shape {list(part.shape)}; use Emulator.ends(params)"
            )
    like = middle if ends is None else ends
    if frozen is None:
        frozen = jnp.zeros((num, *like.shape[1:]))
    frozen = frozen.astype(like.dtype)
    front = (frozen if ends is None else ends)[:first]
    back = frozen[num - last :] if ends is None else ends[first:]
    between = frozen[first : num - last] if middle is None else middle
    return jnp.concatenate([front, between, back])
