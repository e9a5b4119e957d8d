"""Auditing differential privacy: a lower bound on epsilon from canary clients of one run.

    audited, canaries = with_canaries(private(...), ...)    # then train
    found = lower_bound(canary_scores(change, canaries), canaries.present, delta=1e-5)

Some clients of the population are canaries. A fair coin decides for each whether it takes part: if
so, it sends a random direction of the greatest length that clipping leaves, else nothing. What the
server has released by the end is compared with each direction, and from the scores an auditor
guesses the coins. Too many right guesses refute a smaller epsilon: Steinke, Nasr and Jagielski,
"Privacy Auditing with One (1) Training Run", NeurIPS 2023, arXiv:2305.08846, with the canaries of
Andrew et al., "One-shot Empirical Privacy Estimation for Federated Learning", ICLR 2024,
arXiv:2302.03098. The bound is computed by the package `jax_privacy` (extra `[audit]`).

The auditor guesses "present" of the highest half, quarter, eighth and sixteenth of the scores; the
best bound counts, each at a quarter of the allowed error. (The package's own choice among all
thresholds corrects only for those on the hull of the ROC curve, which depend on the coins.)

The bound holds with its confidence for the epsilon of adding or removing one client. It is often
far below: an accounted epsilon is for the worst case, and with c canaries no bound can exceed about
log c. A bound above the accounted epsilon shows an error in the account or in the noise.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core.algorithm import Algorithm, Client, PyTree
from fedjax_post.core.norms import is_float, norm

_STREAM = 0x61756469  # separates the draws of canaries from other draws of the same seed
_FEWEST = 16  # canaries
_SHARES = (2, 4, 8, 16)  # one in so many canaries is guessed to be present


class CanaryClients(NamedTuple):
    """The canaries of a run."""

    ids: np.ndarray  # [c], int64, of the clients that are canaries
    present: np.ndarray  # [c], bool: the coin of each
    seed: int  # of their directions


class Bound(NamedTuple):
    """What an audit has shown."""

    epsilon: float  # at least this, with the confidence; 0 if nothing was shown
    confidence: float  # probability with which the bound holds, over coins and noise
    delta: float
    canaries: int
    present: int  # canaries that took part


def draw_canaries(num_clients: int, num_canaries: int, *, seed: int) -> CanaryClients:
    """Returns which clients are canaries, and the coin of each.

    Args:
      num_clients: of the population.
      num_canaries: c, at least 16.
      seed: of all draws.

    Raises:
      ValueError: if there are fewer than 16 canaries, which show nothing, or more than clients.
    """
    if not _FEWEST <= num_canaries <= num_clients:
        raise ValueError(
            f"num_canaries must be from {_FEWEST} to the {num_clients} clients, got {num_canaries}"
        )
    rng = np.random.default_rng((seed, _STREAM))
    ids = np.sort(rng.permutation(num_clients)[:num_canaries])
    return CanaryClients(ids, rng.random(num_canaries) < 0.5, seed)


def with_canaries(
    base: Algorithm, canaries: CanaryClients, *, num_clients: int, length: float
) -> Algorithm:
    """Returns the algorithm, some of whose clients are canaries.

    Args:
      base: the algorithm, whose links clip at `length`, such as one of `privacy.private`.
      canaries: of `draw_canaries`.
      num_clients: of the population.
      length: norm of what a canary sends.
    """
    kinds = np.zeros(num_clients, np.int8)  # 0: as all others, 1: present, 2: absent
    kinds[canaries.ids] = np.where(canaries.present, 1, 2)

    def update(model, replica, state, data, ctx):
        upload, after, metrics = base.client.update(model, replica, state, data, ctx)
        kind = jnp.asarray(kinds)[ctx.client_id]
        sent = direction(upload.value, canaries.seed, ctx.client_id, length)
        choose = lambda new, old: jnp.where(kind == 1, new, old)
        value = jax.tree.map(choose, sent, upload.value)
        weight = jnp.where(kind == 2, 0, upload.weight)
        return upload._replace(value=value, weight=weight), after, metrics

    return base._replace(client=Client(base.client.init, update))


def direction(like: PyTree, seed: int, client_id: Any, length: float) -> PyTree:
    """Returns what a canary sends: a uniform direction, shaped like a value, of a given norm.

    Args:
      like: a tree like a client's value; leaves that are not floating are zero.
      seed: of `CanaryClients`.
      client_id: (), int32.
      length: its norm.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), client_id)
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    draw = lambda x, k: (
        jax.random.normal(k, x.shape) if is_float(x) else jnp.zeros(x.shape, x.dtype)
    )
    drawn = jax.tree.unflatten(structure, [draw(x, k) for x, k in zip(leaves, keys, strict=True)])
    scale = length / norm(drawn)
    return jax.tree.map(lambda x, y: (scale * y).astype(x.dtype), like, drawn)


