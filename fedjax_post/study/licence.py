"""What the licence of a base model requires of an artefact that a federation made."""

from fedjax_post.openness.artefact import artefact_terms, passport_of
from fedjax_post.openness.framework import UNKNOWN
from fedjax_post.openness.read import load_passport


def terms(
    base: str, *, passport: str = "", holds_weights: bool = True, data_licence: str = UNKNOWN
) -> list[dict[str, str]]:
    """Returns what may be done with an artefact by the base model's passport, ready for JSON.

    Args:
      base: name of the base model, by which its passport is found.
      passport: name or path of another passport to use.
      holds_weights: whether the artefact holds weights, as returned by `hub.artefact.write`.
      data_licence: licence of the clients' data.
    """
    name = passport or passport_of(base)
    if not name:
        message = f"no passport for {base}; give one by `passport`"
        return [{"about": "licence of the base", "says": message, "source": "", "date": ""}]
    found = artefact_terms(
        load_passport(name), holds_weights=holds_weights, data_licence=data_licence
    )
    return [consequence._asdict() for consequence in found]
