"""What may be done with an artefact of a federation: the consequences of licences, with sources.

An adapter or weights are derived from the base model and are subject to its terms for derived
models. A prompt contains nothing of the base model: only the terms of use apply, and it can be
used only where that model is available. Whether a licence of the *data* binds weights trained on
them is not settled by any of the sources used here; it is listed separately.
"""

from typing import NamedTuple

from fedjax_post.hub.facts import CHECKPOINTS
from fedjax_post.openness.framework import UNKNOWN
from fedjax_post.openness.licences import RULES, is_open, terms_of
from fedjax_post.openness.passport import Passport
from fedjax_post.openness.read import load_passport, passport_names

# Rules for using a model, and rules for passing one on
_USE = ("use_policy", "user_limit", "train_on_outputs")
_PASS_ON = ("share_derived", "same_terms", "notice", "name")
_OURS = "fedjax_post/openness/artefact.py: a prompt is tokens or vectors, none of them the base's"


class Consequence(NamedTuple):
    """One consequence for the artefact, with its source and date."""

    about: str  # subject
    says: str
    source: str
    date: str


def artefact_terms(
    passport: Passport, *, holds_weights: bool = True, data_licence: str = UNKNOWN
) -> list[Consequence]:
    """Returns the rules for an artefact: how it may be used, passed on and named.

    Args:
      passport: of the base model.
      holds_weights: whether the artefact is an adapter or weights; otherwise it is a prompt.
      data_licence: licence of the clients' data, an SPDX identifier or another name.
    """
    licence = passport.terms
    free = "open" if is_open(licence.value) else "not open"
    found = [Consequence("licence of the base", f"{licence.value} ({free})", *licence[1:3])]
    terms = terms_of(licence.value)
    for rule in _PASS_ON:
        if holds_weights:
            found.append(Consequence(RULES[rule], terms.rules[rule], terms.source, terms.date))
    if not holds_weights:
        text = "it contains nothing of the base; it can be used only where the base is available"
        found.append(Consequence("passing a prompt on", text, _OURS, "2026-11-22"))
    for rule in _USE:
        found.append(Consequence(RULES[rule], terms.rules[rule], terms.source, terms.date))
    return [*found, _of_data(data_licence)]


def passport_of(model: str) -> str:
    """Returns the name of the passport of a hub model or built-in model; "" without one."""
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
    text = f"{licence} ({free}); whether it binds weights trained on the data is not settled"
    return Consequence("licence of the clients' data", text, "as given", UNKNOWN)