def canary_scores(change: PyTree, canaries: CanaryClients) -> np.ndarray:
    """Returns how far the released change points in each canary's direction, `[c]`.

    Args:
      change: of what the federation shares, from the start to the end of the run, laid out like a
        client's value.
      canaries: of `draw_canaries`.
    """

    floats = [x for x in jax.tree.leaves(change) if is_float(x)]

    @jax.jit
    def score(client_id):
        own = jax.tree.leaves(direction(change, canaries.seed, client_id, 1.0))
        own = [x for x in own if is_float(x)]
        return sum(jnp.vdot(x, y, precision="highest") for x, y in zip(own, floats, strict=True))

    return np.array([float(score(i)) for i in jnp.asarray(canaries.ids, jnp.int32)])


def lower_bound(
    scores: np.ndarray, present: np.ndarray, *, delta: float, confidence: float = 0.95
) -> Bound:
    """Returns the greatest epsilon that one run refutes, see the head of this module.

    Args:
      scores: of the canaries, `[c]`; higher speaks for presence.
      present: `[c]` bool, their coins.
      delta: of the claim, in (0, 1).
      confidence: probability with which the bound must hold, in (0, 1).

    Raises:
      ValueError: if a number is out of range, or all coins are equal.
      ImportError: if `jax_privacy` is not installed.
    """
    for name, value in (("delta", delta), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be in (0, 1), got {value}")
    if present.all() or not present.any():
        raise ValueError("`present` must hold canaries of both kinds; draw more of them")
    if not np.isfinite(scores).all():
        raise ValueError("`scores` must be finite; the run has diverged, lower its step size")
    library = _library()
    auditor = library.CanaryScoreAuditor(scores[present], scores[~present])
    ordered, error = np.sort(scores)[::-1], (1 - confidence) / len(_SHARES)
    thresholds = [float(ordered[max(1, len(scores) // one_in) - 1]) for one_in in _SHARES]
    epsilon = max(
        float(auditor.epsilon_one_run(error, delta, threshold_strategy=library.Explicit(threshold)))
        for threshold in thresholds
    )
    return Bound(epsilon, confidence, delta, len(scores), int(present.sum()))


def greatest_bound(canaries: CanaryClients, *, delta: float, confidence: float = 0.95) -> float:
    """Returns the epsilon that an audit refutes if every guess is right: none can show more.

    A delta that is not far below one over the canaries could explain every right guess.

    Args:
      canaries: of `draw_canaries`.
      delta: as for `lower_bound`.
      confidence: as for `lower_bound`.
    """
    perfect = canaries.present + np.arange(len(canaries.ids)) / (2 * len(canaries.ids))
    return lower_bound(perfect, canaries.present, delta=delta, confidence=confidence).epsilon


def check_auditor() -> None:
    """Raises ImportError if the package that computes the bound is not installed."""
    _library()


def _library() -> Any:
    try:
        from jax_privacy import auditing
    except ImportError as error:
        raise ImportError(
            "an audit of differential privacy needs jax_privacy; "
            "install the extra: pip install 'fedjax_post[audit]'"
        ) from error
    return auditing
