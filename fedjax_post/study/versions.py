"""The versions of packages and the commit that produced a result."""

import os
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_HERE = Path(__file__).parent


def versions_of(packages: Sequence[str]) -> dict[str, str | None]:
    """Returns the installed version of each package; None if it is not installed."""
    return {name: _version(name) for name in packages}


def commit(*excluded: Path) -> str | None:
    """Returns the commit of the checkout that contains this file; None outside a checkout.

    A "+" is appended if tracked files, other than those in `excluded`, have changed since.
    """
    git = ["git", "-C", str(_HERE)]
    aside = [f":(exclude){os.path.relpath(path, _HERE)}" for path in excluded]
    status = [*git, "status", "--porcelain", "-uno", "--", ":/", *aside]
    try:
        found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run(status, capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() + "+" * bool(changed.stdout) if found.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
