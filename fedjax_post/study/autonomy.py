"""Autonomy drills: what a method loses when its model stops, changes, or shuts clients out.

A fault is defined by its effect on a run: which clients take part from then on, and which
model answers.

| drill | what happens | a method that queries the target | one that holds its weights |
| --- | --- | --- | --- |
| shutdown | no answers from some round on | nobody takes part, nothing is served | continues |
| changed | other weights answer from some round on | continues with those | keeps its own |
| rate_limited | a few clients are answered per round | the others are left out | continues |
| refused | one client gets no answer from some round on | it is left out | continues |
| excluded_* | some clients may never ask | they are left out | continues |
| tuned_withdrawn | a model ends that its host has fine-tuned | is tuned anew, if so | continues |
| base_retired | the next version alone is served, after a notice | trains again | keeps its own |
| excluded_memory | some have less memory than a visit takes | needs none | they are left out |
| excluded_weights_licence | terms bar a region from the weights | continues | it is left out |
| withdrawn | the weights leave their hub | continues | those without a copy are left out |
| base_update | the next version takes the place of the weights | continues | uses it as it is |
| base_renewed | the same, after a notice | continues | trains again |
| forgotten | a client is unlearned: training again without it | the same | the same |
| artefact | the artefact is read back without the provider | a prompt, useless alone | serves |

A method that queries no host runs identically with and without a fault, so the undisturbed run
is reported for it. A method that trains on a stand-in (an emulator) continues to train but
cannot serve: its result belongs in a model that the owner holds.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.core.access import Access
from fedjax_post.disclosure.ledger import asks, serves_elsewhere
from fedjax_post.report.position.drills import FORGOTTEN
from fedjax_post.simulate.cohort import ByRound, Sampler

PyTree = Any

EXCLUSIONS = ("excluded_region", "excluded_price", "excluded_licence")  # by a host
RETIREMENTS = ("tuned_withdrawn", "base_retired")
VERSIONS_HELD = ("base_update", "base_renewed")  # of weights that are held
HELD = ("excluded_memory", "excluded_weights_licence", "withdrawn", *VERSIONS_HELD)
DRILLS = (
    *("shutdown", "changed", "rate_limited", "refused"),
    *EXCLUSIONS,
    *RETIREMENTS,
    *HELD,
    FORGOTTEN,
    "artefact",
)


class Row(NamedTuple):
    """The result of one drill of one method with one seed."""

    drill: str  # of DRILLS; those shut out have a row of their own, see `SHUT_OUT`
    method: str
    before: float  # score at the end of the run without the fault, in [0, 1]
    after: float  # score at the end of the run with it; 0 where nobody answers
    can_train: bool  # after the fault
    can_serve: bool
    note: str
    extra: Mapping[str, Any]  # further numbers and texts, by name


# Suffix of a drill's name: the score is on the excluded clients' own rows, not the held-out ones.
SHUT_OUT = ", those shut out"


def trains_alone(access: Mapping[str, Access]) -> bool:
    """Returns whether a method can train without the host of the target."""
    return not asks(access)


def serves_alone(access: Mapping[str, Access]) -> bool:
    """Returns whether a method's result works without the host: the federation holds the target."""
    return not serves_elsewhere(access)


def nobody() -> Sampler:
    """Returns a sampler of empty cohorts: no client is answered."""
    return lambda population, rng: np.zeros(0, np.int64)


