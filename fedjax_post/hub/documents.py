"""Reads and writes JSON files; errors name the file and the problem in one line."""

import json
import os
from pathlib import Path
from typing import Any


def check_regular(path: Path) -> None:
    """Raises if a path is not a regular file, since opening a pipe or a device may never end.

    Raises:
      FileNotFoundError: if the path, or the target of a link, does not exist.
      ValueError: if it is a folder, a pipe, a socket or a device.
    """
    if path.is_file():
        return
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; copy or download it again")
    raise ValueError(f"{path} is a folder, a pipe or a device; put a regular file there")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds.

    Raises:
      OSError: if there is no such file, or it cannot be read.
      ValueError: if it is not a regular file, not JSON, nested too deeply, or not an object.
    """
    check_regular(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is JSON that is nested too deeply to be read") from None
    except ValueError as error:  # includes text that is not UTF-8
        raise ValueError(f"{path} is not JSON: {error}; copy or download it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, got a {type(found).__name__}")
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes an object as a JSON file, either completely or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, path)
