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
from fedjax_post.data.table import gather
from fedjax_post.report.position.ladder import UNPROTECTED
from fedjax_post.study import cells
from fedjax_post.study.build import Parts
from fedjax_post.study.ladder_facts import Rung
from fedjax_post.study.seen import see, truth

Row = tuple[int, ...]


class Leaks(NamedTuple):
    """Which methods of a ladder are attacked, on which wires, and by what."""

    cells: Sequence[str] = ()  # names of open rungs
    attacks: Sequence[Attack] = ()
    wires: Mapping[str, Mapping[str, Any]] = {}  # name -> changes to the experiment, by path
    protected: Mapping[str, Mapping[str, Any]] = {}  # the same, of wires with a protection
    rounds: str = "0:2"  # that are recorded, as for `execution.record_wire`


def plan(
    leaks: Leaks, rungs: Mapping[str, Rung], seeds: Sequence[int], directory: Path
) -> list[tuple[str, str, cells.Cell]]:
    """Returns the name of the rung, the name of the wire, and the run, for each that is attacked.

    Args:
      leaks: what is attacked.
      rungs: the methods by name.
      seeds: of the runs.
      directory: of the ladder.

    Raises:
      ValueError: for a rung that is not open, or wires of the same name.
    """
    if twice := set(leaks.wires) & set(leaks.protected):
        raise ValueError(f"attacks have two wires named {min(twice)}; rename one")
    for name in leaks.cells:
        if name not in rungs or rungs[name].kind != "open":
            raise ValueError(f"attacks name {name}, which is no open method; its updates are sent")
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
    """Returns the runs that are attacked; arguments and errors are those of `plan`."""
    return [cell for _, _, cell in plan(leaks, rungs, seeds, directory)]


def carry_out(
    leaks: Leaks,
    rungs: Mapping[str, Rung],
    seeds: Sequence[int],
    directory: Path,
    *,
    show: cells.Show,
) -> list[dict[str, Any]]:
    """Runs and attacks, and returns an entry for each method, wire and attack.

    Args:
      leaks: what is attacked.
      rungs: the methods by name.
      seeds: of the runs.
      directory: of the ladder.
      show: called with each line of progress.
    """
    planned = plan(leaks, rungs, seeds, directory)
    cells.carry_out_all([cell for _, _, cell in planned], show=show)
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
    found = {}
    for attack in leaks.attacks:
        rng = np.random.default_rng(cell.spec.seed)
        recovered = guessed = whole = 0
        for sent in seen.sent:
            rows = truth(parts, sent, answers=False)
            guess = attack.invert(seen.public, sent).rows
            others = _others(parts, max(len(guess), len(rows)), rng)
            whole += sum(map(len, _private(parts, rows)))
            recovered += _common(parts, guess, rows)
            guessed += _common(parts, others, rows)
        found[attack.name] = recovered / max(whole, 1), guessed / max(whole, 1), whole
    return found


def _common(parts: Parts, guess: Sequence[Row], rows: Sequence[Row]) -> int:
    return tokens_found(_private(parts, guess), _private(parts, rows))


def _private(parts: Parts, rows: Sequence[Row]) -> list[Row]:
    """Returns rows without the tokens of the template, as often as it has them."""
    choices = parts.heldout.choices
    public = Counter(parts.heldout.prefix if choices is None else choices.null_prompt.tolist())
    return [tuple((Counter(row) - public).elements()) for row in rows]


def _others(parts: Parts, count: int, rng: np.random.Generator) -> list[Row]:
    """Returns the questions of held-out rows, drawn at random: what anybody could guess."""
    table = parts.heldout.table
    drawn = rng.integers(len(table.length), size=count)
    tokens = gather(table, drawn)[0]
    sizes = table.prompt_length[drawn]
    return [tuple(ids[:size].tolist()) for ids, size in zip(tokens, sizes, strict=True)]
