"""Several algorithms on the same clients, seeds and budget, and what each gives for its bytes.

    python -m experiments.compare --algorithms=fed_avg,scaffold,ffa_lora:client_lr=0.3 --seeds=0,1,2

An algorithm is followed by flags of its own after colons; all other flags of
experiments.train are given once and go to every run, by `--flagfile` too. Each run is an
ordinary one, in a folder <output_dir>/<algorithm>/seed-<seed>. The same command goes on
after Ctrl-C or a kill, and does not repeat runs that are finished; more seeds or
algorithms may be added to a comparison. Its tables and its picture are drawn from the run
folders alone.
"""

import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import jax
from absl import flags as absl_flags

from experiments import flags, folder, hosting, train
from experiments.build import build
from fedjax_post.core.access import AccessError
from fedjax_post.report import comparison

# what differs between equal runs: where they lie, and what they show on the way
_INCIDENTAL = ("--output_dir", "--resume", "--noresume", "--chunk_size", "--checkpoint_every")


class Run(NamedTuple):
    """One run of a comparison."""

    label: str  # the algorithm with its own flags, as given
    seed: int
    directory: Path
    given: list[str]  # flags of experiments.train

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return (self.directory / "summary.json").exists()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, 2 for bad input, 130 if interrupted."""
    argv = list(sys.argv if argv is None else argv)
    try:
        own, common = _parse(argv)
        if own.help:
            print(__doc__, own.get_help(), sep="\n")
            return 0
        output_dir = Path(own.output_dir or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-comparison")
        runs = plan_runs(own.algorithms, own.seeds, common, output_dir)
        check_runs(runs)
    except absl_flags.UnrecognizedFlagError as error:
        return _refuse(f"{error}; --help lists the flags, those of experiments.train go with them")
    except (absl_flags.Error, ValueError, OSError, AccessError) as error:
        return _refuse(str(error))
    print(f"{len(runs)} runs, {sum(run.done for run in runs)} of them finished, in {output_dir}")
    try:
        code = carry_out(runs)
    except KeyboardInterrupt:  # between two runs, or before one has begun
        code = 130
    if code == 0:
        labels = list(dict.fromkeys(run.label for run in runs))
        print(comparison.write(output_dir, labels, command=shlex.join(["compare", *argv[1:]])))
    elif code == 130:
        where = f"--output_dir={shlex.quote(str(output_dir))}"
        print(f"\ninterrupted; the same command with {where} goes on", file=sys.stderr)
    return code


def plan_runs(
    algorithms: str, seeds: Sequence[str], common: Sequence[str], output_dir: Path
) -> list[Run]:
    """Returns the runs, all algorithms of the first seed first.

    Args:
      algorithms: `name:flag=value:..`, with commas between algorithms.
      seeds: whole numbers.
      common: flags of every run.
      output_dir: of the comparison.

    Raises:
      ValueError: if an algorithm or a seed is missing, wrong or given twice.
    """
    chosen = [entry for entry in _split(algorithms, ",") if entry]
    if not chosen:
        raise ValueError("--algorithms names none; give some, such as fed_avg,scaffold")
    if not seeds or not all(seed.strip().isdecimal() for seed in seeds):
        raise ValueError(f"--seeds={','.join(seeds)} must be whole numbers, such as 0,1,2")
    for name, given in (("algorithms", chosen), ("seeds", [int(seed) for seed in seeds])):
        twice = [item for item in given if given.count(item) > 1]
        if twice:
            raise ValueError(f"--{name} has {twice[0]} twice; give it once")
    runs = []
    for seed in seeds:
        for entry in chosen:
            parts = _split(entry, ":")
            name = ":".join(part for part in parts if not re.match(r"\w+=", part))
            own = [f"--{part}" for part in parts if re.match(r"\w+=", part)]
            where = output_dir / comparison.folder_of(entry) / f"seed-{int(seed)}"
            given = [f"--algorithm={name}", *own, f"--seed={int(seed)}"]
            runs.append(Run(entry, int(seed), where, [*common, *given]))
    return runs


def _split(text: str, separator: str) -> list[str]:
    """The pieces between separators that no parentheses enclose, stripped."""
    pieces, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == separator and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return [piece.strip() for piece in pieces]


def _parse(argv: Sequence[str]) -> tuple[absl_flags.FlagValues, list[str]]:
    own = absl_flags.FlagValues()
    absl_flags.DEFINE_bool("help", False, "print the flags", flag_values=own)
    what = "name:flag=value:.., with commas between algorithms"
    absl_flags.DEFINE_string("algorithms", "", what, flag_values=own)
    absl_flags.DEFINE_list("seeds", ["0", "1", "2"], "of the runs", flag_values=own)
    where = "a new folder, or that of a comparison to go on with (runs/<time>-comparison)"
    absl_flags.DEFINE_string("output_dir", None, where, flag_values=own)
    common = own(list(argv), known_only=True)[1:]
    hosting.check_typed(argv, common)
    for flag in ("algorithm", "seed", "resume"):
        if any(re.match(rf"--(no)?{flag}(=|$)", given) for given in common):
            raise ValueError(f"--{flag} is set by --algorithms and --seeds; leave it out")
    return own, common


def check_runs(runs: Sequence[Run]) -> None:
    """Refuses what a run would refuse, and folders that hold other runs, before any is started.

    Raises:
      ValueError, OSError, AccessError: for input that will not do.
    """
    for run in runs:
        options = flags.parse(["train", *run.given, f"--output_dir={run.directory}"])
        stored = run.directory / "flags"
        if stored.exists():
            _check_same(run, options, stored.read_text(encoding="utf-8").splitlines())
        elif run.seed == runs[0].seed and not run.directory.exists():
            with (
                open(os.devnull, "w", encoding="utf-8") as silent,
                contextlib.redirect_stderr(silent),
            ):
                build(options)
    for run in runs:  # a folder that is there was checked
        run.directory.mkdir(parents=True, exist_ok=True)


def _check_same(run: Run, options: absl_flags.FlagValues, stored: list[str]) -> None:
    before = flags.parse(["train", *stored])  # flags that did not exist then have their defaults
    keep = lambda given: {
        line for line in folder.flag_lines(given) if line.split("=")[0] not in _INCIDENTAL
    }
    differing = keep(before) ^ keep(options)
    if differing:
        raise ValueError(
            f"{run.directory} holds a run with other flags ({', '.join(sorted(differing)[:4])}); "
            "give another --output_dir, or the flags of that comparison"
        )


def carry_out(runs: Sequence[Run]) -> int:
    """Carries out what is not finished, a line for each run; returns an exit code."""
    left = [run for run in runs if not run.done]
    began = time.perf_counter()
    for number, run in enumerate(left, 1):
        resume = ["--resume"] if (run.directory / "flags").exists() else []
        given = ["train", *run.given, f"--output_dir={run.directory}", *resume]
        print(f"{number}/{len(left)}  {run.label}, seed {run.seed}", flush=True)
        output = run.directory / "output.txt"
        with open(output, "a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            code = train.main(given)
        if code:
            return code
        jax.clear_caches()  # the next algorithm shares none of the compiled programs
        minutes = (time.perf_counter() - began) / number * (len(left) - number) / 60
        told = comparison.describe(comparison.read_run(run.directory))
        print(f"      {told}; about {minutes:.0f} minutes to go", flush=True)
    return 0


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
