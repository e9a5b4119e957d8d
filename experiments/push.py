"""Uploads what a run deploys to a model hub, with a card that says how it was made.

    python -m experiments.push runs/<a run> user/name --dry_run
    python -m experiments.push runs/<a run> user/name

--dry_run prints the card and sends nothing. The repository is private unless --public is given.
The token is that of `hf auth login`, or in HF_TOKEN. In a notebook: `fedjax_post.study.push`.
"""

import sys
from collections.abc import Sequence

from absl import flags

from fedjax_post import study
from fedjax_post.experiments import program
from fedjax_post.experiments.flags import words
from fedjax_post.study.push import card


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, or 2 for bad input."""
    argv = list(sys.argv if argv is None else argv)
    return program.run(lambda: _push(argv))


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("public", False, "make a new repository public", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "print the card, and send nothing", flag_values=values)


def _push(argv: Sequence[str]) -> int:
    line = words.parse(argv, about=__doc__, define=_define)
    if line.help is not None:
        print(line.help)
        return 0
    if len(line.words) != 2:
        raise ValueError("name a run's folder and a repository, as user/name; --help shows how")
    run, repo = line.words
    if line.values.dry_run:
        print(card(run))
        return 0
    print(f"uploaded   {study.push(run, repo, public=line.values.public)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
