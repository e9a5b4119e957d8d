"""Checksums of what a run writes: in lines and files of JSON, and over whole folders.

A line or a file of JSON ends in a field with the checksum of its text without that field:
`"crc32"` in a line, `"sha256"` in a file. A folder has a file `SHA256SUMS` in the format of
`sha256sum`. Checksums detect accidental damage: a changed bit, a missing end, a file that was
replaced. They are not signatures: anyone who can write a file can write a valid checksum.

NaN and infinities, which JSON cannot represent, are stored as null, and the field `not_finite`
lists their names.
"""

import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"
_LINE_END = re.compile(r', "crc32": "([0-9a-f]{8})"\}\Z')
_FILE_END = re.compile(r',\n  "sha256": "([0-9a-f]{64})"\n\}\n\Z')


class DamagedError(ValueError):
    """Raised if a file differs from what was written."""


def seal_line(content: Mapping[str, Any]) -> str:
    """Returns a non-empty object as a line of JSON with its checksum.

    >>> from fedjax_post.integrity import open_line, seal_line
    >>> line = seal_line({"round": 3})
    >>> print(line, end="")
    {"round": 3, "crc32": "ebc261a3"}
    >>> open_line(line.strip(), "line 1")
    {'round': 3}
    """
    text = json.dumps(_finite(content), allow_nan=False)
    return f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}\n'


def open_line(line: str, where: str) -> dict[str, Any]:
    """Returns the object of a line that `seal_line` wrote.

    Args:
      line: without its line break.
      where: file and line number, for messages.

    Raises:
      DamagedError: if the line differs from what was written.
    """
    found = _LINE_END.search(line[-30:])
    if found is None:
        _parse(line, where)
        raise DamagedError(f"{where} has no checksum: it was cut, or not written by this version")
    text = line[: len(line) - len(found[0])] + "}"
    _check(f"{zlib.crc32(text.encode()):08x}", found[1], where)
    return _parse(text, where)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file of sealed lines.

    Raises:
      FileNotFoundError: if there is no such file.
      DamagedError: if a line differs from what was written; the message names the first one.
    """
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line:
            yield open_line(line, f"{path}, line {number},")


def seal_file(content: Mapping[str, Any]) -> str:
    """Returns a non-empty object as the text of a JSON file with its checksum."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    return f'{text[:-2]},\n  "sha256": "{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'


def read_file(path: Path) -> dict[str, Any]:
    """Returns the object of a file that `seal_file` made.

    Raises:
      FileNotFoundError: if there is no such file.
      DamagedError: if the file differs from what was written.
    """
    return check_file(_text(path), str(path))


def check_file(text: str, where: str) -> dict[str, Any]:
    """Returns the object of a text that `seal_file` made.

    Args:
      text: the content of the whole file.
      where: name of the file, for messages.

    Raises:
      DamagedError: if the text differs from what was written.
    """
    found = _FILE_END.search(text[-90:])
    if found is None:
        _parse(text, where)
        raise DamagedError(f"{where} has no checksum: it was cut, or not written by this version")
    text = text[: len(text) - len(found[0])] + "\n}"
    _check(hashlib.sha256(text.encode()).hexdigest(), found[1], where)
    return _parse(text, where)


def write_sums(folder: Path) -> None:
    """Writes the checksums of all files in a folder to its `SHA256SUMS` and syncs it to disk."""
    lines = [f"{_sum_of(path)}  {name}\n" for name, path in _files(folder)]
    with open(folder / SUMS, "w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def check_sums(folder: Path) -> None:
    """Compares the files in a folder with its `SHA256SUMS`.

    Raises:
      DamagedError: if a file is missing, new or changed; the message names the first one.
    """
    if not (folder / SUMS).is_file():
        raise DamagedError(f"{folder} has no {SUMS}: it is damaged, or from an older version")
    lines = [line.partition("  ") for line in _text(folder / SUMS).splitlines()]
    listed = {name: value for value, _, name in lines}
    found = dict(_files(folder))
    for name in sorted(listed.keys() ^ found.keys()):
        why = "is missing" if name in listed else f"is not in {SUMS}"
        raise DamagedError(f"{folder / name} {why}")
    for name, path in found.items():
        _check(_sum_of(path), listed[name], f"{path}")


def _files(folder: Path) -> list[tuple[str, Path]]:
    every = (path for path in sorted(folder.rglob("*")) if not path.is_dir())
    named = ((path.relative_to(folder).as_posix(), path) for path in every)
    return [(name, path) for name, path in named if name != SUMS]


def _sum_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(found: str, written: str, where: str) -> None:
    if found != written:
        raise DamagedError(f"{where} is damaged: its checksum is {found[:8]}, not {written[:8]}")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path} is damaged: it is not text at byte {error.start}") from None


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DamagedError(f"{where} is not a JSON object but {type(content).__name__}")
    return content


def _finite(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content with null for numbers that are not finite, and their names."""
    lost: list[str] = []

    def replace(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {key: replace(item, f"{name}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [replace(item, f"{name}.{i}") for i, item in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            lost.append(name[1:])
            return None
        return value

    whole = replace(content, "")
    return whole | {"not_finite": lost} if lost else whole
