"""Reads requests for fine-tuning jobs in the OpenAI format.

A field that is not supported is refused by name. `fedjax_post_training_files` is an extension of
this project: further files whose rows the job learns, since the clients of a federation upload
their own, and the format has one file for a job.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fedjax_post.provider.formats import brief, invalid, refuse_others, whole
from fedjax_post.provider.training import Recipe, Schedule

PATH = "/v1/fine_tuning/jobs"
FILES = "fedjax_post_training_files"
_HYPER = ("n_epochs", "batch_size", "learning_rate_multiplier")
_HONOURED = {"model", "training_file", "suffix", "seed", "hyperparameters", "method", FILES}
_SUFFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")
MOST = {"n_epochs": 50, "batch_size": 256}
_MOST_FILES = 10_000


class Ordered(NamedTuple):
    """A valid request for a job."""

    model: Any
    files: tuple[str, ...]  # ids, at least one
    suffix: str  # "" without one
    schedule: Schedule


def read(body: Mapping[str, Any], recipe: Recipe) -> Ordered:
    """Returns a request after checking it.

    Args:
      body: as returned by `formats.read_body`.
      recipe: the values of "auto".

    Raises:
      Refusal: 400, naming the parameter.
    """
    refuse_others(body, _HONOURED)
    first, more = body.get("training_file"), body.get(FILES) or []
    if not isinstance(first, str):
        raise invalid("training_file", "must be the id of a file")
    if not isinstance(more, list) or not all(isinstance(id, str) for id in more):
        raise invalid(FILES, "must be a list of ids of files")
    if len({first, *more}) < 1 + len(more) or len(more) >= _MOST_FILES:
        raise invalid(FILES, f"must name each file once, and at most {_MOST_FILES - 1}")
    suffix, seed = body.get("suffix"), body.get("seed")
    if suffix is not None and not (isinstance(suffix, str) and _SUFFIX.fullmatch(suffix)):
        raise invalid("suffix", "must be 1 to 64 letters, digits, dots, dashes or underscores")
    seed = 0 if seed is None else whole(seed, "seed")
    if seed >= 1 << 31:
        raise invalid("seed", f"must be below {1 << 31}")
    epochs, size, multiplier = _hyper(body)
    schedule = Schedule(epochs or recipe.num_epochs, size or recipe.batch_size, multiplier, seed)
    return Ordered(body.get("model"), (first, *more), suffix or "", schedule)


def _hyper(body: Mapping[str, Any]) -> tuple[int | None, int | None, float]:
    """Returns epochs, batch size and multiplier; None for "auto"."""
    where, given = "hyperparameters", body.get("hyperparameters")
    if (method := body.get("method")) is not None:
        if given is not None:
            raise invalid("hyperparameters", "and `method` mean the same; give one")
        where, given = _of_method(method)
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise invalid(where, f"must be an object of {', '.join(_HYPER)}")
    for name in given:
        if name not in _HYPER:
            raise invalid(f"{where}.{name[:64]}", "is not supported here; leave it out")
    chosen = {k: v for k, v in given.items() if v is not None and v != "auto"}
    for name, most in MOST.items():
        if name in chosen and whole(chosen[name], f"{where}.{name}", 1) > most:
            raise invalid(f"{where}.{name}", f"must be at most {most}")
    factor = chosen.get(_HYPER[2], 1.0)
    is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if not is_number or not 0 < factor <= 1e6 or not math.isfinite(factor):
        raise invalid(f"{where}.{_HYPER[2]}", f"must be a number above 0, not {brief(factor)}")
    return chosen.get("n_epochs"), chosen.get("batch_size"), float(factor)


def _of_method(method: Any) -> tuple[str, Any]:
    """Returns the place and the value of a method's hyper-parameters."""
    kind = method.get("type") if isinstance(method, dict) else None
    if kind != "supervised" or method.keys() - {"type", "supervised"}:
        raise invalid("method", f"must have the type supervised alone, not {brief(method)}")
    own = method.get("supervised") or {}
    if not isinstance(own, dict) or own.keys() - {"hyperparameters"}:
        raise invalid("method.supervised", "must be an object of hyperparameters")
    return "method.supervised.hyperparameters", own.get("hyperparameters")
