"""Files in requests: `multipart/form-data`, written and read."""

import re
import uuid
from collections.abc import Mapping
from typing import NamedTuple

_BOUNDARY = re.compile(r'multipart/form-data\s*;.*?boundary="?([^\s";]{1,70})"?', re.I)
_NAME = re.compile(rb'(?<![a-z])name="([^"]{0,200})"', re.I)
_FILENAME = re.compile(rb'filename="([^"]{0,200})"', re.I)


class Field(NamedTuple):
    """A field of a form."""

    content: bytes
    filename: str = ""  # "" for a field that is no file


def write(fields: Mapping[str, Field]) -> tuple[bytes, str]:
    """Returns the body of a form and its content type."""
    boundary = uuid.uuid4().hex
    lines: list[str | bytes] = []
    for name, field in fields.items():
        file = f'; filename="{field.filename}"' if field.filename else ""
        lines += [f"--{boundary}", f'Content-Disposition: form-data; name="{name}"{file}', ""]
        lines.append(field.content)
    lines += [f"--{boundary}--", ""]
    body = b"\r\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    return body, f"multipart/form-data; boundary={boundary}"


def read(body: bytes, content_type: str) -> dict[str, Field]:
    """Returns the fields of a form by name.

    Args:
      body: of the request.
      content_type: the header of that name, with the boundary.

    Raises:
      ValueError: if it is no form, is cut off, or has a field twice or without a name.

    >>> read(*write({"a": Field(b"1"), "file": Field(b"2", "x.txt")}))["file"]
    Field(content=b'2', filename='x.txt')
    """
    found = _BOUNDARY.match(content_type)
    if not found:
        raise ValueError("must be sent as multipart/form-data, with its boundary")
    parts = (b"\r\n" + body).split(b"\r\n--" + found[1].encode("latin-1"))[1:]
    if not parts or not parts[-1].startswith(b"--"):
        raise ValueError("ends before its last boundary")
    fields: dict[str, Field] = {}
    for part in parts[:-1]:
        head, gap, content = part.partition(b"\r\n\r\n")
        name, filename = _NAME.search(head), _FILENAME.search(head)
        if not gap or not name:
            raise ValueError("has a field without a name")
        key = name[1].decode("utf-8", "replace")
        if key in fields:
            raise ValueError(f"has the field {key!r} twice")
        called = filename[1].decode("utf-8", "replace") if filename else ""
        fields[key] = Field(content, called)
    return fields
