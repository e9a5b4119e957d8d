"""What each party recovers of the clients' questions on a ladder's own wires, in one unit (H7).

The unit is the share of the private tokens of a visit's questions: templates and answers are left
out. A provider of the target reads all of what it is asked, so that its share is 1, by the meter.
The server has to attack the updates.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_post.attacks import SERVER, Attack, tokens_found
from fedjax_post.data.table import TokenTable, gather
from fedjax_post.report.position.ladder import UNPROTECTED
from fedjax_post.study import cells
from fedjax_post.study.build import Parts
from fedjax_post.study.ladder_facts import Rung
from fedjax_post.study.seen import see, truth

Row = tuple[int, ...]
DRAWS = 200  # of held-out questions, over which guessing is averaged
# What a wire may change and stay that of its cell: how many visits and rounds there are
_HOW_MANY = {"training.cohort_size", "training.rounds", "scoring.examples", "scoring.every"}


class Leaks(NamedTuple):
    """Which methods of a ladder are attacked, on which wires, and by what."""

    cells: Sequence[str] = ()  # names of open rungs
    attacks: Sequence[Attack] = ()
    wires: Mapping[str, Mapping[str, Any]] = {}  # name -> changes to the experiment, by path
    protected: Mapping[str, Mapping[str, Any]] = {}  # the same, of wires with a protection
    rounds: str = "0:2"  # that are recorded, as for `execution.record_wire`


def check(leaks: Leaks, rungs: Mapping[str, Rung]) -> None:
    """Checks what is attacked.

    Raises:
      ValueError: for a rung that is not open, wires of the same name, or if there are cells,
        attacks or wires without the others.
    """
    if twice := set(leaks.wires) & set(leaks.protected):
        raise ValueError(f"attacks have two wires named {min(twice)}; rename one")
    for name in leaks.cells:
        if name not in rungs or rungs[name].kind != "open":
            raise ValueError(f"attacks name {name}, which is no open method; its updates are sent")
    wires = {**leaks.wires, **leaks.protected}
    given = {"cells": leaks.cells, "attacks": leaks.attacks, "wires": wires}
    missing = [name for name, value in given.items() if not value]
    if missing and len(missing) < len(given):
        raise ValueError(f"attacks have no {missing[0]}, so that nothing is attacked; give some")


def plan(
    leaks: Leaks, rungs: Mapping[str, Rung], seeds: Sequence[int], directory: Path
) -> list[tuple[str, str, cells.Cell]]:
    """Returns the name of the rung, the name of the wire, and the run, for each that is attacked.

    Args:
      leaks: what is attacked.
      rungs: the methods by name.
      seeds: of the runs.
      directory: of the ladder.
    """
    last = int(leaks.rounds.partition(":")[2] or 1)
    usual = {"execution.record_wire": leaks.rounds, "training.rounds": last, "scoring.every": 0}
    return [
        (
            name,
            wire,
            cells.Cell(
                f"{rungs[name].title or name}, {wire}",
                rungs[name].spec.replace(seed=seed).put(usual | dict(changes)),
                directory / "attacks" / name / wire / f"seed-{seed}",
            ),
        )
        for name in leaks.cells
        for wire, changes in (*leaks.wires.items(), *leaks.protected.items())
        for seed in seeds
    ]


def plan_cells(
    leaks: Leaks, rungs: Mapping[str, Rung], seeds: Sequence[int], directory: Path
) -> list[cells.Cell]:
    """Returns the runs that are attacked; arguments are those of `plan`."""
    return [cell for _, _, cell in plan(leaks, rungs, seeds, directory)]


def carry_out(
    leaks: Leaks,
    rungs: Mapping[str, Rung],
    seeds: Sequence[int],
    directory: Path,
    *,
    ask_again: bool = False,
    show: cells.Show,
) -> list[dict[str, Any]]:
    """Runs and attacks, and returns an entry for each method, wire and attack.

    Args:
      leaks: what is attacked.
      rungs: the methods by name.
      seeds: of the runs.
      directory: of the ladder.
      ask_again: as for `cells.carry_out_all`.
      show: called with each line of progress.

    Raises:
      ValueError: if no private token was sent in a run, naming it and the remedy.
    """
    planned = plan(leaks, rungs, seeds, directory)
    runs = [cell for _, _, cell in planned]
    cells.carry_out_all(runs, ask_again=ask_again, show=show)
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for name, wire, cell in planned:
        for attack, shares in _attacked(leaks, cell).items():
            show(f"{cell.label}, seed {cell.spec.seed}: {attack} finds {100 * shares[0]:.1f} %")
            row = found.setdefault(
                (name, wire, attack),
                {
                    "party": SERVER,
                    "method": name,
                    "attack": attack,
                    "wire": wire,
                    "protection": wire if wire in leaks.protected else UNPROTECTED,
                    "own": not set(leaks.wires.get(wire, {})) - _HOW_MANY,
                    **{key: [] for key in ("recovered", "guess", "tokens")},
                },
            )
            for key, value in zip(("recovered", "guess", "tokens"), shares, strict=True):
                row[key].append(value)
        jax.clear_caches()
    return list(found.values())


def _attacked(leaks: Leaks, cell: cells.Cell) -> dict[str, tuple[float, float, int]]:
    """Returns the shares that attacks recover and that guessing finds, and the private tokens."""
    seen, parts = see(cell.directory)
    visits = [(sent, _private(parts, truth(parts, sent, answers=False))) for sent in seen.sent]
    whole = sum(len(row) for _, rows in visits for row in rows)
    if not whole:
        raise ValueError(_nothing_sent(leaks, cell, len(visits)))
    others = [Counter(row) for row in _private(parts, _questions(parts.heldout.table))]
    found = {}
    for attack in leaks.attacks:
        rng = np.random.default_rng(cell.spec.seed)
        recovered = guessed = 0.0
        for sent, rows in visits:
            guess = _private(parts, attack.invert(seen.public, sent).rows)
            recovered += tokens_found(guess, rows)
            guessed += guessed_tokens(others, rows, max(len(guess), len(rows)), rng)
        found[attack.name] = recovered / whole, guessed / whole, whole
    return found


def _nothing_sent(leaks: Leaks, cell: cells.Cell, num_visits: int) -> str:
    """Returns the message on a run without a private token, of which no share can be taken."""
    if num_visits:
        why = f"no question of the {num_visits} recorded visits has a private token"
        remedy = "give clients rows with text that the template lacks"
    else:
        why = f"no visit was recorded in the rounds {leaks.rounds}"
        remedy = "let `rounds` of [attacks] be some in which clients send updates"
    return (
        f"{cell.label}, seed {cell.spec.seed}: on the wire {cell.directory.parent.name} {why}, so "
        f"that nothing can be recovered from the run in {cell.directory}; {remedy}, remove "
        f"{cell.directory.parents[2]}, and repeat the command, which keeps all other runs"
    )


def guessed_tokens(
    others: Sequence[Counter[int]], rows: Sequence[Row], num_guesses: int, rng: np.random.Generator
) -> float:
    """Returns how many tokens of the true rows random questions have, as `tokens_found` counts.

    It is the mean over `DRAWS` draws, as a single one would differ more than attacks do.

    Args:
      others: the tokens of each question that may be drawn.
      rows: the true rows.
      num_guesses: of a draw; a question may be drawn more than once.
      rng: the source of randomness.
    """
    if not rows:
        return 0.0
    tokens = sorted(set().union(*rows))
    counts = np.array([[other[token] for token in tokens] for other in others])
    wanted = np.array([[row.count(token) for token in tokens] for row in rows])
    # common[i, j]: how many tokens the question i has in common with the true row j
    common = np.stack([np.minimum(counts, row).sum(axis=1) for row in wanted], axis=1)
    left = common[rng.integers(len(others), size=(DRAWS, num_guesses))]
    found, draw = np.zeros(DRAWS), np.arange(DRAWS)
    for _ in range(min(num_guesses, len(rows))):  # pairs with the most common tokens come first
        i, j = np.divmod(left.reshape(DRAWS, -1).argmax(axis=1), len(rows))
        found += left[draw, i, j]
        left[draw, i, :] = left[draw, :, j] = 0
    return float(found.mean())


def _private(parts: Parts, rows: Sequence[Row]) -> list[Row]:
    """Returns rows without the tokens of the template, as often as it has them."""
    choices = parts.heldout.choices
    public = Counter(parts.heldout.prefix if choices is None else choices.null_prompt.tolist())
    return [tuple((Counter(row) - public).elements()) for row in rows]


def _questions(table: TokenTable) -> list[Row]:
    """Returns the questions of held-out rows, of which anybody could guess some."""
    tokens = gather(table, np.arange(len(table.length)))[0]
    sizes = table.prompt_length.tolist()
    return [tuple(ids[:size].tolist()) for ids, size in zip(tokens, sizes, strict=True)]
