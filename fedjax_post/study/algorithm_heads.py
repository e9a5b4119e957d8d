"""What the files of the algorithms say of them: their papers, access, inputs and settings."""

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post import algorithms
from fedjax_post.core import world
from fedjax_post.study.factories import access_of, own_parameters
from fedjax_post.study.fields import unknown

PAPERS = Path(__file__).parent / "papers.bib"  # the only place with data of papers
_NUMBER = re.compile(r"arXiv:(\d{4}\.\d{5})")


class About(NamedTuple):
    """What is known of an algorithm without running it."""

    name: str
    title: str  # one sentence: the first line of its file
    text: str  # the rest of the head: papers, equations, deviations
    papers: tuple[str, ...]  # arXiv numbers, that of the algorithm first
    access: Mapping[str, str]  # model role -> tier
    inputs: Mapping[str, str]  # argument -> annotation of `core.world` that fills it
    settings: Mapping[str, Any]  # hyper-parameter -> default


def about(name: str) -> About:
    """Returns what the file of an algorithm says, and what its factory declares.

    Args:
      name: of a registered algorithm.

    Raises:
      ValueError: for an unknown name, with the nearest one or all.

    Example:
      >>> about("scaffold").title
      'SCAFFOLD: corrects client drift with control variates.'
    """
    factory = _find(name, algorithms.ALGORITHMS)
    title, _, text = _head(factory).partition("\n")
    return About(
        name,
        title,
        text.strip(),
        _papers_of(factory),
        {role: str(tier.name) for role, tier in access_of(name).items()},
        {argument: mark.name for argument, mark in world.needs(factory).items()},
        {argument: value.default for argument, value in own_parameters(factory).items()},
    )


def cite(*names: str) -> str:
    """Returns BibTeX of the papers that algorithms follow, without repetition.

    Args:
      *names: of registered algorithms, or of wrappers such as `ditto`; the papers of each are in
        the order of its file, its own first.

    Raises:
      ValueError: for an unknown name, with the nearest one or all.

    Example:
      >>> print(cite("fed_prox").splitlines()[0])
      @misc{li2020federated,
    """
    wrappers = {
        name: thing
        for name, thing in vars(algorithms).items()
        if inspect.isfunction(thing) and _papers_of(thing)
    }
    known = {**wrappers, **algorithms.ALGORITHMS}
    numbers = [number for name in names for number in _papers_of(_find(name, known))]
    return "\n\n".join(papers()[number] for number in dict.fromkeys(numbers))


@cache
def papers() -> Mapping[str, str]:
    """Returns the BibTeX entry of every paper that the library knows, by arXiv number."""
    entries = re.split(r"\n(?=@)", PAPERS.read_text(encoding="utf-8"))
    found = [(re.findall(r"eprint = \{([\d.]+)\}", entry), entry.strip()) for entry in entries]
    return {number: entry for (number,), entry in found}


def _find(name: str, known: Mapping[str, Callable]) -> Callable:
    if name not in known:
        raise ValueError(unknown(name, known, what="algorithm"))
    return known[name]


def _head(factory: Callable) -> str:
    return inspect.getdoc(sys.modules[factory.__module__]) or ""


def _papers_of(factory: Callable) -> tuple[str, ...]:
    """The papers named by the head of an algorithm's file, then those of its own docstring."""
    text = f"{_head(factory)} {inspect.getdoc(factory)}"
    return tuple(dict.fromkeys(_NUMBER.findall(text)))
