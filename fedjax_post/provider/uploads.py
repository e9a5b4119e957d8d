"""Files on the server side, as `/v1/files` has them: rows for fine-tuning."""

import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from fedjax_post.provider import forms, listing
from fedjax_post.provider.formats import invalid
from fedjax_post.provider.refusals import Refusal

PURPOSE = "fine-tune"
_MOST_BYTES = 256 << 20  # of all files together


class File(NamedTuple):
    """A file that was uploaded."""

    id: str
    name: str
    size: int  # bytes
    created: int  # seconds since 1970
    rows: list[dict[str, Any]]

    @property
    def card(self) -> dict[str, Any]:
        """The JSON of the file."""
        return {"id": self.id, "object": "file", "bytes": self.size, "created_at": self.created,
                "filename": self.name, "purpose": PURPOSE, "status": "processed"}  # fmt: skip


def read_form(content: bytes, content_type: str) -> tuple[str, bytes]:
    """Returns the name and the content of the file in a request.

    Raises:
      Refusal: 400, naming the parameter.
    """
    try:
        fields = forms.read(content, content_type)
    except ValueError as error:
        raise Refusal(400, f"The body {error}.", code="invalid_form", param="file") from None
    listing.check_query(
        {name: field.content.decode("utf-8", "replace") for name, field in fields.items()},
        ("file", "purpose"),
    )
    if "file" not in fields or not fields["file"].filename:
        raise invalid("file", "must be a file with a name")
    purpose = fields.get("purpose", forms.Field(b"")).content.decode("utf-8", "replace")
    if purpose != PURPOSE:
        raise invalid("purpose", f"must be {PURPOSE}, not {purpose[:64]!r}")
    return fields["file"].filename, fields["file"].content


class Files:
    """The files of a provider, in memory."""

    def __init__(self):
        self._files: dict[str, File] = {}
        self._number = 0
        self._lock = threading.Lock()

    def add(self, name: str, rows: list[dict[str, Any]], *, size: int) -> File:
        """Returns the new file.

        Args:
          name: that its owner gave it.
          rows: as returned by `training_rows.read_lines`.
          size: bytes.

        Raises:
          Refusal: 413, if there is no room.
        """
        with self._lock:
            if size + sum(file.size for file in self._files.values()) > _MOST_BYTES:
                what = f"All files together may have {_MOST_BYTES} bytes; delete some."
                raise Refusal(413, what, code="storage_limit", param="file")
            made = listing.make_id("file", self._number, repr(rows).encode())
            self._number += 1
            self._files[made] = File(made, name, size, int(time.time()), rows)
            return self._files[made]

    def get(self, id: Any, *, param: str = "file_id") -> File:
        """Returns a file; raises Refusal, 404, if there is none."""
        found = self._files.get(id) if isinstance(id, str) else None
        if found is None:
            what = f"There is no file {str(id)[:64]!r}; upload one for fine-tuning."
            raise Refusal(404, what, code="file_not_found", param=param)
        return found

    def page(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Returns a page of the list of files; raises Refusal, naming the parameter."""
        listing.check_query(query, ("after", "limit", "purpose"))
        with self._lock:
            cards = [file.card for file in self._files.values()]
        return listing.page(cards if query.get("purpose", PURPOSE) == PURPOSE else [], query)

    def delete(self, id: str) -> dict[str, Any]:
        """Deletes a file; a job that has begun keeps its rows. Raises Refusal, 404."""
        with self._lock:
            del self._files[self.get(id).id]
        return {"id": id, "object": "file", "deleted": True}
