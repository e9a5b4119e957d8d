"""In-context examples: each client shows the model a few of its own rows; nothing is shared.

Brown et al., "Language Models are Few-Shot Learners", NeurIPS 2020, arXiv:2005.14165: the
baseline of every other use of a closed model. It matters which examples are shown, and to choose
them takes rows to ask about (Perez et al., "True Few-Shot Learning with Language Models",
NeurIPS 2021, arXiv:2105.11447). A client therefore draws several sets of n of its rows, asks
about its other rows after each set, and keeps the set of least loss; the set that it kept at its
last visit is one of the candidates.

Every prompt begins with the shots, questions and answers alike: they are sent with every single
question to wherever the model runs. `tokens_sent` and `labels_sent` count them in this way, and
`places_sent` the rest of the prompt: what all clients share, and what is between the shots.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_post.blackbox import discrete, shots
from fedjax_post.core import access, aggregates, algorithm, world


class Kept(NamedTuple):
    """What a client keeps."""

    shown: shots.Shown
    chosen: jax.Array  # (), bool: whether there is a set yet


def in_context(
    loss_fn: world.LossFn,
    *,
    separator: world.Separator,
    dropped: world.Specials,
    num_shots: int = 8,
    num_sets: int = 4,
    shots_length: int = 96,
) -> algorithm.Algorithm:
    """Puts the most helpful of a client's own examples after the prompt that all clients share.

    A visit asks about every row that is not shown, `num_sets` times at the first visit and once
    more at later ones. `blackbox.shots.lay_out` lays the examples out.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`, over a prompt of tokens and
        batches of "tokens" and "loss_mask"; its metrics count "queries" and "tokens_sent".
      separator: (), int32: the token after an example, such as a line break.
      dropped: int32 `[D]`: tokens that are not shown, such as bos and eos.
      num_shots: n, rows of a set, at least 1.
      num_sets: sets that a visit draws, at least 1.
      shots_length: tokens that the examples take in the prompt, however many there are.

    Returns:
      An algorithm that needs TEXT and sends nothing to the federation. A client keeps its
      examples. Deployed without a client's state it is the prompt that all clients share.

    Raises:
      ValueError: if a number is below 1.
    """
    numbers = {"num_shots": num_shots, "num_sets": num_sets, "shots_length": shots_length}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    layout = {"separator": separator, "dropped": dropped}

    def init(model, replica, key):
        blank = jnp.full(shots_length, separator, jnp.int32)
        return Kept(shots.Shown(blank, jnp.float32(0), jnp.float32(0)), jnp.array(False))

    def draw(rows, key):
        picked = shots.draw_rows(rows, key, num=num_shots)
        return Kept(shots.lay_out(picked, **layout, width=shots_length), jnp.array(True))

    def update(model, replica, kept, data, ctx):
        taken = jnp.asarray(data.step_mask)[:, None, None]
        batches = {name: jnp.asarray(data.batches[name]) for name in ("tokens", "loss_mask")}
        batches["loss_mask"] = batches["loss_mask"].astype(bool) & taken
        rows = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), batches)

        def ask(one):
            prompt = _join(replica, one)
            unseen = ~shots.is_shown(rows, one.shown.tokens, **layout) & one.chosen
            mask = batches["loss_mask"] & unseen.reshape(*taken.shape[:1], -1, 1)
            asked = data._replace(batches=data.batches | {"loss_mask": mask})
            losses, metrics = discrete.ask_visit(loss_fn, prompt[None], model, asked, ctx)
            return jnp.where(one.chosen, losses[0], jnp.inf), _with_shots(
                metrics, prompt, one.shown
            )

        drawn = jax.vmap(draw, (None, 0))(rows, jax.random.split(ctx.key, num_sets))
        sets = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), kept, drawn)
        losses, metrics = jax.lax.map(ask, sets)
        best = jax.tree.map(lambda x: x[jnp.argmin(losses)], (sets, metrics))
        sums = {name: metrics[name].sum() for name in algorithm.SUMMED}
        weight = discrete.finite_weight(jnp.float32(1), losses.min())
        return algorithm.Upload((), weight), best[0], best[1] | sums

    def deploy(model, replica, kept=None):
        return model, replica if kept is None else discrete.with_tokens(_join(replica, kept))

    return algorithm.Algorithm(
        client=algorithm.Client(init, update),
        server=algorithm.idle(),
        aggregate=aggregates.weighted_mean(),
        downlink=algorithm.nothing(),
        deploy=deploy,
        access={"target": access.Access.TEXT},
        value_like=lambda shared: (),
        refuses=dict.fromkeys(algorithm.Around, "nothing is sent"),
    )


def _with_shots(
    metrics: algorithm.Metrics, prompt: jax.Array, shown: shots.Shown
) -> algorithm.Metrics:
    """Returns the metrics of questions, with what was sent in front of each."""
    queries = metrics["queries"]
    return metrics | {
        "tokens_sent": metrics["tokens_sent"] + queries * shown.num_tokens,
        "labels_sent": queries * shown.num_labels,
        "places_sent": queries * (len(prompt) - shown.num_tokens),
    }


def _join(replica: algorithm.PyTree, kept: Kept) -> jax.Array:
    return jnp.concatenate([discrete.tokens_of(replica), kept.shown.tokens])
