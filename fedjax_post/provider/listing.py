"""Lists in the OpenAI format, a page at a time, and the names of what they hold."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fedjax_post.provider import formats
from fedjax_post.provider.refusals import Refusal

_MOST, _USUAL = 100, 20  # entries of a page


def check_query(query: Mapping[str, str], known: Collection[str] = ()) -> None:
    """Checks that an address has only parameters that are honoured.

    Raises:
      Refusal: 400, naming the first other one.
    """
    for name, value in query.items():
        if name not in known:
            what = f"`{name[:64]}`={value[:64]!r} is not supported here; leave it out."
            raise Refusal(400, what, code="unsupported_value", param=name[:64])


def page(entries: Sequence[Mapping[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """Returns a page of a list, the newest entry first.

    Args:
      entries: with their "id", the oldest first.
      query: `limit` and `after`, the id of the last entry of the page before.

    Raises:
      Refusal: 400, for a wrong limit or an unknown entry.
    """
    limit = query.get("limit", str(_USUAL))
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= _MOST):
        raise formats.invalid("limit", f"must be from 1 to {_MOST}, not {limit[:32]}")
    ordered, start = list(reversed(entries)), 0
    if "after" in query:
        ids = [entry["id"] for entry in ordered]
        if query["after"] not in ids:
            raise formats.invalid("after", f"names no entry: {query['after'][:64]!r}")
        start = ids.index(query["after"]) + 1
    found = ordered[start : start + int(limit)]
    return {"object": "list", "data": found, "has_more": start + len(found) < len(ordered)} | (
        {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {}
    )


def make_id(kind: str, number: int, content: bytes) -> str:
    """Returns an id that depends on the content and on how many came before.

    >>> make_id("file", 0, b"")[:10] != make_id("file", 1, b"")[:10]
    True
    """
    digest = hashlib.sha256(number.to_bytes(8, "big") + content).hexdigest()
    return f"{kind}-{digest[:24]}"
