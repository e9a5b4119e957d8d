"""What can be run on a model: its passport compared with the access that algorithms declare."""

from fedjax_post.core.access import Access
from fedjax_post.openness import page
from fedjax_post.openness.passport import Passport
from fedjax_post.openness.read import load_passport, passport_names
from fedjax_post.study.factories import declared_access


def answer(
    passport: str | None = None, what_can_i_run: str | None = None, *, downgrade: str | None = None
) -> str:
    """Returns a text page about one model or all of them.

    Args:
      passport: model whose passport is shown: a name, the path of a .toml file, or "all".
      what_can_i_run: model, given in the same way, for which the page lists the algorithms that
        its access allows, and the reason against each of the others.
      downgrade: an access tier; the page then shows what would be lost at that tier.

    Raises:
      ValueError: if not exactly one of `passport` and `what_can_i_run` is given, or the passport
        does not exist.
    """
    if (passport is None) == (what_can_i_run is None):
        raise ValueError(
            f"passport={passport} what_can_i_run={what_can_i_run}: give one of them; there are "
            f"{', '.join(passport_names())}"
        )
    if what_can_i_run is None:
        if downgrade is not None:
            raise ValueError(
                f"downgrade={downgrade} goes with `what_can_i_run`; give that in place of "
                "`passport`"
            )
        if passport == "all":
            return page.passport_table([load_passport(name) for name in passport_names()])
        return page.passport_page(_load("passport", str(passport)))
    if what_can_i_run == "all" and downgrade is None:
        return page.methods_page(
            [load_passport(name) for name in passport_names()], declared_access()
        )
    found = _load("what_can_i_run", what_can_i_run)
    if downgrade is None:
        return page.methods_page([found], declared_access())
    return page.downgrade_page(found, declared_access(), Access[downgrade.upper()])


def _load(argument: str, name: str) -> Passport:
    try:
        return load_passport(name)
    except ValueError as error:
        raise ValueError(f"{argument}={name}: {error}") from None
