"""EF21: clients send compressed changes of an estimate that server and client share.

Richtarik, Sokolov, Fatkhullin, "EF21: A New, Simpler, Theoretically Better, and
Practically Faster Error Feedback", NeurIPS 2021, arXiv:2106.05203, Algorithm 2. With
any contractive compressor C, and v_k what client k would have sent:

    client:  c_k = C(v_k - g_k),    g_k <- g_k + c_k
    server:  g <- g + 1/N sum_k c_k,    and uses g in place of the mean of v_k

so that g is always the mean of all g_k, and as v_k converges, g_k converges to it, however strong
the compression is. Error feedback only reaches a neighbourhood.

Deviations: v_k is whatever the algorithm uploads, a gradient only if that is one; all
g_k start at zero; clients may be absent, as in EF21-PP (Fatkhullin et al. 2021,
arXiv:2110.03294).

g is a mean over all clients in every round. So set `participation` to 1 in an algorithm that has
this argument. Whether EF21 suits an algorithm whose server is not linear in the mean (q-FedAvg,
FedNova) is not checked.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_post.core import aggregates, algorithm, compose, uplinks


class Memory(NamedTuple):
    """What the server keeps beside its own state."""

    mean: algorithm.PyTree  # g: mean of all clients' g_k
    inner: algorithm.PyTree


def ef21(
    base: algorithm.Algorithm, link: algorithm.Uplink, *, population: int
) -> algorithm.Algorithm:
    """Compresses the uplink of any algorithm whose server takes one mean of what clients send.

    Args:
      base: the algorithm; its uplink and aggregate are replaced, clients have equal weights.
      link: the compressor, a contraction: top_k, sign, or random_k without scaling.
      population: number of clients, N.

    Returns:
      An algorithm with one more tree per client, and one on the server.

    Raises:
      ValueError: if a mean over clients and rounds of what they send would have no meaning,
        or if `link` has a memory of its own; at the start of a run, if the value is not
        shaped like the algorithm's `value_like`.
    """
    for what in (algorithm.Around.LINK, algorithm.Around.MEMORY, algorithm.Around.EQUAL):
        compose.check_may(base, what, "EF21")
    compose.check_one_value(base, "EF21")
    if link.remembers:
        raise ValueError("EF21 is error feedback: give it the compressor inside error_feedback")

    def init(like):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like), link.init(like)

    def encode(value, replica, state, ctx):
        g_k, inner = state
        message, inner = link.encode(optax.tree.sub(value, g_k), replica, inner, ctx)
        return message, (optax.tree.add(g_k, link.decode(message, value)), inner)

    def serve(value, memory, shared):
        if not _same_shapes(memory.mean, value):
            raise ValueError("EF21 keeps a mean of values: declare their shape in value_like")
        g = optax.tree.add(memory.mean, value)
        shared, inner = base.server.update(g, memory.inner, shared)
        return shared, Memory(g, inner)

    def start(shared):
        like = base.value_like(shared)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), like)
        return Memory(zeros, base.server.init(shared))

    shape = lambda like: uplinks.message_like(link, like)
    return base._replace(
        read=algorithm.unread,
        uplink=algorithm.Uplink(init, encode, link.decode, shape=shape),
        aggregate=aggregates.fixed_mean(population),
        server=algorithm.Server(start, serve),
        refuses={
            **base.refuses,
            algorithm.Around.LINK: "EF21 has an uplink of its own",
            algorithm.Around.RULE: "EF21's server adds up the changes of every client's value",
        },
    )


def _same_shapes(one: algorithm.PyTree, other: algorithm.PyTree) -> bool:
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
    return bool(shapes(one) == shapes(other))
