"""H4 to H7: findings from passports, registered methods, other base models, audits and attacks."""

from collections.abc import Mapping
from typing import Any

from fedjax_post.report.position.claims import ALIKE, RARE
from fedjax_post.report.position.ladder import TIERS, Ladder, of_kind, over_seeds
from fedjax_post.report.position.rules import (
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    Finding,
    ahead,
    all_of,
    count,
    decide,
    numbers,
    percent,
    points,
)

_SILENT = ("none", "unknown", "does not apply")
_LIMITS = {  # rule of a licence -> (whether an entry limits the tuned model, its description)
    "share_derived": (lambda entry: entry.startswith("no"), "may not be passed on"),
    "same_terms": (lambda entry: entry.startswith("yes"), "stays under the same terms"),
    "use_policy": (lambda entry: not entry.startswith(_SILENT), "uses are ruled out"),
    "user_limit": (lambda entry: not entry.startswith(_SILENT), "some users need another licence"),
}


def methods_open(ladder: Ladder) -> Finding:
    """Returns the finding on H4: how many registered methods each access tier allows."""
    matrix = ladder.facts.get("matrix") or {}
    tiers = {tier: matrix[tier] for tier in TIERS if matrix.get(tier) is not None}
    whole = matrix.get("methods", "an unknown number of")
    counted = [f"{number} at {tier}" for tier, number in reversed(tiers.items())]
    told = [f"of {whole} registered methods run: {', '.join(counted)}"] if counted else []
    verdict = UNDECIDED
    if "EMBEDDINGS" in tiers and "GRADIENTS" in tiers:
        verdict = SUPPORTED if tiers["GRADIENTS"] > tiers["EMBEDDINGS"] else NOT_SUPPORTED
    return Finding(verdict, told or ["missing: the matrix of methods and tiers"])


def licence(ladder: Ladder) -> Finding:
    """Returns the finding on H5: licences affect the use of the result, not what is disclosed."""
    passports = ladder.facts.get("passports") or {}
    held = {name: p for name, p in passports.items() if p.get("tier") in ("WEIGHTS", "GRADIENTS")}
    limits = {name: _limits(p.get("rules") or {}) for name, p in held.items()}
    told = [
        f"{name}: class {held[name].get('class', 'unknown')}, "
        f"{held[name].get('licence', 'unknown')}; {'; '.join(found) or 'no limit was read'}"
        for name, found in limits.items()
    ]
    known = bool(held) and all(
        (p.get("rules") or {}).get(rule, "unknown") != "unknown"
        for p in held.values()
        for rule in _LIMITS
    )
    verdict = NOT_SUPPORTED if known else UNDECIDED
    if any(limits.values()):
        verdict = SUPPORTED
    if told:
        bound = sum(map(bool, limits.values()))
        told.insert(
            0, f"the terms of {bound} of {len(held)} models with open weights limit the tuned model"
        )
    told += _artefacts_told(ladder)
    return Finding(verdict, told or ["missing: passports of models with open weights"])


def data_openness(ladder: Ladder) -> Finding:
    """Returns the finding on H6: whether openness of a base's pre-training data matters."""
    gaps = base_gaps(ladder)
    told = [f"{label}, this base less {base}: {points(gap)}" for (base, label), gap in gaps.items()]
    told += [f"audit, {name}: {_number(value)}" for name, value in _flat(audit_of(ladder)).items()]
    if audited(ladder) != UNDECIDED:
        stand = percent(audit_of(ladder)["contamination"]["rows"])
        told.insert(0, f"{stand} of the evaluation rows stand in the corpus, question and answer")
    tuned = {cell.label for cell in ladder.cells if cell.kind != "baseline"}
    judged = [_alike(gap) for (_, label), gap in gaps.items() if label in tuned]
    verdict = all_of([audited(ladder), *(judged or [UNDECIDED])])
    return Finding(verdict, told or ["missing: neither a second base nor an audit"])


def updates(ladder: Ladder) -> Finding:
    """Returns the finding on H7: whether the updates of open methods reveal private text."""
    rows = ladder.facts.get("attacks") or []
    excess = {
        f"{row.get('attack')} on {row.get('method')}": _less(row.get("recovered"), row.get("guess"))
        for row in rows
    }
    told = [f"{name}: {points(gap)} recovered beyond guessing" for name, gap in excess.items()]
    for cell in of_kind(ladder, "open"):
        sent = over_seeds(cell, lambda run: run.bytes_up)
        told.append(f"{cell.label}: {count(sent)} bytes of updates left the clients")
    results = {decide(gap) for gap in excess.values()}
    verdict = SUPPORTED if SUPPORTED in results else UNDECIDED
    if results == {NOT_SUPPORTED}:
        verdict = NOT_SUPPORTED
    return Finding(verdict, told or ["missing: no open cell is finished"])


def audited(ladder: Ladder) -> str:
    """Returns the verdict of an audit on 'the corpus contains none of the evaluation rows'."""
    share = (audit_of(ladder).get("contamination") or {}).get("rows")
    if share is None:
        return UNDECIDED
    return SUPPORTED if share <= RARE else NOT_SUPPORTED


def audit_of(ladder: Ladder) -> Mapping[str, Any]:
    """Returns the result of an audit of the base's corpus, or why it was refused."""
    return ladder.facts.get("audit") or {}


def base_gaps(ladder: Ladder) -> dict[tuple[str, str], list[float]]:
    """Returns (other base, label) -> this base's exact match minus the other's, by seed."""
    cells = {cell.method: cell for cell in ladder.cells}
    return {
        (base, other.label): ahead(cells[other.method], other)
        for base, others in ladder.bases.items()
        for other in others
    }


def _alike(gap: list[float]) -> str:
    """Returns the verdict on 'two bases differ by less than `ALIKE`', by intervals over seeds."""
    if all(decide([ALIKE - sign * x for x in gap]) == SUPPORTED for sign in (1, -1)):
        return SUPPORTED
    apart = any(decide([sign * x - ALIKE for x in gap]) == SUPPORTED for sign in (1, -1))
    return NOT_SUPPORTED if apart else UNDECIDED


def _artefacts_told(ladder: Ladder) -> list[str]:
    """Returns the licence terms of artefacts, with their methods, from the drills on artefacts."""
    methods: dict[str, list[str]] = {}
    for row in ladder.facts.get("drills") or []:
        terms: list[dict[str, str]] = next(iter(row.get("terms") or []), [])
        told = "; ".join(f"{each['about']}: {each['says']}" for each in terms)
        if told:
            methods.setdefault(told, []).append(str(row.get("method")))
    return [f"what {', '.join(names)} made: {told}" for told, names in methods.items()]


def _limits(rules: Mapping[str, str]) -> list[str]:
    """Returns the rules of a licence that limit a tuned model, with the licence's own words."""
    found = []
    for rule, (limits, said) in _LIMITS.items():
        entry = rules.get(rule, "unknown")
        if limits(entry):
            found.append(f"{said} ({entry})")
    return found


def _less(first: Any, second: Any) -> list[float]:
    return [a - b for a, b in zip(numbers(first), numbers(second), strict=False)]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested mappings, by their paths in words."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}".replace("_", " ")
        flat |= _flat(value, f"{path}, ") if isinstance(value, Mapping) else {path: value}
    return flat
