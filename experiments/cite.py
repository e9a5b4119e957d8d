"""Prints BibTeX of the papers that algorithms follow, each algorithm's own first.

python -m experiments.cite fed_adam scaffold > papers.bib
"""

import sys
from collections.abc import Sequence

from fedjax_post import study
from fedjax_post.algorithms import ALGORITHMS
from fedjax_post.experiments import program


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit code: 0, or 2 for an unknown algorithm."""
    argv = list(sys.argv if argv is None else argv)
    return program.run(lambda: _cite(argv[1:]))


def _cite(names: Sequence[str]) -> int:
    if not names or names[0] in ("--help", "-h"):
        print(f"{__doc__}\nThe algorithms are {', '.join(ALGORITHMS)}.")
        return 0 if names else 2
    print(study.cite(*names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
