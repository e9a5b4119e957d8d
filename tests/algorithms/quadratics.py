"""Clients with quadratic losses, whose optima and fixed points have closed forms."""

import jax.numpy as jnp
import numpy as np

import fedjax_post as fp

DIM, CLIENTS, STEPS, LR = 3, 5, 8, 0.1
RNG = np.random.default_rng(0)
# f_k(x) = 1/2 (x - b_k)' diag(a_k) (x - b_k): unlike curvatures, unlike minima
CURVATURE = np.exp(RNG.normal(size=(CLIENTS, DIM)))
MINIMUM = RNG.normal(size=(CLIENTS, DIM))
JOINT = (CURVATURE * MINIMUM).sum(0) / CURVATURE.sum(0)


def quadratic(params, model, batch, key):
    del model, key
    loss = 0.5 * jnp.mean(jnp.sum(batch["a"] * (params[None] - batch["b"]) ** 2, -1))
    return loss, {"loss": loss}


def quadratic_clients(local_steps):
    rows = zip(CURVATURE, MINIMUM, strict=True)
    arrays = [{"a": np.float32(a[None]), "b": np.float32(b[None])} for a, b in rows]
    return fp.ArrayClients(arrays, batch_size=1, local_steps=local_steps)


def solve(algorithm, *, rounds, local_steps=STEPS, params=None):
    params = jnp.zeros(DIM) if params is None else params
    clients = quadratic_clients(local_steps)
    state = list(fp.run(algorithm, None, clients, params=params, rounds=rounds))[-1][0]
    return np.asarray(fp.deployed(algorithm, None, state)[1])
