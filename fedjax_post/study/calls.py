"""Calls written as text: names of known factories with literal arguments, and no other code.

    parse("clip(1.0), error_feedback(top_k(0.01), cast(bfloat16))", LINKS)

The text is parsed into a syntax tree and never evaluated as Python.
"""

import ast
import difflib
from collections.abc import Callable, Mapping
from typing import Any

Factories = Mapping[str, Callable]


def parse(text: str, factories: Factories) -> list[Any]:
    """Returns the results of the calls in a text, in order.

    A call's arguments are numbers, strings, True, False, None or further calls. A name
    without parentheses is a call without arguments if a factory has that name, else a
    string, so that `cast(bfloat16)` needs no quotes.

    Args:
      text: calls separated by commas.
      factories: functions that may be called, by name.

    Raises:
      ValueError: for any other text, naming the known factories; and for arguments that a
        factory refuses.

    >>> parse("scale(2, by=3), scale(scale(1))", {"scale": lambda x, by=10: x * by})
    [6, 100]
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        some = " and ".join(list(factories)[:2])
        raise ValueError(f"not a list of calls; write names such as {some}") from None
    calls = tree.elts if isinstance(tree, ast.Tuple) else [tree]
    if not calls:
        raise ValueError(f"no call is given; there are {', '.join(factories)}")
    try:
        return [_make(node, factories) for node in calls]
    except RecursionError:
        raise ValueError("calls are nested too deeply; write shorter ones") from None


def _make(node: ast.expr, factories: Factories) -> Any:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        known = _names(factories)
        raise ValueError(f"{ast.unparse(node)} is not a call of a name; there are {known}")
    name = call.func.id
    if name not in factories:
        close = difflib.get_close_matches(name, factories, 1)
        meant = f"did you mean {close[0]}?" if close else f"there are {_names(factories)}"
        raise ValueError(f"{name} is unknown; {meant}")
    args = [_value(arg, factories) for arg in call.args]
    if None in [k.arg for k in call.keywords]:
        raise ValueError(f"{ast.unparse(node)}: ** is not allowed; write name=value")
    kwargs = {str(k.arg): _value(k.value, factories) for k in call.keywords}
    try:
        return factories[name](*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{ast.unparse(node)}: {error}") from error


def _value(node: ast.expr, factories: Factories) -> Any:
    if isinstance(node, ast.Call) or (isinstance(node, ast.Name) and node.id in factories):
        return _make(node, factories)
    if isinstance(node, ast.Name):
        return node.id
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise ValueError(f"{ast.unparse(node)} is neither a number nor a call of a name") from None


def _names(factories: Factories) -> str:
    return ", ".join(factories)
