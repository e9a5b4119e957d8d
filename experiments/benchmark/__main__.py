"""Measures the costs of this library and of others.

    python -m experiments.benchmark --suite=tax
    python -m experiments.benchmark --table

A suite prints a table and appends one line of JSON per figure to the results file. `--table`
prints the contents of that file as Markdown. Measure on a machine that does nothing else.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from fedjax_post.experiments import process
from fedjax_post.experiments.benchmark import lines, table
from fedjax_post.experiments.benchmark.options import define, read_settings
from fedjax_post.experiments.benchmark.settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a suite; returns the exit code: 0, or 2 for bad input."""
    argv = list(sys.argv if argv is None else argv)
    try:
        options = define()
        rest = options(argv)[1:]
        if rest:
            raise ValueError(f"{rest[0]!r} is not a flag; write --name=value")
        if options.help or not (options.suite or options.table):
            print(__doc__, options.get_help(), sep="\n")
            return 0 if options.help else 2
        settings = read_settings(options)
    except (flags.Error, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    output = Path(options.output)
    if options.suite == "gpu":  # sides share the card, and peaks must be what was really used
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if options.suite:
        _measure(options.suite, settings, output=output, argv=argv[1:])
    if options.table:
        print(table.report(lines.read(output)))
    return 0


def _measure(suite: str, settings: Settings, *, output: Path, argv: Sequence[str]) -> None:
    process.prepare()
    module = importlib.import_module(f"fedjax_post.experiments.benchmark.{suite}")
    found = []
    for figure in module.measure(settings):
        found.append(lines.as_line(figure, suite=suite, argv=argv))
        lines.append(output, found[-1])
        print(table.figures_table(found[-1:]).splitlines()[-1], flush=True)
    print(f"\n{table.figures_table(found)}\n\n{len(found)} lines added to {output}")


if __name__ == "__main__":
    sys.exit(main())
