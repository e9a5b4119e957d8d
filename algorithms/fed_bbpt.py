"""Fed-BBPT: a generator of prompts, trained by zeroth-order steps on what a model answers.

Lin et al., "Efficient Federated Prompt Tuning for Black-box Large Pre-trained Models", 2023,
arXiv:2310.03123. Clients train a small generator g of prompts p = g(theta) on losses that the
model's interface gives, by a black-box optimizer, and the server averages the generators.
The paper is a frame with three instances, each with the generator and the optimizer of a
known method: images (BlackVIP, Oh et al., CVPR 2023, arXiv:2303.14773), text classification
(BDPL, which is `bdpl` here) and instructions. This one is the instance that learns a
generator of continuous prompts, the first, with BlackVIP's optimizer, SPSA with gradient
correction: with v_i of random sign and |v_i| uniform in [1/2, 1],

    g = mean over some v of (f(theta + c v) - f(theta - c v)) / (2 c v_i)
    m <- b m + g,    theta <- theta - a (g + b m)
    a = a_1 / (1 + t)^0.4,    c = c_1 / t^0.2

Deviations: BlackVIP's generator makes an image-shaped prompt from the image and a trained
trigger. This one makes a soft prompt from trained triggers alone, the same for every input,
so that what is deployed is one prompt:

    p = p_0 + s U V,    U [P, R] from 0,    V [R, D] random to begin with

in units s, the deviation of p_0. t counts rounds, not steps, and m starts anew at each visit,
since clients keep nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core import access, aggregates, algorithm, forward, local, world


class Generator(NamedTuple):
    """What is trained and sent: theta, for one leaf of the prompt."""

    triggers: jax.Array  # U: [P, R]
    decoder: jax.Array  # V: [R, D]


class Held(NamedTuple):
    """What the server and every client hold; the generators alone travel."""

    start: algorithm.PyTree  # p_0, set up with the model
    generators: list[Generator]  # by leaf of p_0


def fed_bbpt(
    loss_fn: world.LossFn,
    *,
    generator_rank: int = 8,
    num_directions: int = 5,
    spsa_step: float = 1.0,
    spsa_radius: float = 0.5,
    spsa_momentum: float = 0.9,
    weigh_fn: world.WeighFn = local.by_tokens,
) -> algorithm.Algorithm:
    """Federated averaging of prompt generators that SPSA trains.

    A step asks for each row of its batch `2 * num_directions` times.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      generator_rank: R, numbers that a token of the prompt is made from, at least 1.
      num_directions: differences that a step averages, at least 1.
      spsa_step: a_1, positive.
      spsa_radius: c_1, positive; in deviations of p_0.
      spsa_momentum: b, in [0, 1).
      weigh_fn: `(ClientData) -> ()`, how much a client counts.

    Returns:
      An algorithm that needs EMBEDDINGS and sends R (P + D) numbers each way. Clients keep no
      state. What is deployed is the prompt, shaped like the parameters.

    Raises:
      ValueError: if a setting is out of its range.
    """
    if min(generator_rank, num_directions) < 1 or min(spsa_step, spsa_radius) <= 0:
        raise ValueError(
            "generator_rank and num_directions must be at least 1 and spsa_step and spsa_radius "
            f"positive, got {generator_rank}, {num_directions}, {spsa_step} and {spsa_radius}"
        )
    if not 0 <= spsa_momentum < 1:
        raise ValueError(f"spsa_momentum must be in [0, 1), got {spsa_momentum}; BlackVIP has 0.9")
    gain = lambda round: spsa_step / (2.0 + round) ** 0.4
    tx = optax.chain(
        optax.trace(spsa_momentum, nesterov=True), optax.scale(-1), local.scale_by_round(gain)
    )

    def update(model, replica, state, data, ctx):
        at = lambda generators, *rest: loss_fn(prompt_of(replica.start, generators), *rest)
        radius = spsa_radius / (1.0 + ctx.round) ** 0.2
        trained = spsa(at, radius, num_directions)
        end, _, metrics = local.local_steps(trained, tx, replica.generators, model, data, ctx)
        change = optax.tree.sub(end, replica.generators)
        return algorithm.Upload(change, weigh_fn(data)), state, metrics

    def serve(mean, state, shared):
        return shared._replace(generators=optax.tree.add(shared.generators, mean)), state

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), serve),
        aggregate=aggregates.weighted_mean(),
        downlink=algorithm.Downlink(
            lambda shared: shared,
            lambda shared: shared.generators,
            lambda generators, replica: replica._replace(generators=generators),
        ),
        init=lambda params: Held(params, generators_for(params, generator_rank)),
        deploy=lambda model, replica, state=None: (model, prompt_of(*replica)),
        access={"target": access.Access.EMBEDDINGS},
        value_like=lambda shared: shared.generators,
        read=lambda change, replica: algorithm.as_change(change, replica.generators),
    )


def generators_for(start: algorithm.PyTree, rank: int) -> list[Generator]:
    """Generators whose prompt is `start`, the same for everybody."""

    def make(key, leaf):
        size = leaf.shape[-1]
        decoder = jax.random.normal(key, (rank, size)) / rank**0.5
        return Generator(jnp.zeros((leaf.size // size, rank)), decoder)

    leaves = jax.tree.leaves(start)
    return list(map(make, jax.random.split(jax.random.key(0), len(leaves)), leaves))


def prompt_of(start: algorithm.PyTree, generators: list[Generator]) -> algorithm.PyTree:
    """p_0 + s U V, shaped like p_0; a p_0 without any variation counts as having deviation 1."""
    leaves, treedef = jax.tree.flatten(start)

    def add(leaf, generator):
        deviation = leaf.std()
        moved = (generator.triggers @ generator.decoder).reshape(leaf.shape)
        return leaf + jnp.where(deviation > 0, deviation, 1.0) * moved

    return jax.tree.unflatten(treedef, map(add, leaves, generators))


def spsa(loss_fn: world.LossFn, radius: jax.Array, num_directions: int) -> local.LossFn:
    """A loss whose gradient is SPSA's estimate, one difference after another."""
    slope_fn = forward.central_difference(loss_fn, radius)

    def estimate(params, model, batch, key):
        loss_key, *keys = jax.random.split(key, num_directions + 1)

        def probe(v_key):
            v = optax.tree.random_like(v_key, params, sampler=_segmented)
            slope, metrics = slope_fn(params, v, model, batch, loss_key)
            return jax.tree.map(lambda v: slope / v, v), metrics

        estimates, metrics = jax.lax.map(probe, jnp.stack(keys))
        mean = jax.tree.map(lambda x: x.mean(0), estimates)
        total = jax.tree.map(lambda x: x.sum(0), metrics)
        return mean, algorithm.mean_of(total, num_directions)

    return forward.from_estimate(estimate)


def _segmented(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    """Numbers of random sign, whose size is uniform in [1/2, 1]: their inverses have a variance."""
    size_key, sign_key = jax.random.split(key)
    sizes = jax.random.uniform(size_key, shape, dtype, 0.5, 1.0)
    return sizes * jax.random.rademacher(sign_key, shape, dtype)
