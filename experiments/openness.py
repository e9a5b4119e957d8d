"""What a base model opens, and what can be run on it, from the command line.

    python -m experiments.openness --passport=all
    python -m experiments.openness --passport=olmo-2
    python -m experiments.openness --what_can_i_run=llama-3.2 [--downgrade=LOGITS]

A passport of one's own is given by its path, ending in .toml.

    python -m experiments.openness --task=kinds --seeds=0,1,2

runs one task at every level of access, with the same clients, seeds and budget, and writes a
position report. All other flags are those of experiments.train, and go to every run. Ctrl-C
loses nothing: the same command with its --output_dir goes on.
"""

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from absl import flags

from experiments import process
from experiments.factories import declared
from fedjax_post.core.access import Access, AccessError
from fedjax_post.openness import page
from fedjax_post.openness.ledger import DisclosureError
from fedjax_post.openness.load import load_passport, passport_names
from fedjax_post.openness.passport import Passport


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 1 if a file failed, 2 for bad input, 130 if interrupted."""
    argv = list(sys.argv if argv is None else argv)
    options = _define()
    try:
        rest = options(argv, known_only=True)[1:]
        if options.help:
            print(__doc__, options.get_help(), sep="\n")
            return 0
        if options.task is not None:
            return _climb(options, rest, argv)
        _define()(argv)
        if rest:
            raise ValueError(f"{rest[0]!r} is no flag; write --name=value")
        print(_answer(options))
    except flags.UnrecognizedFlagError as error:
        return _refuse(f"{error}; --help lists the flags")
    except (flags.Error, ValueError, OSError, AccessError, DisclosureError) as error:
        return _refuse(str(error))
    return 0


def _define() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "print the flags", flag_values=values)
    about = "print a model's passport, 'all' for a table of all"
    flags.DEFINE_string("passport", None, about, flag_values=values)
    about = "print which methods a model's access allows, why not the others; 'all' for a matrix"
    flags.DEFINE_string("what_can_i_run", None, about, flag_values=values)
    about = "with --what_can_i_run: print what would be lost if it were open only to this tier"
    tiers = [tier.name for tier in Access]
    flags.DEFINE_enum("downgrade", None, tiers, about, case_sensitive=False, flag_values=values)
    task = "run a task at every level of access: a ladder by name, or the path of one's own .toml"
    flags.DEFINE_string("task", None, task, flag_values=values)
    flags.DEFINE_list("seeds", ["0"], "of the runs of --task", flag_values=values)
    where = "of --task: a new folder, or that of one to go on with (runs/<time>-ladder)"
    flags.DEFINE_string("output_dir", None, where, flag_values=values)
    return values


def _climb(options: flags.FlagValues, given: Sequence[str], argv: Sequence[str]) -> int:
    """Carries out a ladder."""
    for name in ("passport", "what_can_i_run", "downgrade"):
        if options[name].value is not None:
            raise ValueError(f"--{name}={options[name].value} and --task exclude each other")
    from experiments import (  # the training program, which a passport does not need
        hosting,
        ladder,
        ladder_runs,
    )

    hosting.check_typed(argv, given)
    where = Path(options.output_dir or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-ladder")
    process.prepare()
    command = f"python -m experiments.openness {shlex.join(argv[1:])}"
    try:
        seeds = ladder.seeds_of(options.seeds)
        return ladder_runs.carry_out(options.task, seeds, given, where, command=command)
    except KeyboardInterrupt:
        again = f"--output_dir={shlex.quote(str(where))}"
        print(f"\ninterrupted; the same command with {again} goes on", file=sys.stderr)
        return 130


def _answer(options: flags.FlagValues) -> str:
    """The text that the flags ask for."""
    if (options.passport is None) == (options.what_can_i_run is None):
        raise ValueError(
            f"--passport={options.passport} --what_can_i_run={options.what_can_i_run}: "
            f"give one of them; there are {', '.join(passport_names())}"
        )
    if options.passport is not None and options.downgrade is not None:
        raise ValueError(
            f"--downgrade={options.downgrade} says what could be run; "
            "give --what_can_i_run=MODEL in place of --passport"
        )
    if options.passport == "all":
        return page.passport_table([load_passport(name) for name in passport_names()])
    if options.passport is not None:
        return page.passport_page(_load("passport", options.passport))
    if options.what_can_i_run == "all" and options.downgrade is None:
        return page.methods_page([load_passport(name) for name in passport_names()], declared())
    passport = _load("what_can_i_run", options.what_can_i_run)
    if options.downgrade is None:
        return page.methods_page([passport], declared())
    return page.downgrade_page(passport, declared(), Access[options.downgrade.upper()])


def _load(flag: str, name: str) -> Passport:
    try:
        return load_passport(name)
    except ValueError as error:
        raise ValueError(f"--{flag}={name}: {error}") from None


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
