"""Python environments of the peers, made when they are first needed."""

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Skipped(Exception):
    """A comparison that cannot be made here; the message states the reason and the remedy."""


class Environment(NamedTuple):
    """What a peer needs, as requirements for pip."""

    name: str
    requirements: tuple[str, ...]


# The versions to which the figures apply. Pip chooses whether torch has CUDA.
TORCH = Environment(
    "torch", ("torch==2.13.0", "peft==0.21.2", "transformers==5.23.0", "safetensors", "numpy")
)
FLOWER = Environment("flower", ("flwr[simulation]==1.41.0", "numpy"))
# The release of 2023 does not run on a current JAX; the head of its repository does.
FEDJAX = Environment("fedjax", ("fedjax @ git+https://github.com/google/fedjax",))


def interpreter(
    environment: Environment, cache: Path, *, given: Mapping[str, str] | None = None
) -> Path:
    """Returns the Python of an environment, which is made under `cache` if it does not exist.

    Args:
      environment: the requirements.
      cache: folder of the environments; an existing one with the same requirements is reused.
      given: interpreters of the user's own environments, by name; they come first.

    Raises:
      Skipped: if it cannot be installed.
    """
    if environment.name in (given or {}):
        return Path((given or {})[environment.name])
    folder = cache / environment.name
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = folder / "complete"
    wanted = "\n".join(environment.requirements)
    if complete.exists() and complete.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    print(f"installing {', '.join(environment.requirements)} into {folder}", flush=True)
    try:
        _call(sys.executable, "-m", "venv", str(folder))
        _call(str(python), "-m", "pip", "install", "--quiet", *environment.requirements)
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        output = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        raise Skipped(
            f"{environment.name} cannot be installed ({output[-1] if output else error}); make an "
            f"environment with {', '.join(environment.requirements)} by hand and name its "
            f"interpreter by --pythons={environment.name}=<path>"
        ) from None
    complete.write_text(wanted)
    return python


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
