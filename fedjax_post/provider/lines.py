"""Files of JSON lines with checksums.

Each line is an object whose last field, `check`, is a digest of the line without it. If a process
was killed in the middle of a line, the next line begins on a new one.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

_CHECK = ', "check": "'
_TAIL = len(_CHECK) + 16 + len('"}')


def append(path: Path, content: Mapping[str, Any], *, is_durable: bool = False) -> None:
    """Appends a line; the file is readable only by its owner.

    Args:
      path: the file, created if missing.
      content: at least one field, none of them `check`; numbers finite.
      is_durable: whether to return only when the line is on disk.

    Raises:
      OSError: if it cannot be written; the file is then unchanged.
    """
    text = json.dumps(content, allow_nan=False)
    line = f'{text[:-1]}{_CHECK}{_digest(text.encode())}"}}\n'.encode()
    opener = lambda name, how: os.open(name, how, 0o600)
    # Without a buffer: closing the file would write what is left of a line that was taken back
    with open(path, "a+b", buffering=0, opener=opener) as file:
        size = file.seek(0, os.SEEK_END)
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            line = b"\n" + line
        try:
            left = line
            while left:
                left = left[file.write(left) :]
            if is_durable:
                os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def read(path: Path, *, check: Callable[[Any], Any]) -> Iterator[tuple[Any, int]]:
    """Returns an iterator over a file's lines and their ends; an incomplete last one is left out.

    Args:
      path: the file.
      check: called with each value; raises ValueError, KeyError or TypeError for invalid ones.

    Returns:
      An iterator over (value, position in bytes after the line).

    Raises:
      ValueError: naming the file and the number of the line.
      OSError: if it cannot be read, or is not a regular file.
    """
    if not path.is_file():  # opening a pipe would block
        raise OSError(f"{path} is no file")
    end = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                value = _value(line[:-1])
                check(value)
            except RecursionError:
                raise ValueError(f"{path}, line {number}: JSON is nested too deeply") from None
            except (ValueError, KeyError, TypeError) as error:
                what = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise ValueError(f"{path}, line {number}: {what}") from None
            yield value, end


def _value(line: bytes) -> Any:
    text = line[:-_TAIL] + b"}"
    if line != text[:-1] + f'{_CHECK}{_digest(text)}"}}'.encode():
        raise ValueError("it has changed since it was written: its checksum differs or is missing")
    value = json.loads(line, parse_constant=_refuse_constant)
    json.dumps(value, ensure_ascii=False).encode()  # lone surrogates fail here
    del value["check"]
    return value


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")
