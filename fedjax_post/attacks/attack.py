"""An attack as a value: a name, and a pure function from what is seen to guessed rows."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedjax_post.attacks.seen import Public, Seen, Sent


class Guess(NamedTuple):
    """What an attack makes of one message."""

    rows: tuple[tuple[int, ...], ...]  # tokens of each row that it reconstructs
    stopped: str = ""  # why it could not go on; "" if it went to its end
    numbers: Mapping[str, Any] = {}  # what it measured, for the record


class Attack(NamedTuple):
    """An attack on single messages."""

    name: str
    invert: Callable[[Public, Sent], Guess]


class Found(NamedTuple):
    """A guess, and the message that it is about."""

    sent: Sent
    guess: Guess


def run(attack: Attack, seen: Seen) -> tuple[Found, ...]:
    """Returns the attack's guess for every message that the adversary sees.

    >>> from fedjax_post import attacks
    >>> attacks.run(attacks.dager(), attacks.Seen("server", public=None, sent=()))
    ()
    """
    return tuple(Found(sent, attack.invert(seen.public, sent)) for sent in seen.sent)
