"""Supervised fine-tuning on the server side: a LoRA adapter over a served model.

The adapter is trained by Adam on `objectives.sft_loss`, with gradients clipped to norm 1 and a step
size that falls to 0 in a straight line. Each step is computed between two batches of answers, so
that other requests wait for one step at most.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from fedjax_post.adapters.lora import add_lora, linear_layers
from fedjax_post.hub.tokenizer import pad_id_of
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.provider.served import SHORTEST, Served, adapted, room_of
from fedjax_post.provider.training_rows import Learned

PyTree = Any


class Recipe(NamedTuple):
    """How a provider trains: what a request cannot choose, and the values of "auto"."""

    rank: int = 8  # of LoRA; at most the width of the narrowest layer
    alpha: float = 16.0  # of LoRA
    learning_rate: float = 0.005  # first step size, times the request's multiplier
    num_epochs: int = 3
    batch_size: int = 8


class Schedule(NamedTuple):
    """What a request chooses."""

    num_epochs: int
    batch_size: int  # rows of a step
    multiplier: float  # of the recipe's step size
    seed: int

    def steps(self, num_rows: int) -> int:
        """Returns the number of steps over `num_rows` rows."""
        return self.num_epochs * -(-num_rows // self.batch_size)


def train(
    served: Served,
    rows: Sequence[Learned],
    schedule: Schedule,
    *,
    recipe: Recipe,
    name: str,
    watch: Callable[[int, float], None] = lambda step, loss: None,
) -> Served:
    """Returns the model with a new adapter, trained on rows, under another name.

    The same arguments give the same adapter. The last batch of an epoch may be smaller.

    Args:
      served: the base, without an adapter.
      rows: of tokens, at least one.
      schedule: length, batches, step size and seed.
      recipe: the adapter, and the step size that is multiplied.
      name: of the result.
      watch: called after each step with the number of steps so far and the loss, nats per
        learned token; it may raise an error to stop.
    """
    sizes = [size for _, *both in linear_layers(served.model).values() for size in both]
    rank = min(recipe.rank, *sizes)  # a tiny model has layers that are narrower
    alpha = recipe.alpha * rank / recipe.rank
    model, params = add_lora(served.model, jax.random.key(schedule.seed), rank=rank, alpha=alpha)
    state, total = (params, _tx().init(params)), schedule.steps(len(rows))
    shape = {"pad_id": pad_id_of(served.tokenizer), "context": served.context}
    for step, batch in enumerate(_batches(rows, schedule, **shape)):
        size = recipe.learning_rate * schedule.multiplier * (1 - step / total)
        given = model, state, batch, np.float32(size)
        state, loss = served.programs.compute(_step, *given)
        watch(step + 1, float(loss))
    return adapted(served, name, model, state[0])


def _step(model, state, batch, learning_rate):
    """Returns the parameters and the optimizer's state after a step, and the loss before it."""
    params, opt_state = state
    grads, metrics = jax.grad(sft_loss, has_aux=True)(params, model, batch, None)
    updates, opt_state = _tx().update(grads, opt_state, params)
    params = optax.apply_updates(params, optax.tree.scale(-learning_rate, updates))
    return (params, opt_state), metrics["loss"]


def _tx() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())


def _batches(
    rows: Sequence[Learned], schedule: Schedule, *, pad_id: int, context: int
) -> Iterator[PyTree]:
    """Returns an iterator over batches of one shape, in an order drawn for each epoch."""
    longest = max(len(row.ids) for row in rows)
    width = min(context, max(SHORTEST, room_of(longest)))
    for epoch in range(schedule.num_epochs):
        order = np.random.default_rng((schedule.seed, epoch)).permutation(len(rows))
        for start in range(0, len(rows), schedule.batch_size):
            tokens = np.full((schedule.batch_size, width), pad_id, np.int32)
            loss_mask = np.zeros(tokens.shape, bool)
            for place, i in enumerate(order[start : start + schedule.batch_size]):
                ids, prompt_length = rows[i]
                tokens[place, : len(ids)] = ids
                loss_mask[place, prompt_length : len(ids)] = True
            yield {"tokens": tokens, "loss_mask": loss_mask}
