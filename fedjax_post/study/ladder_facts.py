"""The content of a ladder's `ladder.json`; `report.position.ladder` documents its meaning.

Every part is read from finished runs or passports, or measured on the base model.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_post.core.access import LEVELS, spoken
from fedjax_post.evaluate.generation import reference_answers
from fedjax_post.openness import passport as read
from fedjax_post.openness.artefact import passport_of
from fedjax_post.openness.framework import CLASSES
from fedjax_post.openness.licences import terms_of
from fedjax_post.openness.read import load_passport, passport_names
from fedjax_post.openness.runnable import refusals, roles
from fedjax_post.report.records import read_summary
from fedjax_post.study import ledgers
from fedjax_post.study.build import Parts
from fedjax_post.study.factories import access_of, declared_access
from fedjax_post.study.spec import Spec

_US = "fedjax_post"  # the producer of the bases that this project trained


class Rung(NamedTuple):
    """One method of a ladder.

    Attributes:
      spec: its experiment.
      kind: "open", "closed", "baseline" or "control".
      title: name in the report; "" for its name among the rungs.
      control: of a control, which one: a key of `report.position.controls.CONTROLS`.
    """

    spec: Spec
    kind: str
    title: str = ""
    control: str = ""


def cell_entries(rungs: Mapping[str, Rung]) -> list[dict[str, Any]]:
    """Returns an entry for each method: folder, label, access tier, kind, and score to report."""
    return [
        {
            "method": name,
            "label": rung.title or name,
            "tier": ledgers.tier_of(access_of(rung.spec.method.name)),
            "kind": rung.kind,
            "control": rung.control,
            "score": "personal" if rung.spec.scoring.personal else "final",
        }
        for name, rung in rungs.items()
    ]


def chance_of(parts: Parts) -> float:
    """Returns the share of the most frequent answer among the held-out rows, in [0, 1]."""
    answers = reference_answers(parts.heldout)
    return Counter(answers).most_common(1)[0][1] / len(answers)


def gate_of(
    directory: Path, chance: float, *, measure: str, manual: str, soft: str, full: str
) -> dict[str, Any]:
    """Returns the figures that show whether a base model can be prompted.

    They are means over the seeds that all three rungs have, which are "seeds".

    Args:
      directory: of the ladder.
      chance: as returned by `chance_of`, in [0, 1].
      measure: the score by which cells are compared.
      manual: name of the rung with a manual prompt.
      soft: name of the rung with a soft prompt that is trained by gradients.
      full: name of the rung whose gain over `manual` the soft prompt's gain is divided by.
    """
    tables = [_scores(directory / name, measure) for name in (manual, soft, full)]
    seeds = sorted(set.intersection(*map(set, tables)))
    if not seeds:
        own = list(tables[0].values())
        base = sum(own) / len(own) if own else None
        return {"manual_prompt": base, "chance": chance, "soft_prompt_share": None}
    base, tuned, best = (sum(table[seed] for seed in seeds) / len(seeds) for table in tables)
    gain = best - base
    share = (tuned - base) / gain if gain > 0 else None
    told = {"manual_prompt": base, "chance": chance, "soft_prompt_share": share, "gain": gain}
    return told | {"seeds": seeds}


def matrix_entry() -> dict[str, int]:
    """Returns the number of registered methods, and how many of them run at each access tier."""
    methods = declared_access()
    run = {spoken(tier): len(methods) - len(refusals(methods, roles(tier))) for tier in LEVELS}
    return {"methods": len(methods), **run}


def passport_entries() -> dict[str, dict[str, Any]]:
    """Returns class, licence and rules, tier, retirement, and whether it is ours, by passport."""
    return {name: _passport(load_passport(name)) for name in passport_names()}


def base_entries(model: str, bases: Iterable[str]) -> dict[str, dict[str, bool | None]]:
    """Returns for each other base whether it shares training data with a model.

    Bases of one producer count as sharing some; None if one of the two has no passport.
    """
    own = _producer(model)
    return {base: {"shares_data": _shared(own, _producer(base))} for base in bases}


def _shared(first: str | None, second: str | None) -> bool | None:
    return None if first is None or second is None else first == second


def _producer(model: str) -> str | None:
    name = passport_of(model)
    return load_passport(name).producer if name else None


def _passport(passport: read.Passport) -> dict[str, Any]:
    licence = passport.terms.value
    return {
        "class": CLASSES[read.classify(passport).rank],
        "licence": licence,
        "tier": passport.tier.value,
        "own": passport.producer == _US,
        "rules": dict(terms_of(licence).rules),
        "retirement": {name: one.value for name, one in passport.retirement.items()},
    }


def _scores(folder: Path, measure: str) -> dict[int, float]:
    """Returns the final score by finished seed; {} if any lacks it."""
    found = {
        int(path.parent.name.removeprefix("seed-")): _final(path, measure)
        for path in sorted(folder.glob("seed-*/summary.json"))
    }
    known = {seed: value for seed, value in found.items() if value is not None}
    return known if len(known) == len(found) else {}


def _final(path: Path, measure: str) -> float | None:
    return (read_summary(path.parent).get("final") or {}).get(measure)
