"""One prompt out of many: tokens that mean about the same vote together."""

import math

import jax
import jax.numpy as jnp


def similarity(tokens: jax.Array, embeddings: jax.Array | None) -> jax.Array:
    """Cosines `[n, n]` between tokens `[n]`, from a public table `[V, D]`; 1 or 0 without one."""
    same = tokens[:, None] == tokens[None]
    if embeddings is None:
        return same.astype(jnp.float32)
    rows = jnp.asarray(embeddings)[tokens].astype(jnp.float32)
    length = jnp.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / jnp.where(length > 0, length, 1)
    return jnp.where(same, 1.0, rows @ rows.T)


def elbow(distances: jax.Array) -> jax.Array:
    """The last of sorted distances `[n]` before they grow; 0 where nothing stands out.

    The one furthest below the line through the least and the largest. Those that are not
    finite do not count.
    """
    ordered = jnp.sort(distances)
    there = jnp.isfinite(ordered)
    end = jnp.maximum(there.sum() - 1, 1)
    line = ordered[0] + jnp.arange(ordered.size) / end * (ordered[end] - ordered[0])
    below = jnp.where(there, line - ordered, 0)
    return jnp.where(below.max() > 1e-6, ordered[jnp.argmax(below)], 0.0)


def clusters(near: jax.Array) -> jax.Array:
    """The connected components of a symmetric relation, bool `[n, n]`: each one's first member.

    DBSCAN's clusters (Ester et al., KDD 1996) where one neighbour, itself, makes a core point.
    """
    size = near.shape[0]
    linked = (near | jnp.eye(size, dtype=bool)).astype(jnp.float32)
    for _ in range(math.ceil(math.log2(max(size, 2)))):
        linked = jnp.minimum(linked @ linked, 1.0)
    return jnp.argmax(linked > 0, axis=1)


def agree(prompts: jax.Array, weights: jax.Array, embeddings: jax.Array | None = None) -> jax.Array:
    """One prompt `[P]` of prompts `[K, P]`: at each place the top token of the heaviest cluster.

    Tokens of one place belong to one cluster if they are no further apart than the elbow of
    all tokens' distances to the closest different one. The heaviest cluster is that of most
    weight; its top token the one of most attention: the summed cosines to all tokens of the
    other prompts, by their weights, in a log softmax over its own prompt. A tie goes to the
    token of the lowest id, so that the order of prompts does not matter.

    Without embeddings it is the vote for each place.

    Args:
      prompts: int32.
      weights: float32 `[K]`; a prompt of weight 0 is not there.
      embeddings: float `[V, D]`, public; None where every token means something else.
    """
    num, length = prompts.shape
    tokens, owner = prompts.reshape(-1), jnp.repeat(jnp.arange(num), length)
    total = weights.sum()
    weight = jnp.repeat(weights / jnp.where(total > 0, total, 1), length)
    cosines = similarity(tokens, embeddings)
    others = jnp.where(owner[:, None] == owner[None], 0, cosines * weight[None])
    seen = others.sum(axis=1).reshape(num, length)
    attention = jax.nn.log_softmax(seen, axis=1).reshape(-1)

    distance = 1 - cosines
    there = weight > 0
    different = (tokens[:, None] != tokens[None]) & there[:, None] & there[None]
    closest = jnp.where(different, distance, jnp.inf).min(axis=1)
    same_place = jnp.tile(jnp.arange(length), num)
    at_place = (same_place[:, None] == same_place[None]) & there[:, None] & there[None]
    near = at_place & (distance <= elbow(closest) + 1e-6)
    cluster = clusters(near)
    votes = jnp.zeros(tokens.size).at[cluster].add(weight)[cluster]

    # sums in another order must not decide, so what is compared is rounded
    rounded = lambda x: jnp.where(there, jnp.round(x, 4), -jnp.inf)
    order = jnp.lexsort((tokens, -rounded(attention), -rounded(votes), same_place))
    return tokens[order[jnp.arange(length) * num]]
