"""Combines prompts into one: tokens of similar meaning vote together."""

import math

import jax
import jax.numpy as jnp


def similarity(tokens: jax.Array, embeddings: jax.Array | None) -> jax.Array:
    """Returns cosines `[n, n]` between tokens `[n]`, from a public table of embeddings `[V, D]`.

    Without a table, the result is 1 for equal tokens and 0 for different ones.
    """
    same = tokens[:, None] == tokens[None]
    if embeddings is None:
        return same.astype(jnp.float32)
    rows = jnp.asarray(embeddings)[tokens].astype(jnp.float32)
    length = jnp.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / jnp.where(length > 0, length, 1)
    return jnp.where(same, 1.0, rows @ rows.T)


def elbow(distances: jax.Array) -> jax.Array:
    """Returns the elbow of distances `[n]`: the last one before the sorted distances grow.

    It is the distance furthest below the line through the least and the largest. The result is 0
    if no distance is clearly below the line. Distances that are not finite do not count.
    """
    ordered = jnp.sort(distances)
    there = jnp.isfinite(ordered)
    end = jnp.maximum(there.sum() - 1, 1)
    line = ordered[0] + jnp.arange(ordered.size) / end * (ordered[end] - ordered[0])
    below = jnp.where(there, line - ordered, 0)
    return jnp.where(below.max() > 1e-6, ordered[jnp.argmax(below)], 0.0)


def clusters(near: jax.Array) -> jax.Array:
    """Returns the connected components of a symmetric relation, bool `[n, n]`.

    The result `[n]` holds, for each point, the first member of its component. These are the
    clusters of DBSCAN (Ester et al., KDD 1996) if every point is a core point.
    """
    size = near.shape[0]
    linked = (near | jnp.eye(size, dtype=bool)).astype(jnp.float32)
    for _ in range(math.ceil(math.log2(max(size, 2)))):
        linked = jnp.minimum(linked @ linked, 1.0)
    return jnp.argmax(linked > 0, axis=1)


def agree(prompts: jax.Array, weights: jax.Array, embeddings: jax.Array | None = None) -> jax.Array:
    """Returns one prompt `[P]` that combines prompts `[K, P]` place by place.

    Tokens at the same place belong to one cluster if their distance is at most the elbow of all
    tokens' distances to the closest different token. Each place takes the cluster of most
    weight, and in it the token of most attention. The attention of a token is the sum of its
    cosines to all tokens of the other prompts, weighted by the prompts' weights, after a log
    softmax over its own prompt. A tie goes to the token of the lowest id, so that the order of
    prompts does not matter.

    Without embeddings it is a majority vote for each place.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_post.blackbox.consensus import agree
    >>> print(jax.jit(agree)(jnp.array([[5, 7], [5, 8], [6, 8]]), jnp.ones(3)))
    [5 8]

    Args:
      prompts: int32 `[K, P]`.
      weights: float32 `[K]`; a prompt of weight 0 does not count.
      embeddings: float `[V, D]`, public; None treats different tokens as unrelated.
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

    # rounded, so that the order of summation does not decide between equal values
    rounded = lambda x: jnp.where(there, jnp.round(x, 4), -jnp.inf)
    order = jnp.lexsort((tokens, -rounded(attention), -rounded(votes), same_place))
    return tokens[order[jnp.arange(length) * num]]
