"""Adds uplink links and an aggregation rule to an algorithm."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fedjax_post import core
from fedjax_post.adapters import robust
from fedjax_post.algorithms import ef21
from fedjax_post.core.algorithm import Algorithm, Uplink
from fedjax_post.study.calls import Factories, parse
from fedjax_post.study.spec import Spec


class Ef21(NamedTuple):
    """EF21 around a link. It is not a link itself, because it changes the server too."""

    link: Uplink


def _chain(links: Sequence[Any]) -> Uplink:
    if not all(isinstance(link, Uplink) for link in links):
        raise ValueError("a link is a call such as top_k(0.01); ef21 must contain all other links")
    return links[0] if len(links) == 1 else core.chain(*links)


LINKS: Factories = {
    "clip": core.clip,
    "cast": core.cast,
    "top_k": core.top_k,
    "random_k": core.random_k,
    "quantize": core.quantize,
    "sign": core.sign,
    "chain": lambda *links: _chain(links),
    "error_feedback": lambda *links: core.error_feedback(_chain(links)),
    "ef21": lambda *links: Ef21(_chain(links)),
}
RULES: Factories = {
    "coordinate_median": core.coordinate_median,
    "trimmed_mean": core.trimmed_mean,
    "krum": core.krum,
    "multi_krum": core.multi_krum,
    "geometric_median": core.geometric_median,
    "norm_bounded": core.norm_bounded,
}
# The same rules, which compare clients by the products of their LoRA factors
PRODUCT_RULES: Factories = {name: getattr(robust, name) for name in RULES}


def check(spec: Spec) -> None:
    """Checks the texts of links and rules, before anything is read.

    Raises:
      ValueError: naming the field and the links or rules that exist.
    """
    for name in ("uplink", "aggregate"):
        if (text := getattr(spec.method, name)) and spec.method.baseline != "none":
            raise ValueError(
                f"{name}={text}: baseline={spec.method.baseline} sends nothing; leave one out"
            )
    if spec.method.uplink:
        _apply(spec, "uplink", _links)
    if spec.method.aggregate:
        _apply(spec, "aggregate", lambda text: parse(text, RULES))


def around(algorithm: Algorithm, spec: Spec, *, population: int) -> Algorithm:
    """Returns the algorithm with the links and the aggregation rule of an experiment.

    Args:
      algorithm: as built by its factory.
      spec: the experiment.
      population: number of clients.

    Raises:
      ValueError: if the algorithm does not support them, naming the field and the reason.
    """
    if spec.method.uplink:
        algorithm = _apply(spec, "uplink", lambda text: _with_links(algorithm, text, population))
    if spec.method.aggregate:
        algorithm = _apply(spec, "aggregate", lambda text: _with_rule(algorithm, text))
    return algorithm


def _with_rule(algorithm: Algorithm, text: str) -> Algorithm:
    on_products = algorithm.aggregate.kind == "products"
    rules = parse(text, PRODUCT_RULES if on_products else RULES)
    if len(rules) > 1:
        raise ValueError("give one rule; it may contain another: norm_bounded(1.0, krum(1))")
    put = robust.on_products if on_products else core.with_aggregate
    return put(algorithm, rules[0])


def _with_links(algorithm: Algorithm, text: str, population: int) -> Algorithm:
    link = _links(text)
    if isinstance(link, Ef21):
        return ef21(algorithm, link.link, population=population)
    return core.with_uplink(algorithm, link)


def _links(text: str) -> Uplink | Ef21:
    links = parse(text, LINKS)
    return links[0] if isinstance(links[0], Ef21) and len(links) == 1 else _chain(links)


def _apply(spec: Spec, name: str, do: Callable[[str], Any]) -> Any:
    """Returns `do` of a field's text; its ValueErrors then name the field and its value."""
    text = getattr(spec.method, name)
    try:
        return do(text)
    except ValueError as error:
        raise ValueError(f"{name}={text}: {error}") from error
