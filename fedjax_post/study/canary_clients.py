"""The audit of an experiment's privacy: its canary clients, and the bound that they give."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_post import attacks
from fedjax_post.attacks import CanaryClients
from fedjax_post.core.algorithm import Algorithm, as_given
from fedjax_post.core.engine import State
from fedjax_post.study import private
from fedjax_post.study.spec import Spec

_AUDITED = {"noise_at": "server", "clip_quantile": None, "noise_cohort": None}  # field -> value


def check(spec: Spec) -> None:
    """Checks that an audit is possible with these fields, before anything is read.

    Raises:
      ValueError: naming the field and the remedy.
      ImportError: if the package that computes the bound is not installed.
    """
    if spec.privacy.canaries is None:
        return
    field = f"canaries={spec.privacy.canaries}"
    if spec.privacy.secure:
        raise ValueError(
            f"{field}: an absent canary would not send its mask in a secure sum; leave `secure` out"
        )
    for name, usual in _AUDITED.items():
        if (value := getattr(spec.privacy, name)) != usual:
            raise ValueError(
                f"{field}: {name}={value} is not audited, only the noise of the server on clients "
                "clipped at one norm; leave one out"
            )
    if spec.training.sampling not in ("full", "poisson"):
        raise ValueError(
            f"{field} are present or absent, and sampling={spec.training.sampling} is accounted "
            "for other neighbours; give sampling=full or poisson"
        )
    attacks.check_auditor()


def around(
    algorithm: Algorithm, spec: Spec, promised: private.Guarantee | None, *, population: int
) -> tuple[Algorithm, CanaryClients | None]:
    """Returns the algorithm with canaries among its clients, and these; None without an audit.

    Args:
      algorithm: made private.
      spec: the experiment.
      promised: the guarantee that is audited.
      population: number of clients.

    Raises:
      ValueError: if there are more canaries than clients, if what clients send is not laid out
        like what the federation shares, or if no audit with so many canaries could show anything.
    """
    if spec.privacy.canaries is None:
        return algorithm, None
    try:
        canaries = attacks.draw_canaries(population, spec.privacy.canaries, seed=spec.seed)
    except ValueError as error:
        raise ValueError(f"`privacy.canaries`: {error}") from error
    if algorithm.value_like is not as_given:
        raise ValueError(
            f"canaries={len(canaries.ids)}: method={spec.method.name} sends other values than it "
            "shares, so that canaries cannot be found in what it releases; use one that sends "
            "changes, such as fed_avg"
        )
    assert spec.privacy.clip is not None  # guaranteed by `private.check`
    assert promised is not None
    if not attacks.greatest_bound(canaries, delta=promised.delta):
        raise ValueError(
            f"canaries={len(canaries.ids)}: delta={promised.delta:.2g} could explain all that they "
            "show; give a `privacy.delta` far below one over the canaries, such as 1e-05"
        )
    audited = attacks.with_canaries(
        algorithm, canaries, num_clients=population, length=spec.privacy.clip
    )
    return audited, canaries


def describe(canaries: CanaryClients) -> str:
    """Returns the canaries as one line of text."""
    return (
        f"{len(canaries.ids)} clients are canaries, of which {int(canaries.present.sum())} send a "
        "random direction of the clip norm and the others nothing"
    )


def audit_summary(parts: Any, state: State) -> dict[str, Any] | None:
    """Returns the entry `audit` of a summary: epsilon from below; None without an audit.

    Args:
      parts: of the run.
      state: after its last round.
    """
    if parts.canaries is None:
        return None
    change = jax.tree.map(jnp.subtract, state.shared, parts.start.shared)
    found = attacks.lower_bound(
        attacks.canary_scores(change, parts.canaries),
        parts.canaries.present,
        delta=parts.promised.delta,
    )
    return found._asdict()
