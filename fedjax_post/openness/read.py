"""Reads passports from files, and checks them.

A passport is one file in `passports/`:

    title, producer                   shown to people
    model_type                        of its config.json, "unknown" if it has no weights
    checkpoint                        a name in `hub/facts.py`, "" if it is not there
    [sources]                         key = { what = author and place, date = YYYY-MM-DD, of = the
                                      model that it speaks of, if it is another size or version }
    [project]                         the project's licences by code, data, document, distribution
    [components]                      the framework's 17: { released, licence, source }
    [definition]                      the Open Source AI Definition: 3 parts, and OSI's verdict
    [index]                           the European Open Source AI Index: 12 dimensions
    [access]                          tier that the model grants, and where inference may run; with
                                      `scores`, what an API tells of probabilities, and
                                      `fine_tuning`, whether it trains the model on uploaded rows
    [retirement]                      of a hosted model: announced, shut_down, fine_tunes, notice
    [terms]                           the licence that applies to derived models
    [conversion]                      optional: whose file it is, if somebody converted the weights

Every statement is { value, source }, with the value "unknown" if no source was found. The source
"hub" refers to `hub/facts.py`: the licence and its source are taken from there. If a record does
not list a component, the component is unknown, because many records are incomplete.
"""

import datetime
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.core.access import LEVELS
from fedjax_post.hub.facts import CHECKPOINTS, Checkpoint
from fedjax_post.openness.framework import COMPONENTS, UNKNOWN
from fedjax_post.openness.passport import (
    CONVERSION,
    DIMENSIONS,
    PARTS,
    PLACES,
    RETIREMENT,
    Passport,
    Release,
    Statement,
)

FOLDER = Path(__file__).parent / "passports"
_YES = ("yes", "no", UNKNOWN)
_VERDICTS = ("passes", "fails", UNKNOWN)
_OPENNESS = ("open", "partial", "closed", UNKNOWN)
_TIERS = (*(str(level.name) for level in LEVELS), UNKNOWN)
_FIELDS = (
    *("title", "producer", "model_type", "checkpoint", "sources", "project"),
    *("components", "definition", "index", "access", "terms", "conversion", "retirement"),
)
_ACCESS = ("tier", "inference")
_OF_AN_API: Mapping[str, tuple[str, ...] | None] = {"scores": None, "fine_tuning": _YES}
_PROJECT = ("code", "data", "document", "distribution")


def passport_names() -> list[str]:
    """Returns the names of all passports, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_passport(name: str) -> Passport:
    """Returns the passport of a model.

    Args:
      name: one of `passport_names()`, or the path of your own file, which ends in .toml.

    Raises:
      ValueError: for an unknown name, with all names; for an invalid file, naming file, field,
        value and remedy.

    >>> load_passport("builtin").tier.value
    'GRADIENTS'
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        raise ValueError(
            f"no passport {name!r}; there are {', '.join(passport_names())}, "
            "and your own as a path that ends in .toml"
        )
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not TOML, or not UTF-8
        raise ValueError(f"{path}: {error}; write it as TOML in UTF-8") from None
    return _read(_Reader(path.name, raw), path.stem)


