"""DP-FedAvg for any algorithm: clipped values, a fixed denominator, Gaussian noise.

McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018,
arXiv:1710.06963, Algorithm 1 with the fixed-denominator estimator and weights of 1.

Each client's value is clipped as a whole and sent over the links of the algorithm. The server
divides the sum by the expected cohort size and adds noise before it uses the result. Everything
after this step (momentum, control variates, what is sent to clients) is post-processing.

| case | treatment and reason |
| --- | --- |
| a client sends any value, finite or not | it changes the sum by at most the chain's bound |
| nobody takes part in a round | noise is added as in any other round |
| state of a client: controls, a personal model | it never leaves the client |
| a link that sends what earlier rounds lost | refused: its values have no bound |
| a value contains integers | refused: clipping does not bound them |
| the server takes more than one mean value | refused: the other values would not be noised |
| a value is a position, not a change | refused: a fixed denominator would scale it |
| the server divides by a mean of the clients' values | refused: noise may bring it near zero |
| the method works through the clients' weights | refused: every client counts 1 here |
| losses, accuracies and everything else in records | not private: only the simulator sees them |

The server is trusted to add the noise: it sees the clients' messages, and anyone who knows the
seed knows the noise. The noise is drawn from jax's generator in float32, which is suitable for
research but not for deployment (Mironov, "On Significance of the Least Significant Bits for
Differential Privacy", CCS 2012). All runs of a sweep draw the same noise.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core.aggregates import fixed_mean
from fedjax_post.core.algorithm import Algorithm, Around, PyTree, Server, Uplink
from fedjax_post.core.compose import check_may, check_one_value
from fedjax_post.core.uplinks import chain, clip
from fedjax_post.privacy.adaptive import Marked, follow_quantile, split_noise
from fedjax_post.privacy.correlated import Correlation, independent

_STREAM = 0x6E6F6973  # separates the keys of noise from other keys of the same seed


class Noised(NamedTuple):
    """State of a server that adds noise."""

    rounds: jax.Array  # (), int32: rounds so far
    inner: PyTree  # the state of the algorithm's own server
    memory: PyTree = ()  # of correlated noise


def private(
    base: Algorithm,
    *,
    clip_norm: float,
    noise_multiplier: float,
    cohort_size: float,
    seed: int,
    clip_quantile: float | None = None,
    correlation: Correlation | None = None,
) -> Algorithm:
    """Returns the algorithm with differential privacy at the level of a client.

    The server must learn from one mean value. With noise 0 and a clip that changes nothing, it
    is the algorithm with clients of equal weight and a fixed denominator. A round reveals as much
    about one client as one Gaussian mechanism of multiplier `noise_multiplier` on the clients that
    are drawn. `privacy.accounts` has the account of each way to draw them.

    >>> import optax
    >>> from fedjax_post.algorithms.fed_avg import fed_avg
    >>> from fedjax_post.privacy import private
    >>> base = fed_avg(lambda params, model, batch, key: (0.0, {}), optax.sgd(0.1))
    >>> algorithm = private(base, clip_norm=1.0, noise_multiplier=0.5, cohort_size=8, seed=0)
    >>> bool(1 <= algorithm.uplink.bound(float("inf")) < 1.01)
    True

    Args:
      base: the algorithm; a fixed mean replaces its aggregate.
      clip_norm: largest norm of a client's whole value, over all its leaves; with
        `clip_quantile`, that of the first round.
      noise_multiplier: standard deviation of the noise on the sum, divided by the largest norm
        of a client's decoded value: `clip_norm`, or the bound that the links make of it.
      cohort_size: expected number of clients in a round, the denominator.
      seed: seed of the noise.
      clip_quantile: the clip norm follows this quantile of the norms of clients' values, in
        (0, 1), at the same epsilon; see `privacy.adaptive`. None: it is constant.
      correlation: of the noise over rounds, such as `banded`; None: independent. Correlated
        noise needs clients that are drawn by `simulate.cohort.cyclic`.

    Returns:
      An algorithm whose server also counts rounds. Shapes of messages and bytes are unchanged,
      but for 4 bytes each way with `clip_quantile`.

    Raises:
      ValueError: if a number is out of range, or the algorithm cannot be made private this way.
    """
    check_numbers(clip_norm=clip_norm, cohort_size=cohort_size, noise_multiplier=noise_multiplier)
    for what in (Around.LINK, Around.EQUAL, Around.SCALE, Around.NOISE):
        check_may(base, what, "noise")
    check_one_value(base, "noise")
    if base.uplink.first:
        raise ValueError("private adds a clip of its own; leave clip out of the links")
    unit = clip_norm if clip_quantile is None else 1.0  # values are sent over the clip norm
    link = chain(clip(unit), base.uplink)
    if not math.isfinite(bound := link.bound(math.inf)):
        raise ValueError(
            "noise cannot cover these links: one of them sends what earlier rounds lost, so that "
            "nothing bounds what a client sends; leave error_feedback and ef21 out"
        )
    base = base._replace(uplink=floats_only(link, "noise"))
    deviate = partial(noise_deviation, bound=bound, cohort_size=cohort_size)
    deviations = lambda value: jax.tree.map(lambda x: deviate(noise_multiplier), value)
    if clip_quantile is not None:
        base = follow_quantile(base, start=clip_norm, quantile=clip_quantile)
        of_values, of_count = split_noise(noise_multiplier, cohort_size)
        deviations = lambda marked: Marked(
            jax.tree.map(lambda x: deviate(of_values), marked.value), of_count / cohort_size
        )
    return base._replace(
        aggregate=fixed_mean(cohort_size),
        server=_noisy(base, deviations, seed, correlation or independent()),
        refuses={
            **base.refuses,
            Around.STALE: "its privacy accounting assumes that each round draws a new cohort",
            Around.RULE: "its noise covers a fixed mean only",
            Around.LINK: "its noise covers the links that it was made with",
        },
    )


def noise_deviation(noise_multiplier: Any, *, bound: float, cohort_size: float) -> Any:
    """Returns the standard deviation of the noise on each coordinate of the mean.

    Args:
      noise_multiplier: as in `private`.
      bound: largest norm of a client's decoded value.
      cohort_size: as in `private`.
    """
    return noise_multiplier * bound / cohort_size


def add_normal(tree: PyTree, deviation: Any, key: jax.Array) -> PyTree:
    """Returns a tree with independent normal numbers added, of the same shapes and dtypes.

    Args:
      tree: of floating leaves.
      deviation: of the numbers.
      key: of the draw.
    """
    drawn = optax.tree.random_like(key, tree, jax.random.normal)
    return jax.tree.map(lambda x, z: x + (deviation * z).astype(x.dtype), tree, drawn)


def floats_only(link: Uplink, name: str) -> Uplink:
    """Returns the link, whose `init` refuses values with leaves that clipping does not bound.

    `name` describes, in the message, what cannot be used with such values.
    """

    def init(like):
        others = {str(x.dtype) for x in jax.tree.leaves(like)}
        others = {kind for kind in others if not jnp.issubdtype(kind, jnp.floating)}
        if others:
            raise ValueError(
                f"{name} cannot be used with this algorithm: it sends values of type "
                f"{', '.join(sorted(others))}, which clipping does not bound"
            )
        return link.init(like)

    return link._replace(init=init)


def check_numbers(*, noise_multiplier: Any, **positive: float) -> None:
    """Raises ValueError for a noise multiplier or another number out of range."""
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if isinstance(noise_multiplier, int | float) and not 0 <= noise_multiplier < math.inf:
        raise ValueError(
            f"noise_multiplier must be finite and not negative, got {noise_multiplier}"
        )


def _noisy(
    base: Algorithm, deviations: Callable[[PyTree], PyTree], seed: int, correlation: Correlation
) -> Server:
    def init(shared):
        like = base.value_like(shared)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), like)
        inner = base.server.init(shared)
        return Noised(jnp.zeros((), jnp.int32), inner, correlation.init(like))

    def update(value, state, shared):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), state.rounds)
        drawn = optax.tree.random_like(key, value, jax.random.normal)
        noise, memory = correlation.next(drawn, state.memory)
        value = jax.tree.map(lambda x, d, z: x + d * z, value, deviations(value), noise)
        shared, inner = base.server.update(value, state.inner, shared)
        return shared, Noised(state.rounds + 1, inner, memory)

    return Server(init, update)
