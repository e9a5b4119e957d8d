"""Refusals in the OpenAI formats, for both sides: writes and reads them."""

import json
from collections.abc import Mapping
from typing import Any

from fedjax_post.provider.address import without_key
from fedjax_post.provider.replies import MalformedError, read_json


class Refusal(Exception):
    """A request is refused."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] = {},
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = _KINDS.get(self.status, "invalid_request_error")
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error",
          500: "server_error", 503: "server_error"}  # fmt: skip


def read_refusal(content: bytes, *, key: str) -> tuple[str, str | None]:
    """Returns the message of a refusal, as one printable line without the key, and its code."""
    try:
        body = read_json(content, key=key)
    except MalformedError:
        body = without_key(content.decode("utf-8", "replace"), key)
    error = body.get("error", body) if isinstance(body, dict) else body
    fields = error if isinstance(error, dict) else {"message": error}
    message, code = fields.get("message"), fields.get("code")
    message = message if isinstance(message, str) else json.dumps(message)
    printable = "".join(c if c.isprintable() else " " for c in message[:300])
    return printable, code if isinstance(code, str) else None
