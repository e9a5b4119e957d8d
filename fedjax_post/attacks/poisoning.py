"""Hostile clients: what some clients send in place of their values, around any algorithm.

    poisoned(fed_avg(...), sign_flip(), hostile=hostile_clients(128, 0.2, seed=0))

A fixed share of the population is hostile from the first round to the last. Hostile clients train
like all others and then change what the server decodes, after all links: they need not clip.
Clients that change their rows instead are in `hostile_rows`.

| attack | a hostile client sends | what it has to see |
| --- | --- | --- |
| sign_flip() | -v in place of its value v | its own data |
| scaled(s) | s v | its own data |
| little_is_enough() | mean - z deviations of the round's honest values | all values of the round |

Where the server takes products of factors A B, the first two change B alone: the product of -A and
-B is the same product. `little_is_enough` is refused there, since a mean of products has more
than R components.

The last attack is the strong version of its paper, whose adversary sees what the honest clients
send. A client under vmap sees only itself, so it is carried out where the values meet: the
aggregate holds those of the whole cohort, and replaces those of hostile clients before its own
rule is applied. Its result does not depend on the chunk size or on the devices.

The mark of a hostile client travels with its message: one byte more for each client in the
records, which no real federation would send. Weights are not attacked. Telemetry reads what the
server decodes, but for `little_is_enough` what hostile clients would have sent.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from fedjax_post.adapters.factors import Factors
from fedjax_post.core.aggregates import column, stack, weighted_sum
from fedjax_post.core.algorithm import (
    Aggregate,
    Algorithm,
    Around,
    Client,
    PyTree,
    Uplink,
    as_given,
)
from fedjax_post.core.compose import check_may
from fedjax_post.core.norms import is_float
from fedjax_post.core.uplinks import message_like

_STREAM = 0x686F7374  # separates the draw of hostile clients from other draws of the same seed
_LAST = "it has hostile clients, which are put around it last"


class Tampering(NamedTuple):
    """What hostile clients do to their values; one of the two is set."""

    alone: Callable[[PyTree], PyTree] | None = None  # (value) -> value, of one client
    # (values [clients, ...], honest [clients] bool, hostile [clients] bool) -> the value that all
    # hostile clients send
    together: Callable[[PyTree, jax.Array, jax.Array], PyTree] | None = None


class Marked(NamedTuple):
    """A value or a message, and who sends it."""

    value: PyTree
    hostile: jax.Array  # (), bool


def hostile_clients(num_clients: int, share: float, *, seed: int) -> np.ndarray:
    """Returns which clients are hostile, `[num_clients]` bool: a share of them, drawn at random.

    >>> int(hostile_clients(100, 0.2, seed=0).sum())
    20

    Args:
      num_clients: of the population.
      share: of the clients, in (0, 1); rounded to a whole number of clients.
      seed: equal seeds draw equal clients.

    Raises:
      ValueError: if the share is out of range, or less than half a client.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}; leave the attack out for 0")
    count = int(np.floor(share * num_clients + 0.5))
    if not count:
        raise ValueError(f"share={share} of {num_clients} clients is none; give a larger share")
    order = np.random.default_rng((seed, _STREAM)).permutation(num_clients)
    return order.argsort() < count


def sign_flip() -> Tampering:
    """Returns the attack that sends the opposite of the client's value."""
    return scaled(-1.0)


def scaled(factor: float) -> Tampering:
    """Returns the attack that sends a multiple of the client's value.

    With a factor of population over server step size and rows with a trigger it is the model
    replacement of Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020,
    arXiv:1807.00459.

    Args:
      factor: any number but 1; below 0 the value's direction is reversed.

    Raises:
      ValueError: if the factor is 1 or not finite.
    """
    if not np.isfinite(factor) or factor == 1:
        raise ValueError(f"factor must be finite and not 1, got {factor}; -1 reverses a value")

    def alone(value):
        if isinstance(value, Factors):
            return value._replace(b=_times(value.b, factor))
        return _times(value, factor)

    return Tampering(alone=alone)


def little_is_enough(z: float | None = None) -> Tampering:
    """Returns the attack whose colluding clients move the mean without standing out.

    Baruch, Baruch and Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed
    Learning", NeurIPS 2019, arXiv:1902.06156, Algorithm 3, with the mean and the deviation of each
    coordinate over the round's honest values, each client counting 1.

    Args:
      z: deviations from the mean, not negative; None: `largest_unnoticed` of the round's clients.

    Raises:
      ValueError: if `z` is negative.
    """
    if z is not None and not z >= 0:
        raise ValueError(f"z must not be negative, got {z}; leave it out for the paper's")

    def together(values, honest, hostile):
        num_honest, num_hostile = honest.sum(), hostile.sum()
        share = honest / jnp.maximum(num_honest, 1)
        away = largest_unnoticed(num_honest + num_hostile, num_hostile) if z is None else z

        def craft(v):
            if not is_float(v):
                return v[0]
            v = jnp.where(column(honest, v), v, 0).astype(jnp.float32)
            mean = weighted_sum(share, v)
            deviation = jnp.sqrt(weighted_sum(share, (v - mean[None]) ** 2))
            return mean - away * deviation

        return jax.tree.map(craft, values)

    return Tampering(together=together)


