"""Checks what the functions of an algorithm take and return, and names the field in errors.

The engine calls an algorithm's functions by `call` and `shapes`. These look only at Python values
and shapes, while a program is traced or, on the host, between computations. Compiled programs
contain nothing of them. An error that a function itself raises keeps its type and traceback; the
name of the function is added as a note.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_post.core.access import Access
from fedjax_post.core.algorithm import (
    Aggregate,
    Algorithm,
    Client,
    Downlink,
    PyTree,
    Reading,
    Server,
    Uplink,
    Upload,
)

_PARTS = {
    "client": Client,
    "server": Server,
    "aggregate": Aggregate,
    "uplink": Uplink,
    "downlink": Downlink,
}


class _Form(NamedTuple):
    """How a field is called, and what it returns."""

    takes: tuple[str, ...]
    gives: tuple[str, ...]  # one name: the value itself; several: a tuple of these
    like: Mapping[str, str] = {}  # returned value -> argument with the same structure and shapes


def _form(takes: str, gives: str, **like: str) -> _Form:
    return _Form(tuple(takes.split()), tuple(gives.split()), like)


_FORMS = {
    "init": _form("params", "shared"),
    "client.init": _form("model replica key", "state"),
    "client.update": _form("model replica state data ctx", "Upload state metrics", state="state"),
    "uplink.init": _form("like", "state"),
    "uplink.encode": _form("value replica state ctx", "message state", state="state"),
    "uplink.decode": _form("message like", "value", value="like"),
    "downlink.init": _form("shared", "replica"),
    "downlink.encode": _form("shared", "message"),
    "downlink.receive": _form("message replica", "replica", replica="replica"),
    "aggregate.init": _form("like cohort_size", "total"),
    "aggregate.add": _form("total values weights", "total", total="total"),
    "aggregate.merge": _form("total other", "total", total="total"),
    "aggregate.finish": _form("total", "value"),
    "server.init": _form("shared", "state"),
    "server.update": _form("value state shared", "shared state", shared="shared", state="state"),
    "deploy": _form("model replica state", "model params"),
    "value_like": _form("shared", "value"),
    "read": _form("value replica", "Reading"),
}


def check_parts(algorithm: Any) -> Algorithm:
    """Returns the algorithm after a check of the types of its parts and their functions.

    Raises:
      TypeError: with the part or function, what was expected and what was found.
    """
    if not isinstance(algorithm, Algorithm):
        raise TypeError(
            f"algorithm must be an Algorithm, got {_describe(algorithm)}; return one from its "
            "factory"
        )
    for name, kind in _PARTS.items():
        if not isinstance(getattr(algorithm, name), kind):
            given = _describe(getattr(algorithm, name))
            raise TypeError(f"{name} must be {_article(kind.__name__)}, got {given}")
    for field, form in _FORMS.items():
        _check_callable(field, _function(algorithm, field), form)
    access = algorithm.access
    if not isinstance(access, Mapping) or not access:
        raise TypeError(
            f"access must map model roles to tiers, as in {{'target': Access.GRADIENTS}}, "
            f"got {_describe(access)}"
        )
    for role, tier in access.items():
        if not isinstance(tier, Access):
            raise TypeError(f"access[{role!r}] must be a tier of Access, got {tier!r}")
    return algorithm


def call(algorithm: Algorithm, field: str, *args: Any) -> Any:
    """Returns the result of a function of the algorithm, after a check of its form.

    Args:
      algorithm: the algorithm.
      field: the field of the function, such as "client.update".
      *args: the arguments.

    Raises:
      TypeError: if it takes other arguments, or returns another number or kind of values.
      ValueError: if a returned tree has another structure, shape or dtype than it must have.
    """
    return _call(algorithm, field, args, lambda fn: fn(*args))


def shapes(algorithm: Algorithm, field: str, *args: Any) -> Any:
    """Returns the shapes and dtypes of the result of `call`; nothing is computed."""
    return _call(algorithm, field, args, lambda fn: jax.eval_shape(fn, *args))


def check_like(field: str, name: str, given: PyTree, like: PyTree) -> None:
    """Checks that a tree has the structure, shapes and dtypes of another.

    Args:
      field: the field of the function that returned it, for the message.
      name: what it should be, for the message.
      given: the tree.
      like: the tree that it is compared with.

    Raises:
      ValueError: with the field, what it returned, and the first leaf that differs.
    """
    difference = next(_differences(given, like), None)
    if difference is not None:
        raise ValueError(f"{field} must return {name}; {difference}")


def _call(algorithm: Algorithm, field: str, args: tuple, do: Callable) -> Any:
    fn, form = _function(algorithm, field), _FORMS[field]
    _check_callable(field, fn, form)
    try:
        result = do(fn)
    except Exception as error:
        error.add_note(f"in stage {field}")
        raise
    values = dict(zip(form.gives, _values(field, result, form), strict=True))
    if field == "client.update":
        _check_visit(values["Upload"], values["metrics"])
    if field == "read" and not isinstance(result, Reading):
        raise TypeError(f"read must return a Reading, got {_describe(result)}")
    given = dict(zip(form.takes, args, strict=True))
    for name, source in form.like.items():
        what = f"{name} laid out like the {source} that it is given"
        check_like(field, what, values[name], given[source])
    return result


def _values(field: str, result: Any, form: _Form) -> tuple:
    """Returns the returned values as a tuple."""
    if len(form.gives) == 1:
        return (result,)
    wanted = f"{field} must return ({', '.join(form.gives)})"
    if not isinstance(result, tuple | list) or hasattr(result, "_fields"):
        raise TypeError(f"{wanted}; got {_describe(result)}")
    if len(result) != len(form.gives):
        raise TypeError(f"{wanted}; got {len(result)} value{'s' * (len(result) != 1)}")
    return tuple(result)


def _check_visit(upload: Any, metrics: Any) -> None:
    """Checks that the engine and the records can read the results of a client's visit."""
    field = "client.update must return (Upload, state, metrics);"
    if not isinstance(upload, Upload):
        raise TypeError(f"{field} the first value is {_describe(upload)}")
    if not _is_number(upload.weight):
        raise ValueError(f"{field} the weight of the Upload is {_leaf(upload.weight)}, not ()")
    if not isinstance(metrics, dict):
        raise TypeError(f"{field} metrics must be a dict of numbers, got {_describe(metrics)}")
    for name, value in metrics.items():
        if not isinstance(name, str) or not _is_number(value):
            raise ValueError(f"{field} metrics[{name!r}] is {_leaf(value)}, not one number, ()")


