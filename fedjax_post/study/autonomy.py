"""Autonomy drills: what a method loses when whoever hosts its model does as they please.

A fault is what it does to a run: who takes part from then on, and which model answers.

| drill | what happens | a method that asks the target | one that holds its weights |
| --- | --- | --- | --- |
| shutdown | nobody answers from a round on | nobody takes part, nothing is served | goes on |
| changed | other weights answer from a round on | goes on with those | goes on with its own |
| rate_limited | a few clients a round are answered | the others are left out | goes on |
| refused | one client is not answered from a round on | it is left out | goes on |
| excluded_* | some clients may not ask at all | they are left out | goes on |
| artefact | what was made is read back without the provider | a prompt, of no use alone | serves |

A method that needs nobody's answer plays the same run with and without a fault: it is
that run that is reported, not another one. A method that trains on a stand-in (an emulator)
goes on, and cannot serve: the model that its result belongs in is its owner's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core.access import Access
from fedjax_post.disclosure.ledger import asks, serves_elsewhere

PyTree = Any
Sampler = Callable[[int, np.random.Generator], np.ndarray]  # as in `simulate.cohort`

EXCLUSIONS = ("excluded_region", "excluded_price", "excluded_licence")
DRILLS = ("shutdown", "changed", "rate_limited", "refused", *EXCLUSIONS, "artefact")


class Row(NamedTuple):
    """What one drill cost one method, with one seed."""

    drill: str  # of DRILLS; those shut out have a row of their own, see `SHUT_OUT`
    method: str
    before: float  # exact match at the end of the run without the fault, in [0, 1]
    after: float  # of the run with it; 0 where nobody answers
    can_train: bool  # after the fault
    can_serve: bool
    note: str
    told: Mapping[str, Any]  # further numbers and texts, by name


SHUT_OUT = ", those shut out"  # behind a drill's name: their own rows, not the held-out ones


def trains_alone(access: Mapping[str, Access]) -> bool:
    """Returns whether a method can train when whoever hosts the target is gone."""
    return not asks(access)


def serves_alone(access: Mapping[str, Access]) -> bool:
    """Returns whether what a method made can be used then: the federation holds the target."""
    return not serves_elsewhere(access)


def nobody() -> Sampler:
    """Returns a sampler of empty cohorts: everybody asks, and nobody is answered."""
    return lambda population, rng: np.zeros(0, np.int64)


def at_most(sampler: Sampler, count: int) -> Sampler:
    """Returns a sampler of those whose queries get through: `count` of a cohort, any of them.

    Raises:
      ValueError: if `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"rate_limit={count} lets nobody through; that is drills=shutdown")

    def sample(population, rng):
        cohort = sampler(population, rng)
        return np.sort(rng.choice(cohort, min(count, len(cohort)), replace=False))

    return sample


def without(sampler: Sampler, client_ids: Sequence[int]) -> Sampler:
    """Returns a sampler that leaves clients out; the others are drawn as they would be."""
    left_out = np.asarray(client_ids, np.int64)

    def sample(population, rng):
        cohort = sampler(population, rng)
        return cohort[~np.isin(cohort, left_out)]

    return sample


def excluded(
    reason: str, *, counts: np.ndarray, tokens: np.ndarray, num: int, seed: int
) -> np.ndarray:
    """Returns the clients that a closed model shuts out, ids ascending.

    | reason | who |
    | --- | --- |
    | excluded_region | those with the largest share of one label, the most uneven one |
    | excluded_price | those whose rows have most tokens |
    | excluded_licence | any, drawn with the seed |

    Args:
      reason: of `EXCLUSIONS`.
      counts: `[clients, labels]`, rows; one column where rows have no label.
      tokens: `[clients]`, of a client's rows.
      num: how many are shut out, below the number of clients.
      seed: of the draw.

    Raises:
      ValueError: if everybody or nobody would be shut out.
    """
    population = len(tokens)
    check_excluded(num, population)
    if reason == "excluded_licence":
        return np.sort(np.random.default_rng((seed, 3)).choice(population, num, replace=False))
    if reason == "excluded_price":
        ranked = np.argsort(-tokens, kind="stable")
    else:
        shares = counts / counts.sum(axis=1, keepdims=True)
        ranked = np.argsort(-shares[:, shares.std(axis=0).argmax()], kind="stable")
    return np.sort(ranked[:num])


def check_excluded(num: int, population: int) -> None:
    """Refuses to shut out nobody or everybody, naming the flag."""
    if not 0 < num < population:
        raise ValueError(
            f"excluded_clients={num} must be from 1 to {population - 1}, of {population} clients"
        )


def another_version(model: PyTree, key: jax.Array, *, change: float) -> PyTree:
    """Returns the model as its owner might have trained it on: every matrix moved a little.

    Each floating leaf of two or more dimensions gets independent normal noise of `change`
    times its own standard deviation; 0 is the same model.
    """
    leaves, form = jax.tree.flatten(model)
    keys = jax.random.split(key, max(len(leaves), 1))

    def moved(leaf, key):
        if leaf.ndim < 2 or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        noise = jax.random.normal(key, leaf.shape, jnp.float32) * jnp.std(leaf.astype("float32"))
        return (leaf + change * noise).astype(leaf.dtype)

    return jax.tree.unflatten(form, [moved(*pair) for pair in zip(leaves, keys, strict=True)])


def over_seeds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns a table of drills and methods, for JSON: before, after and lost by seed.

    `lost` is before - after; what is told besides is a list by seed as well.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.drill, row.method), []).append(row)
    return [
        {
            "drill": drill,
            "method": method,
            "before": [row.before for row in found],
            "after": [row.after for row in found],
            "lost": [row.before - row.after for row in found],
            "can_train": all(row.can_train for row in found),
            "can_serve": all(row.can_serve for row in found),
            "note": found[0].note,
            **{name: [row.told.get(name) for row in found] for name in found[0].told},
        }
        for (drill, method), found in groups.items()
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows of `over_seeds` as text, means over seeds in percent."""
    head = ("drill", "method", "before", "after", "lost", "trains", "serves")
    lines = [head]
    for row in rows:
        means = [f"{100 * np.mean(row[name]):.1f}" for name in ("before", "after", "lost")]
        can = ["yes" if row[name] else "no" for name in ("can_train", "can_serve")]
        lines.append((row["drill"], row["method"], *means, *can))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pad = lambda line: "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
    return "\n".join(map(pad, lines))
