"""Where private text and a key may go: the address of a provider, and the key for it."""

import ipaddress
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

KEY = "OPENAI_API_KEY"  # the environment variable
_LEAST = 6  # letters of a secret; shorter ones stand in for keys where none is wanted


def check_url(url: str, *, has_key: bool) -> bool:
    """Refuses a base address that is none, or that would show a key to others on the way.

    Returns:
      Whether texts travel in clear from one machine to another, which is for the caller to say.

    Raises:
      ValueError: naming `url` and the remedy.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    is_plain = url.isascii() and url.isprintable() and " " not in url
    if host and ("@" in parts.netloc or parts.query or parts.fragment):
        raise ValueError(
            f"`url` holds more than the address of {host!r}; write http://host:port/v1, "
            f"and put the key into the environment variable {KEY}"
        )
    if not host or port == 0 or parts.scheme not in ("http", "https") or not is_plain:
        raise ValueError(f"url={url} is no address; write http://host:port/v1")
    is_clear = parts.scheme == "http" and not _is_here(host)
    if is_clear and has_key:
        raise ValueError(
            f"url={url} would send the key in {KEY} in clear; write https://, or unset "
            f"{KEY} for a host that wants none"
        )
    return is_clear


def read_key(environment: Mapping[str, str] = os.environ) -> str:
    """The key in the environment, "" without one.

    Raises:
      ValueError: if no request could carry it; the message does not hold it.
    """
    key = environment.get(KEY, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{KEY} holds characters that no key has; set it to the key alone")
    return key


def without_key(value: Any, key: str) -> Any:
    """A JSON value with `(key)` wherever a text in it held the key.

    A key of less than 6 letters, such as EMPTY, is taken for a placeholder and left alone.
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
    except ValueError:  # a name
        return host == "localhost"