def _check_callable(field: str, fn: Any, form: _Form) -> None:
    """Checks that a function can be called with the arguments of its field."""
    wanted = f"{field} must be a function of ({', '.join(form.takes)})"
    if not callable(fn):
        raise TypeError(f"{wanted}, got {_describe(fn)}")
    try:
        taken = inspect.signature(fn)
    except ValueError:  # some built-in functions have no signature to look at
        return
    try:
        taken.bind(*form.takes)
    except TypeError:
        raise TypeError(f"{wanted}, got one of {taken}") from None


def _function(algorithm: Algorithm, field: str) -> Any:
    return reduce(getattr, field.split("."), algorithm)


def _differences(given: PyTree, like: PyTree) -> Iterator[str]:
    """Yields descriptions of the differences between two trees."""
    found, wanted = (dict(jax.tree_util.tree_flatten_with_path(tree)[0]) for tree in (given, like))
    name = lambda path: jax.tree_util.keystr(path) or "it"
    for path in wanted:
        if path not in found:
            yield f"it has no {name(path)}" if path else f"got {_describe(given)}"
    for path in found:
        if path not in wanted:
            yield f"it has {name(path)} besides" if path else f"got {_leaf(given)}"
    for path, leaf in found.items():
        if _layout(leaf) != _layout(wanted[path]):
            yield f"{name(path)} is {_leaf(leaf)}, not {_leaf(wanted[path])}"
    one: Any = jax.tree.structure(given)
    other: Any = jax.tree.structure(like)
    if one != other:
        yield f"got {one}, not {other}"


def _layout(leaf: Any) -> tuple:
    if not hasattr(leaf, "dtype"):
        leaf = jnp.asarray(leaf)
    return tuple(leaf.shape), leaf.dtype


def _leaf(leaf: Any) -> str:
    """Returns the dtype and shape of a leaf, such as float32[3, 2]."""
    try:
        shape, dtype = _layout(leaf)
    except (TypeError, ValueError):  # jax raises one or the other for what is no array
        return _describe(leaf)
    return f"{dtype}{list(shape)}"


def _is_number(leaf: Any) -> bool:
    try:
        shape, dtype = _layout(leaf)
    except (TypeError, ValueError):  # jax raises one or the other for what is no array
        return False
    return shape == () and (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool)


def _describe(value: Any) -> str:
    return "None" if value is None else _article(type(value).__name__)


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
