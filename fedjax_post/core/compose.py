"""Wires and rules around an algorithm, put there where they mean something.

`algorithm._replace(uplink=...)` and `_replace(aggregate=...)` do the same and check
nothing. What is refused, and why:

| around it | refused where |
| --- | --- |
| any link | the algorithm has a wire of its own (`ef21`) |
| a link with a memory: `error_feedback`, `ef21` | a round's value says nothing of the next one's |
| a bound: `clip`, `norm_bounded`, `fixed_mean` | a value is a place, and no change of one |
| a rule, `ef21` | the server takes more than one mean value, or a rule would leave nothing |
| equal weights: `privacy.private`, `ef21` | the method is in the clients' weights |
| noise: `privacy.private` | the server divides by what is noised |

An algorithm says so itself, in `Algorithm.refuses` and `Aggregate.kind`. A refused bound does
not keep `adapters.robust.norm_bounded` away, which looks at products.
"""

from fedjax_post.core.algorithm import Aggregate, Algorithm, Around, Uplink


def with_uplink(base: Algorithm, link: Uplink) -> Algorithm:
    """The algorithm over another wire to the server.

    A client that bills the components of its rank is billed the whole message under a
    link that changes the layout.

    Raises:
      ValueError: if the link would change what the algorithm computes, not only how exactly.
    """
    check_may(base, Around.LINK, "another link")
    if link.remembers:
        check_may(base, Around.MEMORY, "a link that makes up for earlier losses")
    if link.first:
        check_may(base, Around.SCALE, "a link that holds values within a bound")
    return base._replace(uplink=link)


def with_aggregate(base: Algorithm, rule: Aggregate) -> Algorithm:
    """The algorithm with another rule in the place of its mean, such as those of `core.robust`.

    Raises:
      ValueError: if its server needs what the rule does not give.
    """
    check_may(base, Around.RULE, "another aggregate")
    check_one_value(base, "another aggregate")
    if rule.scales or rule.fixed:
        check_may(base, Around.SCALE, "an aggregate that makes values smaller")
    if rule.kind != "value":
        raise ValueError(
            "this aggregate does not finish as one value like the clients'; an algorithm must "
            "be written for it"
        )
    return base._replace(aggregate=rule)


def check_one_value(base: Algorithm, name: str) -> None:
    """Refuses to put `name` in place of an aggregate that gives more than one mean value."""
    if base.aggregate.kind == "products":
        raise ValueError(
            f"{name} cannot stand around this algorithm: its server takes the products of "
            "clients' factors; use the rules of fedjax_post.adapters.robust"
        )
    if base.aggregate.kind != "value":
        raise ValueError(
            f"{name} cannot stand around this algorithm: its server takes more than one mean "
            "of the clients' values; choose one that averages, such as fed_avg"
        )


def check_may(base: Algorithm, what: Around, name: str) -> None:
    """Refuses `name` with the algorithm's own reason, if it has one against `what`."""
    if reason := reason_against(base, what):
        raise ValueError(f"{name} cannot stand around this algorithm: {reason}")


def reason_against(base: Algorithm, what: Around) -> str:
    """Why the algorithm refuses `what`; empty if it does not.

    Raises:
      ValueError: if it refuses anything that is no `Around`, which would refuse nothing.
    """
    unknown = [key for key in base.refuses if not isinstance(key, Around)]
    if unknown:
        raise ValueError(
            f"refuses={{{unknown[0]!r}: ...}} refuses nothing; its keys are members of "
            f"core.Around: {', '.join(f'Around.{each.name}' for each in Around)}"
        )
    return base.refuses.get(what, "")
