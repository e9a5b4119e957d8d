"""Odd variants of good JSON: a value replaced, dropped or doubled, or bytes damaged."""

import copy
import json
import random
from typing import Any

VALUES = (
    None, True, False, 0, -1, 1, 2, 10**400, 1.5, -0.0, 1e308, "", "a", "\ud800", "\x00",
    "x" * 5000, [], {}, [[]], [None], {"a": 1}, ["a"], [{}], {"text": 3}, "stop", "length",
)  # fmt: skip
TOKENS = (
    b"NaN", b"-Infinity", b"1e999", b"-1e999", b"\xff", b"\x00", b"[", b"}", b'"', b"\\ud800",
    b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"null", b"true", b",", b":", b"\n",
)  # fmt: skip


def variants(good: list[Any], *, number: int, seed: int):
    """Bytes of JSON or nearly so, always the same for a seed."""
    rng = random.Random(seed)
    for _ in range(number):
        value = copy.deepcopy(rng.choice(good))
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            value = _changed(value, rng)
        content = json.dumps(value).encode()
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
            content = _damaged(content, rng)
        yield content


def _changed(value: Any, rng: random.Random) -> Any:
    """The value, one place in it changed; mostly not the top."""
    keys = list(value) if isinstance(value, dict) else []
    keys = list(range(len(value))) if isinstance(value, list) else keys
    if not keys or rng.random() < 0.03:
        return copy.deepcopy(rng.choice(VALUES))
    key, what = rng.choice(keys), rng.random()
    if what < 0.08:
        del value[key]
    elif what < 0.16 and isinstance(value, list):
        value.insert(key, copy.deepcopy(value[key]))
    elif what < 0.24 and isinstance(value, dict):
        value[rng.choice(("n", "seed", "cost", "message", "suffix", "x", ""))] = copy.deepcopy(
            rng.choice(VALUES)
        )
    else:
        value[key] = _changed(value[key], rng)
    return value


def _damaged(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    what = rng.random()
    if what < 0.3:
        return content[:at]
    if what < 0.5 and at < len(content):
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    return content[:at] + rng.choice(TOKENS) + content[at + rng.choice((0, 1, 4)) :]
