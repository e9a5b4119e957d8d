"""Specifications as files: readable JSON from which a run can be repeated.

A function is written as `module:name`. A value that a file cannot hold, such as a function of a
notebook or rows in memory, is written as its kind, name and hash. It must be supplied again when
the file is read.
"""

import hashlib
import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.integrity import check_file, seal_file
from fedjax_post.study.fields import default_of, unknown
from fedjax_post.study.spec import PATHS, Spec

FORMAT, VERSION = "fedjax_post experiment", 1
_SEAL = "sha256"  # the last field of a file that a run wrote
_PLAIN = (str, int, float, bool, type(None))
# Fields whose text may name code, as module:function; other text is calls of known names.
CODE = ("method.name", "method.uplink", "method.aggregate", "objective.reward")
HOST, WATCH = "hosting.url", "execution.watch"
SENDING = ("wandb", "mlflow")  # what sends records elsewhere, with the user's account
_NAMED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Missing(NamedTuple):
    """Placeholder of a value that a file could not hold; `supply` replaces it."""

    what: str  # kind and name of the value
    sha256: str  # of a function's source, or of rows

    def __str__(self) -> str:
        return f"{self.what}, sha256 {self.sha256[:12]}"


def to_json(spec: Spec) -> str:
    """Returns the specification as the text of a file, which `from_json` reads."""
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for path in PATHS:
        section, _, name = path.partition(".")
        value = _to_plain(spec.at(path))
        if name:
            content.setdefault(section, {})[name] = value
        else:
            content[section] = value
    return seal_file(content)


def from_json(text: str, *, source: str = "the file") -> Spec:
    """Returns the specification in a file's text; values that it could not hold are `Missing`.

    Fields that the text lacks have their defaults, so that files of earlier versions can be
    read. The text ends with a checksum; remove that line to edit the file.

    Args:
      text: as returned by `to_json`, possibly edited.
      source: name of the file, for messages.

    Raises:
      ValueError: for text that is not a specification, an unknown field or an invalid value.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not JSON: {error}") from None
    if isinstance(content, dict) and _SEAL in content:
        check_file(text, source)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f'{source} is not a specification; its "format" must be {FORMAT!r}')
    if content.get("version") != VERSION:
        raise ValueError(
            f"{source} has version {content.get('version')!r} and this release reads {VERSION}; "
            "read it with the release that wrote it"
        )
    changes = {}
    for key, value in content.items():
        if key in ("format", "version", _SEAL):
            continue
        inner = value.items() if isinstance(value, dict) and key not in PATHS else ((None, value),)
        for name, item in inner:
            path = key if name is None else f"{key}.{name}"
            if path not in PATHS:
                raise ValueError(f"{source}: {unknown(path, PATHS)}")
            changes[path] = _read(item)
    try:
        return Spec().put(changes)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def write_spec(path: Path, spec: Spec) -> None:
    """Writes a specification to a file, completely or not at all."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(to_json(spec), encoding="utf-8")
    aside.replace(path)


def read_spec(path: Path, *, supplied: Mapping[str, Any] | None = None) -> Spec:
    """Returns the specification in a file, with values that it could not hold supplied.

    Reading runs no code that the file names. Call `check_trusted` before running it.

    Args:
      path: of the file.
      supplied: values by the paths of their fields; each must have the hash in the file.

    Raises:
      OSError: if the file cannot be read.
      ValueError: for a file that is not a specification, and a value that is missing or has
        another hash than in the file.
    """
    return supply(read_unsupplied(path), supplied or {}, source=str(path))


