"""Regular expressions of other people, which may be part of a file that somebody sent."""

import re

MOST = 500  # characters of a pattern
MOST_REPEATS = 3  # in one pattern
_PARTS = re.compile(
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|(?P<group>\))?(?P<repeat>[*+?]|\{\d+(?:,\d*)?\})[?+]?|.", re.S
)


def is_bounded(pattern: str) -> bool:
    """Returns whether a regular expression can be matched quickly with any name.

    This is the case with few repeats, and none of a group: n repeats, tried at every place of a
    name of N characters, cost at most N^n steps. A repeated group may cost 2^N.
    """
    if len(pattern) > MOST or "(?" in pattern.replace("(?:", ""):
        return False
    parts = list(_PARTS.finditer(pattern.replace("(?:", "(")))
    repeats = [part for part in parts if part["repeat"]]
    if len(repeats) > MOST_REPEATS or any(part["group"] for part in repeats):
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def check_bounded(name: str, pattern: str) -> None:
    """Checks that a pattern is a regular expression that ends quickly on any name.

    Args:
      name: of the argument, for the message.
      pattern: the regular expression.

    Raises:
      ValueError: naming the argument, the pattern and the remedy.
    """
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"`{name}`: {pattern!r} is not a regular expression: {error}") from None
    if not is_bounded(pattern):
        raise ValueError(
            f"`{name}`: {pattern!r} may take forever to match; use at most {MOST_REPEATS} of * + ? "
            "and {}, none after a group, and no (?...) but (?:...)"
        )
