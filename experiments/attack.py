"""Attacks a run that was recorded: what an adversary learns of its clients' rows.

    python -m experiments.train --record_wire=0:2 --output_dir=runs/mine ...
    python -m experiments.attack runs/mine --attack=dager
    python -m experiments.attack runs/mine --attack=dager --adversary=participant
    python -m experiments.attack runs/any --attack='membership(num_rows=256)'

The attack is given the recorded messages, the public base and the public settings. Its guesses are
then compared with the rows, and the scores are added to the run's attacks.jsonl. Membership needs
no recording: it is given the trained model, and rows of which some were trained on.
"""

import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from fedjax_post import attacks, study
from fedjax_post.experiments import process, program
from fedjax_post.experiments.flags import parse
from fedjax_post.study.calls import parse as parse_call


class Members(NamedTuple):
    """Membership, which attacks the trained model and no messages."""

    num_rows: int  # of training, and as many held-out ones; 0: all


_ATTACKS: Mapping[str, Callable[..., Any]] = {
    **attacks.ATTACKS,
    "membership": lambda num_rows=512: Members(operator.index(num_rows)),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 2 for bad input, 130 if interrupted."""
    argv = list(sys.argv if argv is None else argv)
    return program.run(lambda: _attack(argv))


def _define(values: flags.FlagValues) -> None:
    give: dict[str, Any] = {"flag_values": values}
    about = f"{', '.join(_ATTACKS)}, with settings as in dager(threshold=0.05)"
    flags.DEFINE_string("attack", "dager", about, **give)
    about = "whose view the attack has: the server's, or a participant's"
    flags.DEFINE_enum("adversary", attacks.SERVER, attacks.ADVERSARIES, about, **give)


def _attack(argv: Sequence[str]) -> int:
    line = parse(argv, about=__doc__, own=[_define], words=("a run",))
    if line.help is not None:
        print(line.help)
        return 0
    if line.typed:
        given = ", ".join(f"`{path}`" for path in line.typed)
        raise ValueError(f"{given}: the run has its settings already; leave it out")
    try:
        (chosen,) = parse_call(line.values.attack, _ATTACKS)
    except ValueError as error:
        raise ValueError(f"--attack={line.values.attack}: {error}") from error
    run, command = line.words[0], process.command("attack", argv)
    if isinstance(chosen, Members):
        if line.values["adversary"].present:
            raise ValueError("--adversary: membership needs the trained model alone; leave it out")
        print(study.membership(run, num_rows=chosen.num_rows, command=command).table())
        return 0
    whose = line.values.adversary
    print(study.attack(run, chosen, adversary=whose, command=command).table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
