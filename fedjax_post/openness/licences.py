"""Licences: which are open, for which content, and what they require of derived models."""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

# What a licence may require of those who pass on a post-trained model, in printed order
RULES = {
    "share_derived": "derived models may be passed on",
    "same_terms": "they stay under these terms",
    "notice": "what must go with them",
    "name": "what they must be called",
    "use_policy": "uses that are ruled out",
    "user_limit": "who needs another licence",
    "train_on_outputs": "outputs may train other models",
}


class Terms(NamedTuple):
    """A licence's rules for derived models, by the keys of `RULES`, with their source and date."""

    rules: Mapping[str, str]
    source: str
    date: str


def is_open(licence: str) -> bool:
    """Returns whether the Model Openness Framework counts a licence as open.

    Args:
      licence: SPDX identifier; any other name is not open.
    """
    table = _table()
    return any(
        licence in table[kind] for kind in ("osi_approved", "fsf_libre", "open_data", "open")
    )


def suits(licence: str, content: str) -> bool:
    """Returns whether a licence is made for a kind of content: 'code', 'data' or 'document'."""
    return licence in _table()["made_for"][content]


def terms_of(licence: str) -> Terms:
    """Returns a licence's rules for derived models; all are 'unknown' if it is not in the table."""
    found = _table()["terms"].get(licence, {})
    rules = {rule: found.get(rule, "unknown") for rule in RULES}
    return Terms(rules, found.get("source", "unknown"), found.get("date", "unknown"))


def bars(licence: str, place: str) -> bool:
    """Returns whether a licence's terms give nobody in a place a right to the weights.

    Raises:
      ValueError: if the table has no terms of the licence.
    """
    if licence not in _table()["terms"]:
        known = ", ".join(_table()["terms"])
        raise ValueError(f"weights_licence={licence} is not in the table; give one of {known}")
    return f"nobody in the {place}" in terms_of(licence).rules["user_limit"]


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "licences.toml").read_text(encoding="utf-8"))