class _Reader(NamedTuple):
    """A parsed file, and its name for messages."""

    file: str
    raw: Mapping[str, Any]

    def refuse(self, field: str, value: Any, remedy: str) -> ValueError:
        """Returns the error for an invalid field."""
        return ValueError(f"{self.file}: {field} = {value!r}; {remedy}")

    def table(
        self, name: str, keys: tuple[str, ...], *, all_of: bool = True, closed: bool = True
    ) -> Mapping[str, Any]:
        """Returns a table; checks that all keys exist and, if it is closed, no others."""
        found = self.raw.get(name, {})
        if not isinstance(found, Mapping):
            raise self.refuse(name, found, f"write a table [{name}]")
        for key in found:
            if closed and key not in keys:
                raise self.refuse(f"{name}.{key}", found[key], f"there are {', '.join(keys)}")
        for key in keys:
            if all_of and key not in found:
                raise self.refuse(f"{name}.{key}", None, 'state it, as "unknown" if it is')
        return found

    def text(self, name: str) -> str:
        """Returns the text of a field."""
        value = self.raw.get(name)
        if not isinstance(value, str):
            raise self.refuse(name, value, "give a text")
        return value

    def source(self, field: str, entry: Any) -> tuple[str, str, str]:
        """Returns the source of a statement, its date, and the other model that it speaks of."""
        if not isinstance(entry, Mapping) or "source" not in entry:
            raise self.refuse(field, entry, "write { value = ..., source = ... }")
        key, known = entry["source"], self.table("sources", (), closed=False)
        if key == UNKNOWN and entry.get("value", entry.get("released")) == UNKNOWN:
            return UNKNOWN, UNKNOWN, ""
        if key == "hub":
            return self.checkpoint(field).licence[1:]
        if not isinstance(key, str) or key not in known:
            raise self.refuse(f"{field}.source", key, f"[sources] has {', '.join(known)}")
        return self.dated(f"sources.{key}", known[key])

    def dated(self, field: str, entry: Any) -> tuple[str, str, str]:
        """Returns the author and date of an entry of [sources], and the model that it is of."""
        table = entry if isinstance(entry, Mapping) else {}
        what, date, of = table.get("what"), table.get("date", ""), table.get("of", "")
        if not (isinstance(what, str) and what):
            raise self.refuse(f"{field}.what", entry, "name the author and the place")
        if not isinstance(of, str):
            raise self.refuse(f"{field}.of", of, "name the model that the source speaks of")
        try:
            datetime.date.fromisoformat(date)
        except (TypeError, ValueError):
            raise self.refuse(f"{field}.date", date, "write it as YYYY-MM-DD") from None
        return what, date, of

    def statement(self, field: str, entry: Any, allowed: tuple[str, ...] | None) -> Statement:
        """Returns a statement; its value must be one of `allowed`, or any text for None."""
        what, date, of = self.source(field, entry)
        if entry["source"] == "hub":
            return Statement(self.checkpoint(field).licence.value, what, date, of)
        value = entry.get("value")
        for one in value if isinstance(value, list) and value else [value]:
            if not isinstance(one, str) or (allowed and one not in allowed):
                choices = f"one of {', '.join(allowed)}" if allowed else "a text"
                raise self.refuse(f"{field}.value", value, f"give {choices}")
        return Statement(value, what, date, of)

    def checkpoint(self, field: str) -> Checkpoint:
        """Returns the entry of `hub/facts.py` that this passport names."""
        name = self.raw.get("checkpoint")
        for entry in CHECKPOINTS:
            if entry.name == name:
                return entry
        known = ", ".join(entry.name for entry in CHECKPOINTS)
        raise self.refuse("checkpoint", name, f"for {field} it must be one of {known}")


def _read(reader: _Reader, name: str) -> Passport:
    def statements(table, keys, allowed, **more):
        found = reader.table(table, keys, **more)
        return {
            key: reader.statement(f"{table}.{key}", found[key], allowed)
            for key in keys
            if key in found
        }

    for key in reader.raw:
        if key not in _FIELDS:
            raise reader.refuse(key, reader.raw[key], f"there are {', '.join(_FIELDS)}")
    parts = reader.table("definition", (*PARTS, "verdict"))
    definition = {
        key: reader.statement(
            f"definition.{key}", parts[key], _VERDICTS if key == "verdict" else _YES
        )
        for key in (*PARTS, "verdict")
    }
    access = reader.table("access", (*_ACCESS, *_OF_AN_API), all_of=False)
    for key in _ACCESS:
        if key not in access:
            raise reader.refuse(f"access.{key}", None, 'state it, as "unknown" if it is')
    terms = reader.table("terms", ("licence",))
    if reader.raw.get("checkpoint"):
        reader.checkpoint("a checkpoint")
    return Passport(
        name=name,
        title=reader.text("title"),
        producer=reader.text("producer"),
        model_type=reader.text("model_type"),
        checkpoint=reader.text("checkpoint"),
        project=statements("project", _PROJECT, None, all_of=False),
        components=_components(reader),
        definition=definition,
        eu_index=statements("index", DIMENSIONS, _OPENNESS),
        tier=reader.statement("access.tier", access["tier"], _TIERS),
        inference=reader.statement("access.inference", access["inference"], (*PLACES, UNKNOWN)),
        terms=reader.statement("terms.licence", terms["licence"], None),
        conversion=statements("conversion", CONVERSION, None, all_of="conversion" in reader.raw),
        **{
            key: reader.statement(f"access.{key}", access[key], allowed) if key in access else None
            for key, allowed in _OF_AN_API.items()
        },
        retirement=statements("retirement", RETIREMENT, None, all_of=False),
    )


def _components(reader: _Reader) -> dict[str, Release]:
    components = {}
    for key, entry in reader.table("components", tuple(COMPONENTS)).items():
        field = f"components.{key}"
        what, date, of = reader.source(field, entry)
        state = entry.get("released")
        if state not in _YES:
            raise reader.refuse(f"{field}.released", state, f"give one of {', '.join(_YES)}")
        licence = entry.get("licence")
        if entry["source"] == "hub":
            licence = str(reader.checkpoint(field).licence.value)
        if not (licence is None or isinstance(licence, str)):
            raise reader.refuse(f"{field}.licence", licence, "give a text, or leave it out")
        components[key] = Release(state, licence, what, date, of)
    return components
