"""DP-FedAvg around any algorithm: clipped values, a fixed denominator, Gaussian noise.

McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018,
arXiv:1710.06963, Algorithm 1 with the fixed-denominator estimator and weights of 1.

Each client's value is clipped as a whole and sent over the links of the algorithm; the server
divides the sum by the expected cohort size and adds noise before it looks at it. All that comes
after, momentum, control variates, what is sent down, is post-processing of noised values.

| what | whether it is covered, and why |
| --- | --- |
| a client that sends anything, or nothing finite | moves the sum by at most the chain's bound |
| a round in which nobody takes part | is noised like any other |
| what a client keeps: controls, a personal model | never leaves the client |
| a link that makes up for earlier losses | refused: what it sends has no bound |
| integers among what is sent | refused: no clip bounds them |
| a server that takes more than one mean value | refused: the other ones would not be noised |
| a value that is a place, and no change of one | refused: a fixed denominator would scale it |
| a server that divides by a mean of the clients' | refused: noise may bring that near zero |
| a method that is in the clients' weights | refused: all count 1 here |
| losses, accuracies and all else in records | not private: they are the simulator's view |

The server is trusted to add the noise: it sees the clients' messages, and whoever knows the seed
knows the noise. It is drawn from jax's generator in float32, which serves research and no
deployment (Mironov, "On Significance of the Least Significant Bits for Differential Privacy",
CCS 2012). All runs of a sweep draw the same.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core.aggregates import fixed_mean
from fedjax_post.core.algorithm import Algorithm, Around, PyTree, Server, Uplink
from fedjax_post.core.compose import check_may, check_one_value
from fedjax_post.core.uplinks import chain, clip

_STREAM = 0x6E6F6973  # noise has keys of its own, whatever else begins from the seed


class Noised(NamedTuple):
    """State of a server that adds noise."""

    rounds: jax.Array  # (), int32: so far
    inner: PyTree  # the state of the server below


def private(
    base: Algorithm, *, clip_norm: float, noise_multiplier: float, cohort_size: float, seed: int
) -> Algorithm:
    """Any algorithm whose server learns from a mean, private at the level of a client.

    With noise 0 and a clip that holds nothing it is the algorithm with clients of equal
    weight and a fixed denominator. What a round tells about one client is what one Gaussian
    mechanism of multiplier `noise_multiplier` on a Poisson sample tells, see
    `privacy.epsilon_of`; clients must be drawn so, or all take part.

    Args:
      base: the algorithm; its mean, or the rule in its place, gives way to a fixed mean.
      clip_norm: largest norm of a client's whole value, over all its leaves.
      noise_multiplier: deviation of the noise on the sum, over the norm that a client's
        decoded value can have: that of the clip, or what the links make of it.
      cohort_size: expected number of clients in a round, the denominator.
      seed: of the noise.

    Returns:
      An algorithm whose server also counts rounds. Messages and bytes are unchanged.

    Raises:
      ValueError: for numbers out of range, and where no such guarantee can be given.
    """
    for name, value in (("clip_norm", clip_norm), ("cohort_size", cohort_size)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if isinstance(noise_multiplier, int | float) and not 0 <= noise_multiplier < math.inf:
        raise ValueError(
            f"noise_multiplier must be finite and not negative, got {noise_multiplier}"
        )
    check_one_value(base, "noise")
    for what in (Around.LINK, Around.EQUAL, Around.SCALE, Around.NOISE):
        check_may(base, what, "noise")
    if base.uplink.first:
        raise ValueError("a private algorithm has its own clip; leave clip out of the links")
    uplink = _floats_only(chain(clip(clip_norm), base.uplink))
    if not math.isfinite(bound := uplink.bound(math.inf)):
        raise ValueError(
            "noise cannot cover this wire: a link sends what it lost in earlier rounds, so that "
            "nothing bounds what a client sends; leave error_feedback and ef21 out"
        )
    deviation = noise_deviation(noise_multiplier, bound=bound, cohort_size=cohort_size)
    return base._replace(
        uplink=uplink,
        aggregate=fixed_mean(cohort_size),
        server=_noisy(base.server, deviation, seed),
        refuses={
            **base.refuses,
            Around.STALE: "its noise is accounted for cohorts, each drawn anew",
            Around.RULE: "its noise covers a fixed mean and no other rule",
            Around.LINK: "its noise covers the links that it was made with",
        },
    )


def noise_deviation(noise_multiplier: Any, *, bound: float, cohort_size: float) -> Any:
    """Returns the deviation of the noise on each coordinate of the mean."""
    return noise_multiplier * bound / cohort_size


def _noisy(server: Server, deviation: Any, seed: int) -> Server:
    def init(shared):
        return Noised(jnp.zeros((), jnp.int32), server.init(shared))

    def update(value, state, shared):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), state.rounds)
        drawn = optax.tree.random_like(key, value, jax.random.normal)
        value = jax.tree.map(lambda x, z: x + deviation * z, value, drawn)
        shared, inner = server.update(value, state.inner, shared)
        return shared, Noised(state.rounds + 1, inner)

    return Server(init, update)


def _floats_only(link: Uplink) -> Uplink:
    """The link, refusing values with leaves that no clip bounds."""

    def init(like):
        others = {str(x.dtype) for x in jax.tree.leaves(like)}
        others = {name for name in others if not jnp.issubdtype(name, jnp.floating)}
        if others:
            raise ValueError(
                f"noise cannot stand around this algorithm: it sends {', '.join(sorted(others))} "
                "beside floating numbers, and no clip bounds these"
            )
        return link.init(like)

    return link._replace(init=init)
