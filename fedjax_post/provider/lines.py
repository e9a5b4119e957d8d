"""Files of JSON lines that say for themselves whether they are as they were written.

Each line is an object whose last field, `check`, is a digest of the line without it. A line is
appended whole: after a process that was killed in the middle of one, the next one begins anew.
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
    """Adds a line, readable to its owner alone.

    Args:
      path: the file, made if missing.
      content: at least one field, none of them `check`; numbers finite.
      is_durable: return when it is on the disk.

    Raises:
      OSError: if it cannot be written; the file is then as it was.
    """
    text = json.dumps(content, allow_nan=False)
    line = f'{text[:-1]}{_CHECK}{_digest(text.encode())}"}}\n'.encode()
    with open(path, "a+b", opener=lambda name, how: os.open(name, how, 0o600)) as file:
        size = file.seek(0, os.SEEK_END)
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            line = b"\n" + line
        try:
            file.write(line)
            file.flush()
            if is_durable:
                os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def read(path: Path, *, check: Callable[[Any], Any]) -> Iterator[tuple[Any, int]]:
    """The lines of a file, and where each ends; an unfinished last one is left out.

    Args:
      path: the file.
      check: called with each value; raises ValueError, KeyError or TypeError for one that will
        not do.

    Raises:
      ValueError: naming the file and the number of the line.
      OSError: if it cannot be read, or is no file.
    """
    if not path.is_file():  # to open a pipe is to wait
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
                raise ValueError(f"{path}, line {number}: JSON that is nested too deep") from None
            except (ValueError, KeyError, TypeError) as error:
                what = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise ValueError(f"{path}, line {number}: {what}") from None
            yield value, end


def _value(line: bytes) -> Any:
    text = line[:-_TAIL] + b"}"
    if line != text[:-1] + f'{_CHECK}{_digest(text)}"}}'.encode():
        raise ValueError("it is not as it was written: its checksum differs, or it has none")
    value = json.loads(line, parse_constant=_refuse_constant)
    json.dumps(value, ensure_ascii=False).encode()  # halves of characters fail here
    del value["check"]
    return value


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")
