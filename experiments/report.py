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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, or 2 for bad input."""
    argv = list(sys.argv if argv is None else argv)
    return program.run(lambda: _report(argv))


def _report(argv: Sequence[str]) -> int:
    values = flags.FlagValues()
    about = "the page (report.html in the run's folder; of several, in the current one)"
    flags.DEFINE_string("output", None, about, flag_values=values)
    flags.DEFINE_bool("help", False, "show this text", short_name="h", flag_values=values)
    try:
        folders = values(list(argv))[1:]
    except flags.Error as error:
        raise ValueError(f"{error}; --help lists the flags") from None
    if values.help:
        print(__doc__, values.get_help(), sep="\n")
        return 0
    if not folders:
        raise ValueError("name the folder of a run on the command line; --help shows how")
    print(f"report     {report.write(folders, values.output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
