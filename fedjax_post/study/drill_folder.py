"""The folder of a method's drills: what its runs were played with, and what of it may change."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_post.integrity import read_file
from fedjax_post.study import folder
from fedjax_post.study.faults import Settings
from fedjax_post.study.files import write_spec
from fedjax_post.study.job import check_same
from fedjax_post.study.spec import Spec

SETTINGS = "settings.json"
# They change what is told of the runs, and no run
_FREE = ("own_examples", "passport", "data_licence", "measure")


def claim(directory: Path, spec: Spec, settings: Settings) -> None:
    """Writes what drills are played with into their folder; the caller holds it.

    Runs that have ended are not played again, so that another setting would get their results.

    Args:
      directory: an existing folder, empty or with drills to continue.
      spec: the experiment.
      settings: with `at_round` filled in.

    Raises:
      ValueError: if the folder has drills of another experiment or with other settings, naming
        what differs; fields that are `free`, such as budgets, may differ.
    """
    stored, settled = directory / folder.SPEC, directory / SETTINGS
    given = {name: value for name, value in settings._asdict().items() if name not in _FREE}
    if stored.exists():
        check_same(spec, stored, alike=True)
        _check_settings(given, settled)
    folder.write_json(settled, given)
    write_spec(stored, spec)


def _check_settings(given: Mapping[str, Any], settled: Path) -> None:
    if not settled.exists():
        raise ValueError(
            f"{settled.parent} contains drills of an earlier version, which has not recorded their "
            "settings; remove it to run them again, or give another `directory`"
        )
    before = read_file(settled)
    for name, value in given.items():
        if before.get(name) != value:
            raise ValueError(
                f"{name}={value} differs from the drills in {settled.parent}, which have "
                f"{before.get(name)}; give that to continue, or another `directory`"
            )
