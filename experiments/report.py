"""Writes one HTML page about runs: scores, curves, costs, clients, privacy and origin.

    python -m experiments.report runs/<a run>
    python -m experiments.report runs/<a run> runs/<another> runs/<a comparison> --output=page.html

Runs that differ only in their seed are one experiment, shown with intervals. The page includes its
pictures. It is made from the folders alone; a run need not have ended. In a notebook:
`fedjax_post.report.write`.
"""

import sys
from collections.abc import Sequence

from absl import flags

from fedjax_post import report
from fedjax_post.experiments import program
from fedjax_post.experiments.flags import words


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, or 2 for bad input."""
    argv = list(sys.argv if argv is None else argv)
    return program.run(lambda: _report(argv))


def _define(values: flags.FlagValues) -> None:
    about = "the page (report.html in the run's folder; of several, in the current one)"
    flags.DEFINE_string("output", None, about, flag_values=values)


def _report(argv: Sequence[str]) -> int:
    line = words.parse(argv, about=__doc__, define=_define)
    if line.help is not None:
        print(line.help)
        return 0
    if not line.words:
        raise ValueError("name the folder of a run on the command line; --help shows how")
    print(f"report     {report.write(line.words, line.values.output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
