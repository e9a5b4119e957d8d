"""Fed-BBPT: a generator of prompts, trained by zeroth-order steps on a model's outputs.

Lin et al., "Efficient Federated Prompt Tuning for Black-box Large Pre-trained Models", 2023,
arXiv:2310.03123. Clients train a small generator g of prompts p = g(theta) on losses that the
model's interface returns, by a black-box optimizer, and the server averages the generators.
The paper is a framework with three instances, each with the generator and the optimizer of a
known method: images (BlackVIP, Oh et al., CVPR 2023, arXiv:2303.14773), text classification
(BDPL, which is `bdpl` here) and instructions. This is the first, the instance that learns a
generator of continuous prompts, with BlackVIP's optimizer, SPSA with gradient correction: with
v_i of random sign and |v_i| uniform in [1/2, 1],

    g = mean over some v of (f(theta + c v) - f(theta - c v)) / (2 c v_i)
    m <- b m + g,    theta <- theta - a (g + b m)
    a = a_1 / (1 + t)^0.4,    c = c_1 / t^0.2

Deviations: BlackVIP's generator makes a prompt in the shape of an image from the image and a
trained trigger. This one makes a soft prompt from trained triggers alone, the same for every
input, so that one prompt is deployed:

    p = p_0 + s U V,    U [P, R] starts from 0,    V [R, D] is random at the start

in units s, the deviation of p_0. t counts rounds, not steps, and m starts anew at each visit,
since clients keep nothing.
"""

from typing import NamedTuple

import optax

from fedjax_post.blackbox import soft_prompt
from fedjax_post.blackbox.spsa import spsa
from fedjax_post.core import access, aggregates, algorithm, local, world


class Held(NamedTuple):
    """What the server and every client hold; only the generators are sent."""

    start: algorithm.PyTree  # p_0, set up with the model
    generators: list[soft_prompt.Generator]  # by leaf of p_0


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
    """Federated averaging of prompt generators that are trained by SPSA.

    A step asks `2 * num_directions` times for each row of its batch.

    Args:
      loss_fn: `(params, model, batch, key) -> (loss, metrics)`.
      generator_rank: R, numbers that each token of the prompt is made from, at least 1.
      num_directions: differences that a step averages, at least 1.
      spsa_step: a_1, positive.
      spsa_radius: c_1, positive; in deviations of p_0.
      spsa_momentum: b, in [0, 1).
      weigh_fn: `(ClientData) -> ()`, the weight of a client.

    Returns:
      An algorithm that needs EMBEDDINGS and sends R (P + D) numbers each way. Clients keep no
      state. It deploys the prompt, shaped like the parameters.

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
        at = lambda made, *rest: loss_fn(soft_prompt.prompt_of(replica.start, made), *rest)
        radius = spsa_radius / (1.0 + ctx.round) ** 0.2
        trained = spsa(at, radius, num_directions=num_directions)
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
        init=lambda params: Held(params, soft_prompt.generators_for(params, generator_rank)),
        deploy=lambda model, replica, state=None: (model, soft_prompt.prompt_of(*replica)),
        access={"target": access.Access.EMBEDDINGS},
        value_like=lambda shared: shared.generators,
        read=lambda change, replica: algorithm.as_change(change, replica.generators),
    )