def at_most(sampler: Any, count: int) -> Any:
    """Returns a sampler that keeps `count` random clients of each cohort: those answered.

    Raises:
      ValueError: if `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"rate_limit={count} admits no client; use drills=shutdown for that")
    if isinstance(sampler, ByRound):
        return ByRound(lambda round: at_most(sampler.of(round), count))

    def sample(population, rng):
        cohort = sampler(population, rng)
        return np.sort(rng.choice(cohort, min(count, len(cohort)), replace=False))

    return sample


def without(sampler: Any, client_ids: Sequence[int]) -> Any:
    """Returns a sampler that removes some clients from each cohort, with the draw unchanged."""
    if isinstance(sampler, ByRound):
        return ByRound(lambda round: without(sampler.of(round), client_ids))
    left_out = np.asarray(client_ids, np.int64)

    def sample(population, rng):
        cohort = sampler(population, rng)
        return cohort[~np.isin(cohort, left_out)]

    return sample


def choose_excluded(
    reason: str, *, counts: np.ndarray, tokens: np.ndarray, num: int, seed: int
) -> np.ndarray:
    """Returns the ids of the clients that a closed model excludes, ascending.

    | reason | excluded clients |
    | --- | --- |
    | excluded_region | those with the largest share of one label, the most unevenly spread one |
    | excluded_price | those whose rows have the most tokens |
    | excluded_licence | drawn at random with the seed |

    Args:
      reason: one of `EXCLUSIONS`.
      counts: `[clients, labels]`, number of rows; one column where rows have no label.
      tokens: `[clients]`, number of tokens in a client's rows.
      num: number of excluded clients, from 1 to the number of clients minus 1.
      seed: of the random draw.

    Raises:
      ValueError: if all clients or none would be excluded.
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


def client_memory(
    population: int, *, size: int, least: float, most: float, seed: int
) -> np.ndarray:
    """Returns the memory of each client in bytes, float64 `[clients]`, log-uniform.

    Args:
      population: number of clients.
      size: of the target's weights, bytes.
      least: smallest memory, in sizes of the target, above 0.
      most: largest memory, in the same unit.
      seed: of the draw.

    Raises:
      ValueError: if `least` is not above 0, or above `most`.
    """
    if not 0 < least <= most:
        raise ValueError(
            f"least_memory={least:g} must be above 0 and at most most_memory={most:g}, in sizes "
            "of the target's weights"
        )
    drawn = np.random.default_rng((seed, 5)).uniform(np.log(least), np.log(most), population)
    return size * np.exp(drawn)


def check_excluded(num: int, population: int) -> None:
    """Checks that some clients, but not all, are excluded.

    Raises:
      ValueError: naming the argument and its range.
    """
    if not 0 < num < population:
        raise ValueError(
            f"excluded_clients={num} must be from 1 to {population - 1}, of {population} clients"
        )


def another_version(model: PyTree, key: jax.Array, *, change: float) -> PyTree:
    """Returns the model with noise on every matrix, as a stand-in for a later version of it.

    Each floating-point leaf of two or more dimensions gets independent normal noise.

    Args:
      model: any tree of arrays.
      key: of the noise.
      change: standard deviation of the noise over that of the leaf; 0 returns the same model.
    """
    leaves, form = jax.tree.flatten(model)
    keys = jax.random.split(key, max(len(leaves), 1))

    def perturb(leaf, key):
        if leaf.ndim < 2 or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        noise = jax.random.normal(key, leaf.shape, jnp.float32) * jnp.std(leaf.astype("float32"))
        return (leaf + change * noise).astype(leaf.dtype)

    return jax.tree.unflatten(form, [perturb(*pair) for pair in zip(leaves, keys, strict=True)])


def over_seeds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns one entry for each drill and method, ready for JSON, with lists over seeds.

    `lost` is before - after. The further values of `Row.extra` are lists over seeds as well.
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
            **{name: [row.extra.get(name) for row in found] for name in found[0].extra},
        }
        for (drill, method), found in groups.items()
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows of `over_seeds` as a text table, with means over seeds in percent."""
    head = ("drill", "method", "before", "after", "lost", "trains", "serves")
    lines = [head]
    for row in rows:
        means = [f"{100 * np.mean(row[name]):.1f}" for name in ("before", "after", "lost")]
        can = ["yes" if row[name] else "no" for name in ("can_train", "can_serve")]
        lines.append((row["drill"], row["method"], *means, *can))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pad = lambda line: "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
    return "\n".join(map(pad, lines))
