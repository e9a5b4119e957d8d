"""Replaces the uplink or the aggregate of an algorithm, after a check that this is meaningful.

`algorithm._replace(uplink=...)` and `_replace(aggregate=...)` do the same without a check.
What is refused, and why:

| replacement | refused if |
| --- | --- |
| any link | the algorithm defines its own uplink (`ef21`) |
| a link with memory: `error_feedback`, `ef21` | values of different rounds are unrelated |
| a bound: `clip`, `norm_bounded`, `fixed_mean` | a value is a position, not a change |
| an aggregate, `ef21` | the server needs more than one mean value, or the method would be lost |
| equal weights: `privacy.private`, `ef21` | the method works through the clients' weights |
| noise: `privacy.private` | the server divides by the noised value |

An algorithm declares what it refuses in `Algorithm.refuses` and `Aggregate.kind`. A refused
bound does not exclude `adapters.robust.norm_bounded`, which bounds products of factors.
"""

from fedjax_post.core.algorithm import Aggregate, Algorithm, Around, Uplink


def with_uplink(base: Algorithm, link: Uplink) -> Algorithm:
    """Returns the algorithm with another uplink, such as those of `core.uplinks`.

    A client that is billed by the components of its rank is billed the whole message if the
    link changes the layout of the message.

    >>> import jax, optax
    >>> from fedjax_post.algorithms.fed_avg import fed_avg
    >>> from fedjax_post.core import num_bytes, quantize, with_uplink
    >>> from fedjax_post.core.uplinks import message_like
    >>> base = fed_avg(lambda params, model, batch, key: (0.0, {}), optax.sgd(0.1))
    >>> algorithm = with_uplink(base, quantize(8))
    >>> value = {"x": jax.ShapeDtypeStruct((1024,), "float32")}
    >>> num_bytes(value), num_bytes(message_like(algorithm.uplink, value))
    (4096, 1056)

    Raises:
      ValueError: if the link would change what the algorithm computes, and not only its
        precision.
    """
    check_may(base, Around.LINK, "another link")
    if link.remembers:
        check_may(base, Around.MEMORY, "a link that sends what earlier rounds lost")
    if link.first:
        check_may(base, Around.SCALE, "a link that bounds values")
    return base._replace(uplink=link)


def with_aggregate(base: Algorithm, rule: Aggregate) -> Algorithm:
    """Returns the algorithm with another aggregate in place of its mean, see `core.robust`.

    Raises:
      ValueError: if the server needs a value that the aggregate does not give.
    """
    check_may(base, Around.RULE, "another aggregate")
    check_one_value(base, "another aggregate")
    if rule.scales or rule.fixed:
        check_may(base, Around.SCALE, "an aggregate that makes values smaller")
    if rule.kind != "value":
        raise ValueError(
            "this aggregate does not return one value shaped like a client's; use it in an "
            "algorithm that is written for it"
        )
    return base._replace(aggregate=rule)


def check_one_value(base: Algorithm, name: str) -> None:
    """Raises ValueError if the algorithm's aggregate returns more than one mean value.

    `name` describes, in the message, what was to be put in its place.
    """
    if base.aggregate.kind == "products":
        raise ValueError(
            f"{name} cannot be used with this algorithm: its server takes the products of "
            "clients' factors; use the rules of fedjax_post.adapters.robust"
        )
    if base.aggregate.kind != "value":
        raise ValueError(
            f"{name} cannot be used with this algorithm: its server takes more than one mean "
            "of the clients' values; choose an algorithm that averages, such as fed_avg"
        )


def check_may(base: Algorithm, what: Around, name: str) -> None:
    """Raises ValueError with the algorithm's own reason if it refuses `what`.

    Args:
      base: the algorithm.
      what: the kind of replacement.
      name: what the message calls the replacement.

    Raises:
      ValueError: if the algorithm refuses `what`.
    """
    if reason := reason_against(base, what):
        raise ValueError(f"{name} cannot be used with this algorithm: {reason}")


def reason_against(base: Algorithm, what: Around) -> str:
    """Returns the reason for which the algorithm refuses `what`; empty if it does not refuse.

    Raises:
      ValueError: if a key of `refuses` is not an `Around`; such a key would have no effect.
    """
    unknown = [key for key in base.refuses if not isinstance(key, Around)]
    if unknown:
        raise ValueError(
            f"refuses={{{unknown[0]!r}: ...}} has no effect; its keys must be members of "
            f"core.Around: {', '.join(f'Around.{each.name}' for each in Around)}"
        )
    return base.refuses.get(what, "")
