"""What may be done with what a federation made: the consequences of licences, with sources.

An adapter, or weights, are derived from the base and stand under the terms that bind
derived models. A prompt holds nothing of the base: its terms bind whoever uses it, and it is
of use only where that base still answers. What a licence of the *data* means for weights that
were trained on them is not settled by any text that is read here; it is stated beside.
"""

from typing import NamedTuple

from fedjax_post.hub.facts import CHECKPOINTS
from fedjax_post.openness.framework import UNKNOWN
from fedjax_post.openness.licences import RULES, is_open, terms_of
from fedjax_post.openness.passport import Passport
from fedjax_post.openness.read import load_passport, passport_names

# rules that bind whoever uses a model, and those that bind whoever passes one on
_USE = ("use_policy", "user_limit", "train_on_outputs")
_PASS_ON = ("share_derived", "same_terms", "notice", "name")
_OURS = "fedjax_post/openness/artefact.py: a prompt is tokens or vectors, none of them the base's"


class Consequence(NamedTuple):
    """One thing that follows for the artefact, who says so, and when."""

    about: str
    says: str
    source: str
    date: str


def artefact_terms(
    passport: Passport, *, holds_weights: bool = True, data_licence: str = UNKNOWN
) -> list[Consequence]:
    """Returns what may be done with an artefact: used, passed on, and under which name.

    Args:
      passport: of the base.
      holds_weights: whether it is an adapter or weights; else a prompt.
      data_licence: SPDX identifier of the clients' data, or another name.
    """
    licence = passport.terms
    free = "open" if is_open(licence.value) else "not open"
    found = [Consequence("licence of the base", f"{licence.value} ({free})", *licence[1:])]
    terms = terms_of(licence.value)
    for rule in _PASS_ON:
        if holds_weights:
            said = terms.rules[rule]
            found.append(Consequence(RULES[rule], said, terms.source, terms.date))
    if not holds_weights:
        told = "nothing of the base is in it; it is of use only where the base answers"
        found.append(Consequence("passing a prompt on", told, _OURS, "2026-11-22"))
    for rule in _USE:
        found.append(Consequence(RULES[rule], terms.rules[rule], terms.source, terms.date))
    return [*found, _of_data(data_licence)]


def passport_of(model: str) -> str:
    """Returns the name of the passport of a model of the hub or of this project, or ""."""
    names = passport_names()
    if model in names:
        return model
    if model.startswith("builtin"):
        return "builtin"
    known = {entry.name for entry in CHECKPOINTS}
    fits = [name for name in names if model in known and load_passport(name).checkpoint == model]
    return fits[0] if fits else ""


def _of_data(licence: str) -> Consequence:
    if licence == UNKNOWN:
        return Consequence("licence of the clients' data", UNKNOWN, UNKNOWN, UNKNOWN)
    free = "open" if is_open(licence) else "not an open licence"
    told = f"{licence} ({free}); whether it binds weights trained on the data is not settled"
    return Consequence("licence of the clients' data", told, "as given", UNKNOWN)
