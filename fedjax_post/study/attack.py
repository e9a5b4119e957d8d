"""Attacks on a recorded run: each message is attacked, and the guesses are scored."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_post import attacks
from fedjax_post.report.table import columns
from fedjax_post.study import folder
from fedjax_post.study.seen import see, truth


class Attacked(NamedTuple):
    """The records of an attack on a run, one for each message."""

    records: list[dict[str, Any]]

    def table(self) -> str:
        """Returns the scores as a text table: a line for each message, and their means."""
        head = ["", "rows", "guessed", "ROUGE-1", "ROUGE-2", "exact", "stopped"]
        lines = [head, *([_name(line), *_cells(line)] for line in self.records)]
        if len(self.records) > 1:
            lines.append(["mean", *_cells(_mean(self.records))])
        return columns(lines)


def attack(
    directory: str | Path,
    chosen: attacks.Attack,
    *,
    adversary: str = attacks.SERVER,
    command: Sequence[str] = (),
    **supplied: Any,
) -> Attacked:
    """Returns the records of an attack, which are added to the run's `attacks.jsonl`.

    Args:
      directory: of a run that was recorded with `record_wire`.
      chosen: the attack, such as `attacks.dager()`.
      adversary: of `attacks.ADVERSARIES`: whose view it is.
      command: the command line, for the records.
      **supplied: as for `study.read`.

    Raises:
      FileNotFoundError: if nothing was recorded.
      ValueError: for another adversary, or messages that hold no change of parameters.
    """
    seen, parts = see(directory, adversary=adversary, **supplied)
    records = []
    for sent in seen.sent:
        began = time.perf_counter()
        guess = chosen.invert(seen.public, sent)
        seconds = time.perf_counter() - began
        rows = truth(parts, sent)
        decode, end = seen.public.decode_fn, seen.public.eos_id
        scores = attacks.score(guess.rows, rows, decode_fn=decode, eos_id=end)
        records.append(
            {
                "attack": chosen.name,
                "adversary": adversary,
                "round": sent.round,
                "clients": list(sent.clients),
                "num_steps": sent.num_steps,
                **scores._asdict(),
                "stopped": guess.stopped,
                "numbers": guess.numbers,
                "seconds": seconds,
                "command": list(command),
            }
        )
    folder.add_lines(Path(directory) / folder.ATTACKS, records)
    return Attacked(records)


def _name(line: Mapping[str, Any]) -> str:
    clients = line["clients"]
    who = f"client {clients[0]}" if len(clients) == 1 else f"{len(clients) or 'all'} clients"
    return f"round {line['round']}, {who}"


def _cells(line: Mapping[str, Any]) -> list[str]:
    return [
        f"{line['rows']:g}",
        f"{line['guessed']:g}",
        f"{line['rouge1']:.1f}",
        f"{line['rouge2']:.1f}",
        f"{100 * line['exact']:.1f} %",
        line["stopped"],
    ]


def _mean(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = ("rows", "guessed", "rouge1", "rouge2", "exact")
    return {name: float(np.mean([line[name] for line in records])) for name in names} | {
        "stopped": ""
    }