def largest_unnoticed(num_clients: jax.Array, num_hostile: jax.Array) -> jax.Array:
    """Returns z_max of Baruch et al. 2019, Algorithm 3: the deviations that a majority hides.

    With n clients of which m are hostile, s = floor(n / 2 + 1) - m honest ones are needed for a
    majority, and z_max is the normal quantile of (n - m - s) / (n - m). If the hostile clients are
    a majority themselves, s is 1; if they are too few to hide at all, z_max is 0.

    >>> print(f"{largest_unnoticed(50, 24):.2f}")
    1.43

    Args:
      num_clients: n, of the round.
      num_hostile: m, of the round.
    """
    supporters = jnp.maximum(num_clients // 2 + 1 - num_hostile, 1)
    num_honest = jnp.maximum(num_clients - num_hostile, 1)
    return jnp.maximum(ndtri((num_honest - supporters) / num_honest), 0.0)


def poisoned(base: Algorithm, attack: Tampering, *, hostile: np.ndarray) -> Algorithm:
    """Returns the algorithm with some hostile clients. It comes last: nothing goes around it.

    With nobody hostile it computes what `base` computes. `little_is_enough` needs memory for the
    values of a whole cohort on the server.

    >>> import optax
    >>> from fedjax_post.algorithms.fed_avg import fed_avg
    >>> base = fed_avg(lambda params, model, batch, key: (0.0, {}), optax.sgd(0.1))
    >>> hostile = hostile_clients(10, 0.3, seed=0)
    >>> algorithm = poisoned(base, sign_flip(), hostile=hostile)

    Args:
      base: the algorithm, with its links and its rule.
      attack: what hostile clients send.
      hostile: `[population]` bool, of `hostile_clients`.

    Raises:
      ValueError: if the algorithm's values have no meaning when they are scaled: places, masked
        codes, texts.
    """
    _check(base, attack)
    link, mask = base.uplink, np.asarray(hostile, bool)

    def update(model, replica, state, data, ctx):
        upload, state, metrics = base.client.update(model, replica, state, data, ctx)
        if not any(map(is_float, jax.tree.leaves(upload.value))):
            raise ValueError(
                "an attack on what clients send cannot be used with this algorithm: they send no "
                "numbers; let hostile clients change their rows"
            )
        is_hostile = jnp.asarray(mask)[ctx.client_id]
        return upload._replace(value=Marked(upload.value, is_hostile)), state, metrics

    def encode(marked, replica, state, ctx):
        message, state = link.encode(marked.value, replica, state, ctx)
        return Marked(message, marked.hostile), state

    def decode(message, like):
        value = link.decode(message.value, like.value)
        if attack.alone is None:
            return Marked(value, message.hostile)
        choose = lambda new, old: jnp.where(message.hostile, new, old)
        return Marked(jax.tree.map(choose, attack.alone(value), value), message.hostile)

    flag: PyTree = jax.ShapeDtypeStruct((), bool)
    declared = lambda shared: Marked(base.value_like(shared), flag)
    return base._replace(
        client=Client(base.client.init, update),
        uplink=Uplink(
            init=lambda like: link.init(like.value),
            encode=encode,
            decode=decode,
            remembers=link.remembers,
            shape=lambda like: Marked(message_like(link, like.value), flag),
        ),
        aggregate=_unmarked(base.aggregate, attack),
        value_like=as_given if base.value_like is as_given else declared,
        read=lambda marked, replica: base.read(marked.value, replica),
        refuses={**dict.fromkeys(set(Around) - {Around.STALE}, _LAST), **base.refuses},
    )


def _check(base: Algorithm, attack: Tampering) -> None:
    """Raises ValueError if an attack on values would not be what it states."""
    is_products = base.aggregate.kind == "products"
    if is_products and attack.together is not None:
        raise ValueError(
            "little_is_enough cannot be used with this algorithm: its server takes products, and "
            "their mean is not a product of the same rank; use sign_flip, or an algorithm that "
            "averages, such as fed_avg"
        )
    if not is_products:
        check_may(base, Around.SCALE, "an attack on what clients send")


def _unmarked(rule: Aggregate, attack: Tampering) -> Aggregate:
    """Returns the aggregate of marked values; colluding clients meet here."""
    if attack.together is None:
        return rule._replace(
            init=lambda like, cohort_size: rule.init(like.value, cohort_size),
            add=lambda total, marked, weights: rule.add(total, marked.value, weights),
            kind="",
        )
    everyone, together = stack(), attack.together

    def finish(total):
        marked, weights = everyone.finish(total)
        here = weights > 0
        honest, hostile = here & ~marked.hostile, here & marked.hostile
        crafted = together(marked.value, honest, hostile)
        taken = hostile & honest.any()
        put = lambda v, x: jnp.where(column(taken, v), x[None].astype(v.dtype), v)
        values = jax.tree.map(put, marked.value, crafted)
        empty = rule.init(jax.tree.map(lambda v: v[0], values), len(weights))
        return rule.finish(rule.add(empty, values, weights))

    return everyone._replace(finish=finish, fixed=rule.fixed)


def _times(tree: PyTree, factor: float) -> PyTree:
    return jax.tree.map(lambda x: (factor * x).astype(x.dtype) if is_float(x) else x, tree)
