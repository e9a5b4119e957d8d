"""Alignment of an emulator: the owner trains its middle on public text to match the target.

Offsite-Tuning (arXiv:2302.04870) distils all weights of the middle once, before it is given
away: `align`. FedBiOT (Wu et al., KDD 2024, arXiv:2406.17706) adds factors to the middle and
continues to train them in every round, with the federation's current ends: `aligner`. Both
minimise FedBiOT's loss

    |h - h'|^2 / |h|^2  +  kl_weight KL(p || p')

where h and p are the target's residual stream after the middle and its next-token
distribution, and h' and p' those of the emulator, both with the same ends. Offsite-Tuning has
the loss of the text itself in place of the second term. No private row is used.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fedjax_post.model.decoder import Decoder
from fedjax_post.model.emulator import Emulator, pick_layers, replace_middle
from fedjax_post.model.views import LanguageModel, merge_collections

PyTree = Any


class Gap(NamedTuple):
    """The difference of an emulator from its target on some text; 0 if they are equal."""

    activations: Float[Array, ""]  # |h - h'|^2 over |h|^2 after the middle
    outputs: Float[Array, ""]  # KL of the target's next-token distribution, nats per token


class Aligner(NamedTuple):
    """Updates the middle in the rounds of a federation; the owner runs both functions."""

    init: Callable  # () -> factors of the middle, leaves [layers kept, ...]
    update: Callable  # (ends, middle, round) -> middle


def gap(
    emulator: Emulator,
    target: LanguageModel,
    batch: dict[str, Array],
    *,
    ends: PyTree,
    middle: PyTree | None = None,
) -> Gap:
    """Returns the difference of an emulator from its target on a batch, with the same ends.

    Args:
      emulator: the emulator.
      target: the model that it was made from, with access to its weights.
      batch: "tokens" and "loss_mask" `[B, L]`, for packed rows also "segments"; only positions
        that the mask marks count.
      ends: see `Emulator.spread`; {} for unchanged ends.
      middle: see `Emulator.spread`.
    """
    true = _halves(target, emulator.plug(target, ends), batch, emulator.last)
    h, logits = jax.lax.stop_gradient(true)
    spread = emulator.spread(ends, middle)
    own_h, own_logits = _halves(emulator.model, spread, batch, emulator.last)
    counts = batch["loss_mask"].astype(jnp.float32)
    total = lambda x: jnp.sum(x * counts)
    apart = total(jnp.sum((h - own_h) ** 2, axis=-1)) / total(jnp.sum(h**2, axis=-1))
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(own_logits)
    divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return Gap(apart, total(divergence) / jnp.maximum(counts.sum(), 1))


def align(
    emulator: Emulator,
    target: LanguageModel,
    batches: dict[str, Array],
    *,
    tx: optax.GradientTransformation,
    num_steps: int,
    kl_weight: float = 1.0,
) -> tuple[Emulator, Float[Array, " num_steps"]]:
    """Returns the emulator with a middle distilled on public text, and the loss of every step.

    An emulator that drops no layers does not change: its loss and gradient are zero.

    Args:
      emulator: the emulator; its ends, embeddings and head do not change.
      target: the model that it was made from, with access to its weights.
      batches: leaves `[S, ...]` of batches as in `gap`; step i takes batch i modulo S.
      tx: optimizer of the middle's weights, float32.
      num_steps: steps, at least 1.
      kl_weight: weight of the second term, at least 0.

    Raises:
      ValueError: if the target is quantized.
    """
    if "quantized" in target.variables:
        raise ValueError("the middle's weights are quantized; align before quantizing the model")
    weights = emulator.model.variables["params"]["layers"]
    own = slice(emulator.first, len(emulator.layers) - emulator.last)
    middle = jax.tree.map(lambda leaf: leaf[own].astype(jnp.float32), weights)
    middle, losses = _descend(
        emulator,
        target,
        {},
        {"params": {"layers": middle}},
        batches,
        jnp.int32(0),
        rule=_Rule(tx, num_steps, kl_weight),
    )
    dtypes = jax.tree.map(
        lambda new, old: new.astype(old.dtype), middle["params"]["layers"], weights
    )
    return replace_middle(emulator, {"params": {"layers": dtypes}}), losses


def aligner(
    emulator: Emulator,
    target: LanguageModel,
    params: PyTree,
    batches: dict[str, Array],
    *,
    tx: optax.GradientTransformation,
    num_steps: int,
    kl_weight: float = 1.0,
) -> Aligner:
    """Returns the functions with which an owner trains factors of the middle in every round.

    For algorithms such as `fed_bi_ot`. Both models and the text are constants of the program
    that calls them.

    Args:
      emulator: the emulator.
      target: the model that it was made from, with access to its weights.
      params: factors of the whole target, new from `add_lora`; the middle starts from those of
        the kept layers.
      batches: leaves `[S, ...]`; a round continues with the batch after the last round's.
      tx: optimizer of the middle's factors, with a new state in every round.
      num_steps: steps per round, at least 1.
      kl_weight: weight of the second term, at least 0.
    """
    rule = _Rule(tx, num_steps, kl_weight)

    def update(ends, middle, round):
        return _descend(emulator, target, ends, middle, batches, round * num_steps, rule=rule)[0]

    return Aligner(lambda: emulator.middle(params), update)


class _Rule(NamedTuple):
    """Settings of the training of the middle; every field is static."""

    tx: optax.GradientTransformation
    num_steps: int
    kl_weight: float


@functools.partial(jax.jit, static_argnames=("rule",))
def _descend(emulator, target, ends, middle, batches, start, *, rule: _Rule):
    """Returns the middle after `num_steps` steps from batch `start` on, and their losses."""
    num_batches = batches["tokens"].shape[0]

    def loss(middle, batch):
        found = gap(emulator, target, batch, ends=ends, middle=middle)
        return found.activations + rule.kl_weight * found.outputs

    def step(carry, i):
        middle, opt_state = carry
        batch = jax.tree.map(lambda x: x[(start + i) % num_batches], batches)
        value, grads = jax.value_and_grad(loss)(middle, batch)
        updates, opt_state = rule.tx.update(grads, opt_state, middle)
        return (optax.apply_updates(middle, updates), opt_state), value

    carry = middle, rule.tx.init(middle)
    (middle, _), losses = jax.lax.scan(step, carry, jnp.arange(rule.num_steps))
    return middle, losses


def _halves(model: LanguageModel, params: PyTree, batch: dict[str, Array], last: int):
    """Returns the residual stream `[B, L, D]` before the last layers, and the logits."""
    merged = dataclasses.replace(model, variables=merge_collections(model.variables, params))
    num = model.config.num_layers
    below, above = (pick_layers(merged, range(*at)) for at in ((0, num - last), (num - last, num)))
    positions, segments = batch.get("positions"), batch.get("segments")
    # the lower half has no final norm, and the upper half adds no positions a second time
    lower = Decoder(dataclasses.replace(below.config, final_norm=False))
    upper = Decoder(dataclasses.replace(above.config, learned_positions=False))
    embedded = merged.embed({}, batch["tokens"])
    x: Any = lower.apply(below.variables, embedded, positions, segments, method=Decoder._hidden)
    where = {"positions": positions, "segments": segments}
    read = lambda decoder, x: decoder.embed_logits(x, **where)
    return x, upper.apply(above.variables, x, method=read)
