"""The address of a provider, and the API key for it: where private text and the key may be sent."""

import ipaddress
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

KEY = "OPENAI_API_KEY"  # the environment variable
_LEAST = 6  # characters of a secret; shorter keys are placeholders, where no key is needed


def check_url(url: str, *, has_key: bool) -> bool:
    """Checks a base URL: it must be valid, and must not send a key unencrypted.

    Returns:
      Whether texts are sent unencrypted to another machine, about which the caller should warn.

    Raises:
      ValueError: naming `url` and the remedy.

    >>> check_url("https://example.org/v1", has_key=True)
    False
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    is_plain = url.isascii() and url.isprintable() and " " not in url
    if host and ("@" in parts.netloc or parts.query or parts.fragment):
        raise ValueError(
            f"`url` contains more than the address of {host!r}; write http://host:port/v1, "
            f"and put the key into the environment variable {KEY}"
        )
    if not host or port == 0 or parts.scheme not in ("http", "https") or not is_plain:
        raise ValueError(f"url={url} is no address; write http://host:port/v1")
    is_clear = parts.scheme == "http" and not _is_here(host)
    if is_clear and has_key:
        raise ValueError(
            f"url={url} would send the key in {KEY} unencrypted; write https://, or unset "
            f"{KEY} for a host that needs none"
        )
    return is_clear


def read_key(environment: Mapping[str, str] = os.environ) -> str:
    """Returns the key in the environment; "" without one.

    Raises:
      ValueError: if it cannot be sent in a header; the message does not contain the key.
    """
    key = environment.get(KEY, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{KEY} contains characters that no key has; set it to the key alone")
    return key


def without_key(value: Any, key: str) -> Any:
    """Returns a JSON value in which `(key)` replaces the key in all texts.

    A key of fewer than 6 characters, such as EMPTY, counts as a placeholder and is not replaced.
    """
    if len(key) < _LEAST:
        return value
    if isinstance(value, str):
        return value.replace(key, "(key)")
    if isinstance(value, list):
        return [without_key(item, key) for item in value]
    if isinstance(value, dict):
        return {without_key(k, key): without_key(item, key) for k, item in value.items()}
    return value


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a host name
        return host == "localhost"
