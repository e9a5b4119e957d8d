"""What the licence of a base asks of what a federation made."""

from fedjax_post.openness.artefact import artefact_terms, passport_of
from fedjax_post.openness.framework import UNKNOWN
from fedjax_post.openness.read import load_passport


def terms(
    base: str, *, passport: str = "", holds_weights: bool = True, data_licence: str = UNKNOWN
) -> list[dict[str, str]]:
    """Returns what may be done with an artefact, by the base's passport, for JSON.

    Args:
      base: name of the base; its passport is found by it.
      passport: another passport's name, or the path of one.
      holds_weights: as `hub.artefact.write` returns it.
      data_licence: of the clients' data.
    """
    name = passport or passport_of(base)
    if not name:
        told = f"no passport for {base}; give one by `passport`"
        return [{"about": "licence of the base", "says": told, "source": "", "date": ""}]
    found = artefact_terms(
        load_passport(name), holds_weights=holds_weights, data_licence=data_licence
    )
    return [consequence._asdict() for consequence in found]
