"""A dense oracle of LoRA aggregation, in float64.

It trains every client's adapter at its true size: a client of rank r has factors of r
components and the scale alpha / r, no mask and no padding. Products, means and errors
are then numpy.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_post as fp
from fedjax_post.adapters.lora import merge_lora
from fedjax_post.algorithms import ALGORITHMS
from fedjax_post.core import engine, local
from fedjax_post.core.algorithm import no_context
from fedjax_post.data.ranks import RankedClients
from fedjax_post.simulate.cohort import data_rng
from fedjax_post.testing import toy_lora

LORA = (
    *("ffa_lora", "ro_lora", "fed_sa_lora", "flora", "fed_ex_lora"),
    *("flex_lora", "het_lora", "fed_svd", "lora_fair", "florist"),
)
FIXED = {"flora": {"redraw": False}, "florist": {"redraw": False, "energy": 1.0}}
ALPHA, SGD = toy_lora.ALPHA, optax.sgd(0.05)
RANKS = {"equal": (2,), "unequal": (1, 2, 1)}


class Visit(NamedTuple):
    """What one client made of its visit, at its true rank; leaves float64, `[LAYERS, ...]`."""

    a: np.ndarray
    b: np.ndarray
    scale: float  # alpha / r
    share: float  # of the cohort's weight


@cache
def make(name, tx=SGD, **options):
    """An algorithm; the same one for the same settings, so that its programs are made once."""
    options = {**FIXED.get(name, {}), **options}
    return ALGORITHMS[name](toy_lora.toy_loss, tx, **options)


def start_at(rank=2, seed=5):
    """An adapter that has been trained before: neither factor is zero."""
    params = toy_lora.toy_params(rank)
    pair = params["lora"]["layers"]["mix"]
    b = 0.3 * np.random.default_rng(seed).normal(size=pair["b"].shape)
    return {"lora": {"layers": {"mix": {**pair, "b": jnp.asarray(b, jnp.float32)}}}}


def clients_of(ranks, **kwargs):
    clients = toy_lora.toy_clients(**kwargs)
    return clients if ranks == (0,) else RankedClients(clients, ranks)


PROGRAMS = {}  # by an algorithm's identity, beside it, which keeps that from being another's


def play(algorithm, params, clients, *, rounds=1, rank=2, **plan):
    """The last state, all records, and the dense change that would be deployed."""
    model = toy_lora.toy_model(rank)
    programs, _ = PROGRAMS.setdefault(id(algorithm), (fp.device(algorithm), algorithm))
    plan = fp.Plan(**{"chunk_size": 3, "executor": lambda _: programs, **plan})
    steps = list(fp.run(algorithm, model, clients, params=params, rounds=rounds, plan=plan))
    state = steps[-1][0]
    return state, [record for _, record in steps], change_of(algorithm, state, rank)


def change_of(algorithm, state, rank=2, client=None):
    """What is deployed, less the base: residual + A scale B, float64."""
    model, params = engine.deployed(algorithm, toy_lora.toy_model(rank), state, client)
    merged = merge_lora(model, params).variables["params"]["layers"]["mix"]["kernel"]
    base = toy_lora.toy_model(rank).variables["params"]["layers"]["mix"]["kernel"]
    return np.asarray(merged, np.float64) - np.asarray(base, np.float64)


@partial(jax.jit, static_argnames="only")
def trained(held, model, data, only):
    """Factors after a visit that moves some of them."""

    def loss(moving, model, batch, key):
        own_params = {"lora": {"layers": {"mix": {**held, **moving}}}}
        return toy_lora.toy_loss(own_params, model, batch, key)

    moving = {name: held[name] for name in only}
    return held | local.local_steps(loss, SGD, moving, model, data, no_context())[0]


def visits(params, clients, *, rank=2, round=0, only=("a", "b"), residual=None):
    """Every client's visit at its true size; `params` are in the federation's units."""
    pair = params["lora"]["layers"]["mix"]
    out = []
    for k in range(len(clients)):
        data = clients.visit(k, data_rng(0, round, k))
        own = int(data.rank) or rank
        scale = ALPHA / own
        model = toy_lora.toy_model(own)
        if residual is not None:
            kernel = jnp.asarray(residual, jnp.float32)
            model.variables["residual"] = {"layers": {"mix": {"kernel": kernel}}}
        held = {"a": pair["a"][..., :own], "b": pair["b"][:, :own] * (ALPHA / rank) / scale}
        moved = trained(held, model, data, tuple(only))
        end = {name: np.asarray(x, np.float64) for name, x in moved.items()}
        out.append(Visit(end["a"], end["b"], scale, float(data.num_tokens)))
    total = sum(v.share for v in out)
    return [v._replace(share=v.share / total) for v in out]


def mean_product(done):
    return sum(v.share * v.scale * v.a @ v.b for v in done)


def padded(done, rank=2):
    """Clients' factors with zeros beyond their ranks, alpha / r in units of alpha / R on B."""
    pad = lambda x, axis: np.pad(x, [(0, (rank - x.shape[axis]) * (i == axis)) for i in range(3)])
    unit = ALPHA / rank
    return [(v.share, pad(v.a, 2), pad(v.b * v.scale / unit, 1)) for v in done]


def mean_factors(done, rank=2):
    values = padded(done, rank)
    return sum(s * a for s, a, _ in values), sum(s * b for s, _, b in values)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def assert_far(found, expected):
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() > 1e-3


def cut(params, rank, name=None):
    """The message of a client of some rank, as arrays of its true size."""
    pair = params["lora"]["layers"]["mix"]
    held = {"a": pair["a"][..., :rank], "b": pair["b"][:, :rank]}
    return held if name is None else {name: held[name]}
