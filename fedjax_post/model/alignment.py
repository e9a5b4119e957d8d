"""What an owner does on public text, so that a stand-in's middle acts like the one it replaces.

Offsite-Tuning (arXiv:2302.04870) distils all weights of the middle once, before it is handed
out: `align`. FedBiOT (Wu et al., KDD 2024, arXiv:2406.17706) puts factors on the middle and
goes on with them in every round, under the ends that the federation has reached: `aligner`.
Both lessen

    |h - h'|^2 / |h|^2  +  kl_weight KL(p || p')

with h, p the target's residual stream behind the middle and its next-token distribution, and
h', p' the stand-in's, both with the same ends: FedBiOT's loss. Offsite-Tuning's has the loss of
the text itself in the place of the second term. No private row is looked at.
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
from fedjax_post.model.emulator import Emulator, merged, pick_layers
from fedjax_post.model.views import LanguageModel, merge_collections

PyTree = Any


class Gap(NamedTuple):
    """How far a stand-in is from its target on some text; both are 0 if they act alike."""

    activations: Float[Array, ""]  # |h - h'|^2 over |h|^2 behind the middle
    outputs: Float[Array, ""]  # KL of the target's next-token distribution, nats per token


class Aligner(NamedTuple):
    """How the middle goes on in a federation's rounds; both functions are the owner's."""

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
    """Returns how far a stand-in is from its target on a batch, with the same ends in both.

    Args:
      emulator: the stand-in.
      target: the model that it was made of, open to its owner.
      batch: "tokens" and "loss_mask" `[B, L]`, for packed rows also "segments"; only what the
        mask marks counts.
      ends: see `Emulator.spread`; {} for the ends as they are.
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
    """Returns the stand-in with a middle distilled on public text, and the loss of every step.

    A stand-in that drops nothing stays as it is: its loss and gradient are zero.

    Args:
      emulator: the stand-in; ends, embeddings and head stay true.
      target: the model that it was made of, open to its owner.
      batches: leaves `[S, ...]` of a `gap`'s batch; step i takes batch i modulo S.
      tx: optimizer of the middle's weights, float32.
      num_steps: steps, at least 1.
      kl_weight: weight of the second term, at least 0.

    Raises:
      ValueError: if the target's weights are codes.
    """
    if "quantized" in target.variables:
        raise ValueError("the middle's weights are codes; align before the model is quantized")
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
    return merged(emulator, {"params": {"layers": dtypes}}), losses


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
    """Returns how an owner brings factors of the middle up to date in every round.

    For algorithms such as `fed_bi_ot`. Both models and the text are constants of the program
    that calls it.

    Args:
      emulator: the stand-in.
      target: the model that it was made of, open to its owner.
      params: factors of the whole target, fresh from `add_lora`; those of the kept layers are
        where the middle starts.
      batches: leaves `[S, ...]`; a round goes on with the batch behind the last one's.
      tx: optimizer of the middle's factors, fresh in every round.
      num_steps: steps a round, at least 1.
      kl_weight: weight of the second term, at least 0.
    """
    rule = _Rule(tx, num_steps, kl_weight)

    def update(ends, middle, round):
        return _descend(emulator, target, ends, middle, batches, round * num_steps, rule=rule)[0]

    return Aligner(lambda: emulator.middle(params), update)


class _Rule(NamedTuple):
    """How the middle descends; every field is static."""

    tx: optax.GradientTransformation
    num_steps: int
    kl_weight: float


@functools.partial(jax.jit, static_argnames=("rule",))
def _descend(emulator, target, ends, middle, batches, start, *, rule: _Rule):
    """The middle after some steps from batch `start` on, and their losses."""
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
    """The residual stream `[B, L, D]` before the last layers, and the logits behind them."""
    held = dataclasses.replace(model, variables=merge_collections(model.variables, params))
    num = model.config.num_layers
    below, above = (pick_layers(held, range(*at)) for at in ((0, num - last), (num - last, num)))
    positions, segments = batch.get("positions"), batch.get("segments")
    # neither normalised nor, a second time, given positions
    lower = Decoder(dataclasses.replace(below.config, final_norm=False))
    upper = Decoder(dataclasses.replace(above.config, learned_positions=False))
    embedded = held.embed({}, batch["tokens"])
    x: Any = lower.apply(below.variables, embedded, positions, segments, method=Decoder._hidden)
    where = {"positions": positions, "segments": segments}
    read = lambda decoder, x: decoder.embed_logits(x, **where)
    return x, upper.apply(above.variables, x, method=read)
