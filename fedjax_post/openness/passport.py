"""A model's passport: statements on how open it is, with their sources, and what follows."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fedjax_post.core.access import Access
from fedjax_post.openness.framework import UNKNOWN, Evaluation, evaluate
from fedjax_post.openness.licences import is_open

PARTS = ("data_information", "code", "parameters")  # of the Open Source AI Definition
CONVERSION = ("original", "made_by", "form", "licence")
DIMENSIONS = (  # of the European Open Source AI Index, in its order
    *("datasources_basemodel", "datasources_endmodel", "weights_basemodel", "weights_endmodel"),
    *("trainingcode", "code", "hardware_architecture", "preprint", "paper", "modelcard"),
    *("datasheet", "licenses"),
)
RETIREMENT = ("announced", "shut_down", "fine_tunes", "notice")
PLACES = ("client", "federation server", "third party")


class Statement(NamedTuple):
    """A value, its source, and the date of the source or of reading it (YYYY-MM-DD)."""

    value: Any
    source: str
    date: str
    of: str = ""  # the model that the source speaks of, if it is another size or version


class Release(NamedTuple):
    """The release of one of the framework's components by a model."""

    released: str  # yes, no or unknown
    licence: str | None  # its own; None if the project's applies, "unknown" without a statement
    source: str
    date: str
    of: str = ""  # as in `Statement`


class Passport(NamedTuple):
    """All statements on one model."""

    name: str
    title: str
    producer: str
    model_type: str
    checkpoint: str
    project: Mapping[str, Statement]
    components: Mapping[str, Release]
    definition: Mapping[str, Statement]
    eu_index: Mapping[str, Statement]
    tier: Statement  # name of an `Access`
    inference: Statement  # the `PLACES` where it may run
    terms: Statement  # licence that applies to derived models
    conversion: Mapping[str, Statement]  # by `CONVERSION`, if the file is another's; else empty
    scores: Statement | None  # what the API tells of probabilities, where it is less than LOGITS
    fine_tuning: Statement | None  # whether the API fine-tunes it: yes or no; None if not hosted
    retirement: Mapping[str, Statement]  # by the keys of `RETIREMENT`; empty if none is known


def classify(passport: Passport, *, hopeful: bool = False) -> Evaluation:
    """Returns the framework's evaluation of a passport.

    Args:
      passport: of the model.
      hopeful: whether to count unknown components as released under an open licence, which gives
        the best class that the known facts allow. Otherwise they do not count.
    """
    released: dict[str, str | None] = {}
    for name, part in passport.components.items():
        unknown = part.released == UNKNOWN
        if part.released == "yes" or (unknown and hopeful):
            doubtful = unknown or part.licence == UNKNOWN
            released[name] = "OpenMDW-1.0" if hopeful and doubtful else part.licence
    project = {kind: statement.value for kind, statement in passport.project.items()}
    return evaluate(released, {kind: v for kind, v in project.items() if v != UNKNOWN})


def meets_definition(passport: Passport) -> str:
    """Returns 'passes', 'fails' or 'unknown' by the Open Source AI Definition's three parts.

    All three parts must hold. If OSI itself has reviewed the model, its result is a separate
    statement of the passport, `definition["verdict"]`, which is not used here.
    """
    values = {passport.definition[part].value for part in PARTS}
    if "no" in values:
        return "fails"
    return UNKNOWN if UNKNOWN in values else "passes"


def index_score(passport: Passport) -> tuple[float, int]:
    """Returns the sum of points over the index's dimensions, and how many of the 12 are known.

    Open counts 1 and partial 0.5. This sum is customary for the index, but not published by it.
    """
    points = {"open": 1.0, "partial": 0.5, "closed": 0.0}
    values = [statement.value for statement in passport.eu_index.values()]
    known = [value for value in values if value in points]
    return sum(points[value] for value in known), len(known)


def transferred(statements: Iterable[Statement | Release]) -> list[str]:
    """Returns the other models that statements speak of, without repetition."""
    return list(dict.fromkeys(one.of for one in statements if one.of))


def granted_access(passport: Passport) -> Access:
    """Returns the access that a model grants; TEXT, the least possible, if it is unknown.

    FINETUNE is added for a hosted model that its API fine-tunes.
    """
    tier, tuned = passport.tier.value, passport.fine_tuning
    service = Access.FINETUNE if tuned is not None and tuned.value == "yes" else Access(0)
    return service | (Access.TEXT if tier == UNKNOWN else Access[tier])


def may_relicense(passport: Passport) -> bool:
    """Returns whether the licence that applies to derived models is open."""
    return is_open(passport.terms.value)
