"""What an algorithm may do with a language model, and the error for anything more."""

import enum
import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


class Access(enum.Flag):
    """What may be done with a model: a set of capabilities, combined by `|`.

    The levels below are the usual sets; each contains the ones before it.
    """

    TEXT = enum.auto()  # prompts in, text out
    SCORES = enum.auto()  # tokens in, logits out
    EMBED = enum.auto()  # embeddings or soft prompts in, logits out
    READ = enum.auto()  # read and perturb the weights, forward passes only
    DIFFERENTIATE = enum.auto()  # back-propagate
    FINETUNE = enum.auto()  # its host trains it on rows that are sent there
    EMULATOR = enum.auto()  # hold a stand-in (emulator) of it

    LOGITS = TEXT | SCORES
    EMBEDDINGS = LOGITS | EMBED
    WEIGHTS = EMBEDDINGS | READ
    GRADIENTS = WEIGHTS | DIFFERENTIATE


LEVELS = (Access.TEXT, Access.LOGITS, Access.EMBEDDINGS, Access.WEIGHTS, Access.GRADIENTS)


class AccessError(Exception):
    """An algorithm needs, or used, more of a model than it was granted."""


class UnansweredError(OSError):
    """A hosted model did not answer.

    Attributes:
      drop: True if the run continues without the client that asked; False if it stops, saved.
    """

    drop = False


def check_access(needed: Mapping[str, Access], granted: Mapping[str, Access]) -> None:
    """Checks that models grant what an algorithm needs.

    Args:
      needed: what the algorithm declares for each model role.
      granted: what each model offers, by role.

    Raises:
      AccessError: with the role, both sets, and what would have to be open.
    """
    for role, tier in needed.items():
        if role not in granted:
            raise AccessError(
                f"the algorithm needs a model in the role {role!r}; got {sorted(granted)}"
            )
        if missing := tier & ~granted[role]:
            raise AccessError(
                f"the algorithm needs {spoken(tier)} of the {role!r} model, which grants "
                f"{spoken(granted[role])}: {_OPENED[highest(missing)]} would have to be open"
            )


def spoken(access: Access) -> str:
    """Returns the name of a set of capabilities: its level, or its members."""
    if access in LEVELS:
        return str(access.name)
    return " and ".join(str(member.name) for member in access) or "nothing"


def highest(access: Access) -> Access:
    """Returns the capability of a set that opens most of a model."""
    return list(access)[-1]


def union(access: Mapping[str, Access]) -> Access:
    """Returns what an algorithm needs of any of its models."""
    return functools.reduce(operator.or_, access.values())


def check_call(what: str, needed: Access, granted: Access, params: Any) -> None:
    """Checks that a view may be called as it is.

    Args:
      what: the method, for the message.
      needed: what the method needs.
      granted: the tier of the view.
      params: what the caller merges over the model, see `check_params`.

    Raises:
      AccessError: if the view grants less, or does not allow `params`.
    """
    if needed & ~granted:
        raise AccessError(
            f"{what} needs {spoken(needed)} of the model, which grants {spoken(granted)}; "
            "declare it in the algorithm's access"
        )
    check_params(params, granted)


def check_restriction(wanted: Access, granted: Access) -> None:
    """Checks that a view can be restricted to `wanted`.

    Raises:
      AccessError: if it does not grant all of that.
    """
    if wanted & ~granted:
        raise AccessError(f"{spoken(wanted)} was asked of a model that grants {spoken(granted)}")


def check_params(params: Any, granted: Access) -> None:
    """Checks that a tier allows what a caller merges over a model.

    TEXT and LOGITS allow `{}` or a prompt of tokens, `{"prompt": {"tokens": ...}}`;
    EMBEDDINGS also one of embeddings, `{"prompt": {"embeddings": ...}}`; WEIGHTS and up
    anything.

    Args:
      params: collections of arrays by name.
      granted: the tier of the view.

    Raises:
      AccessError: with the tier, the collection and the remedy.
    """
    if Access.READ in granted or not params:
        return
    for name, held in params.items():
        if name != "prompt":
            raise AccessError(
                f"params hold {name!r}, which acts inside the model and needs WEIGHTS; the view "
                f"grants {spoken(granted)}, where params are {{}} or a 'prompt': declare a higher "
                "tier in the algorithm's access, or tune a prompt"
            )
        if "embeddings" in held and Access.EMBED not in granted:
            raise AccessError(
                f"params hold a 'prompt' of embeddings, which needs EMBEDDINGS; the view grants "
                f"{spoken(granted)}: declare a higher tier in the algorithm's access, or use a "
                "prompt of tokens"
            )


def views(models: Any, needed: Mapping[str, Access]) -> Any:
    """Returns the views of models that an algorithm gets: each restricted to its role's tier.

    A model declares what it grants by `access`, and has `restrict(access)`. Arrays in built-in
    containers are open to every algorithm. Any other object without a declaration raises an error.

    Args:
      models: the model, where 'target' is the only role; else a model for each role.
      needed: the tier that the algorithm declares for each role.

    Raises:
      AccessError: if a model grants less than is needed, or does not declare what it grants.
    """
    single = set(needed) == {"target"}
    by_role = models if isinstance(models, Mapping) and not single else {"target": models}
    check_access(needed, {role: _granted(model) for role, model in by_role.items()})
    cut = {role: _restricted(by_role[role], tier) for role, tier in needed.items()}
    return cut["target"] if single else cut


@jax.custom_jvp
def opaque(x: jax.Array) -> jax.Array:
    """Returns the array; its derivative raises an error. Views below GRADIENTS return such arrays.

    Raises:
      AccessError: if it is differentiated.
    """
    return x


@opaque.defjvp
def _refuse(primals, tangents):
    del primals, tangents
    raise AccessError(
        "differentiating a model needs GRADIENTS, which this view does not grant; "
        "use a gradient-free algorithm or a model that is open"
    )


def _granted(model: Any) -> Access:
    """Returns what a model grants; an error if it does not declare it."""
    if hasattr(model, "access"):
        return model.access
    if _is_plain(model):
        return Access.GRADIENTS
    raise AccessError(
        f"a model of type {type(model).__name__} does not declare what it grants; give it an "
        "attribute `access` and a method `restrict`, or pass its arrays in a dict, list or tuple"
    )


def _is_plain(model: Any) -> bool:
    """Returns whether a model consists only of arrays and numbers in dicts, lists and tuples."""
    if isinstance(model, dict):
        return all(map(_is_plain, model.values()))
    if isinstance(model, tuple | list):
        return all(map(_is_plain, model))
    return model is None or isinstance(model, jax.Array | np.ndarray | np.generic | int | float)


def _restricted(model: Any, tier: Access) -> Any:
    """Returns a view with `tier` alone; plain arrays as they are. Fails closed."""
    if hasattr(model, "restrict"):
        return model.restrict(tier)
    if _is_plain(model):
        return model
    raise AccessError(
        f"a model of type {type(model).__name__} declares what it grants and cannot be cut down to "
        f"{spoken(tier)}; give it a method `restrict(access)`"
    )


_OPENED = {
    Access.TEXT: "a text interface",
    Access.SCORES: "its log-probabilities",
    Access.EMBED: "its input embeddings",
    Access.READ: "its weights",
    Access.DIFFERENTIATE: "its weights and architecture, with automatic differentiation,",
    Access.FINETUNE: "a service that fine-tunes it",
    Access.EMULATOR: "a stand-in that its owner makes",
}