def read_unsupplied(path: Path) -> Spec:
    """Returns the specification in a file, with `Missing` for values that it could not hold.

    Raises:
      OSError: if the file cannot be read.
      ValueError: as `from_json`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is no text at byte {error.start}") from None
    return from_json(text, source=str(path))


def supply(spec: Spec, supplied: Mapping[str, Any], *, source: str) -> Spec:
    """Returns the specification with the supplied values in place of `Missing` ones.

    Args:
      spec: as read from a file.
      supplied: values by the paths of their fields.
      source: name of the file, for messages.

    Raises:
      ValueError: naming a value that is still missing or has another hash.
    """
    for path, value in supplied.items():
        stored, given = (_to_plain(item) for item in (spec.at(path), value))
        if given != stored:
            stored, given = _describe(stored), _describe(given)
            raise ValueError(f"{source} has {path} = {stored}, and {given} was given")
    spec = spec.put(supplied)
    for path in PATHS:
        if isinstance(missing := spec.at(path), Missing):
            short = path.removesuffix(".name").removesuffix(".source")
            raise ValueError(
                f"{source} cannot hold {path}: {missing}; supply it, as in read(..., {short}=...)"
            )
    return spec


def check_trusted(
    spec: Spec, typed: Mapping[str, Any], *, source: object, trust_code: bool = False
) -> None:
    """Raises ValueError for code and hosts that only a file names, not the user.

    Args:
      spec: the specification to run.
      typed: values that the user gave by hand, by path.
      source: the file, for messages.
      trust_code: whether the user allows the file's code to run.

    Raises:
      ValueError: naming the file, the field and the remedies.
    """
    for path in CODE:
        value = spec.at(path)
        if trust_code or not isinstance(value, str) or not _NAMED.search(value):
            continue
        if typed.get(path) == value:
            continue
        raise ValueError(
            f"{source} names code, {path}={value}; it runs only with `trust_code`, or if "
            f"`{path}` is given again by hand"
        )
    check_host(spec, typed, source=source)
    sent = [name for name in spec.execution.watch if name in SENDING]
    if not set(sent) <= set(typed.get(WATCH, ())):
        raise ValueError(
            f"{source} has execution.watch={','.join(spec.execution.watch)}, and records would be "
            "sent in your name; give `execution.watch` again by hand"
        )


def check_host(spec: Spec, typed: Mapping[str, Any], *, source: object) -> None:
    """Raises ValueError for a host that only a file names; arguments are as for `check_trusted`."""
    if spec.hosting.url not in (None, typed.get(HOST)):
        raise ValueError(
            f"{source} names a host, hosting.url={spec.hosting.url}, and private text and keys "
            "would be sent there; if you trust it, give `hosting.url` again by hand"
        )


def plain_fields(spec: Spec) -> dict[str, Any]:
    """Returns the value of every field as JSON holds it, by path."""
    return {path: _to_plain(spec.at(path)) for path in PATHS}


def identity(spec: Spec) -> dict[str, Any]:
    """Returns the fields that affect a run's results, by path, without those at their defaults."""
    return {
        path: _to_plain(spec.at(path))
        for path, field in PATHS.items()
        if not field.metadata["meaning"].free and spec.at(path) != default_of(field)
    }


def code_hashes(spec: Spec) -> dict[str, str]:
    """Returns a hash of the source of each module of the user's own that an experiment names.

    Args:
      spec: the experiment; functions are named as `package.module:function`.
    """
    named = [name for path in CODE for name in _NAMED.findall(str(_to_plain(spec.at(path))))]
    modules = {name.partition(":")[0] for name in named}
    found = {}
    for module in sorted(modules):
        origin = getattr(importlib.util.find_spec(module), "origin", None)
        if module.split(".")[0] in ("fedjax_post", "algorithms") or origin is None:
            continue  # the version says which code ran
        if Path(origin).is_file():
            found[module] = hashlib.sha256(Path(origin).read_bytes()).hexdigest()[:16]
    return found


def load_code(name: str, *, field: str) -> Callable:
    """Returns the function that `package.module:function` names.

    Errors that the module itself raises while it is imported are passed on.

    Raises:
      ValueError: if the module or function does not exist, naming the field.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # an installed command has no working directory on its path
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a module that the user's module imports is missing
        raise ValueError(f"{field}={name} cannot be loaded: {error}") from None
    if not callable(function := getattr(found, attribute, None)):
        raise ValueError(f"{field}={name} cannot be loaded: {module} has no function {attribute}")
    return function


def _to_plain(value: Any) -> Any:
    """Returns a value as JSON holds it."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return [_to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    missing = value if isinstance(value, Missing) else _missing(value)
    return missing if isinstance(missing, str) else {"missing": missing.what, "sha256": missing[1]}


def _missing(value: Any) -> Missing | str:
    """Returns the name by which a value can be imported, else its kind and hash."""
    if callable(value) and hasattr(value, "__qualname__"):
        module, name = value.__module__, value.__qualname__
        holder = None if module == "__main__" else importlib.import_module(module)
        if getattr(holder, name, None) is value:
            return f"{module}:{name}"
        try:
            source = inspect.getsource(value)
        except (OSError, TypeError):
            source = repr(getattr(value, "__code__", value))
        return Missing(f"function {name}", hashlib.sha256(source.encode()).hexdigest())
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, list):
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=repr)
        return Missing(f"{len(value)} rows", hashlib.sha256(text.encode()).hexdigest())
    fingerprint = getattr(value, "_fingerprint", None) or kind
    return Missing(kind, hashlib.sha256(str(fingerprint).encode()).hexdigest())


def _read(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"missing", "sha256"}:
        return Missing(str(value["missing"]), str(value["sha256"]))
    if isinstance(value, dict):
        return {key: _read(item) for key, item in value.items()}
    return tuple(_read(item) for item in value) if isinstance(value, list) else value


def _describe(written: Any) -> str:
    if isinstance(written, dict) and "missing" in written:
        return str(Missing(written["missing"], written["sha256"]))
    return repr(written)
