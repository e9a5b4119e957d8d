"""The parts of the hypotheses that are so by definition, with the numbers that illustrate them.

They are shown, and decide nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fedjax_post.report.position.drills import drill_told, is_measured
from fedjax_post.report.position.ladder import (
    TIERS,
    Cell,
    Ladder,
    asks,
    disclosed,
    if_hosted,
    of_kind,
    over_seeds,
)
from fedjax_post.report.position.rules import count

_SILENT = ("none", "unknown", "does not apply")
_LIMITS = {  # rule of a licence -> (whether an entry limits the tuned model, its description)
    "share_derived": (lambda entry: entry.startswith("no"), "may not be passed on"),
    "same_terms": (lambda entry: entry.startswith("yes"), "stays under the same terms"),
    "use_policy": (lambda entry: not entry.startswith(_SILENT), "uses are ruled out"),
    "user_limit": (lambda entry: not entry.startswith(_SILENT), "some users need another licence"),
}


def tokens(ladder: Ladder) -> list[str]:
    """Returns how many private tokens each method sends to the host of its target."""
    kinds = ("closed", "open", "baseline")
    return [_tokens_told(cell) for kind in kinds for cell in of_kind(ladder, kind)]


def drills(ladder: Ladder) -> list[str]:
    """Returns drills whose outcome follows from what a method declares, and real retirements."""
    kinds = {name: cell.kind for cell in ladder.cells for name in (cell.method, cell.label)}
    told = [
        drill_told(row)
        for row in ladder.facts.get("drills") or []
        if not is_measured(row, kinds.get(str(row.get("method")), ""))
    ]
    return told + _retired_told(ladder)


def methods_open(ladder: Ladder) -> list[str]:
    """Returns how many registered methods each tier of access allows."""
    matrix = ladder.facts.get("matrix") or {}
    counted = [f"{matrix[t]} at {t}" for t in reversed(TIERS) if matrix.get(t) is not None]
    whole = matrix.get("methods", "an unknown number of")
    return [f"of {whole} registered methods run: {', '.join(counted)}"] if counted else []


def licences(ladder: Ladder) -> list[str]:
    """Returns what the terms of models with open weights say of a tuned model.

    Bases that this project trained are left out.
    """
    passports = ladder.facts.get("passports") or {}
    held = {
        name: p
        for name, p in passports.items()
        if p.get("tier") in ("WEIGHTS", "GRADIENTS")
        and not p.get("own", name.startswith("builtin"))
    }
    limits = {name: _limits(p.get("rules") or {}) for name, p in held.items()}
    told = [
        f"{name}: class {held[name].get('class', 'unknown')}, "
        f"{held[name].get('licence', 'unknown')}; {'; '.join(found) or 'no limit was read'}"
        for name, found in limits.items()
    ]
    if told:
        bound = sum(map(bool, limits.values()))
        first = (
            f"the terms of {bound} of {len(held)} models with open weights limit the tuned model"
        )
        told.insert(0, first)
    return told + _artefacts_told(ladder)


def audit(ladder: Ladder) -> list[str]:
    """Returns the results of the audit of a base's corpus, or why it was refused."""
    found = ladder.facts.get("audit") or {}
    return [f"audit, {name}: {_number(value)}" for name, value in _flat(found).items()]


def sent(ladder: Ladder) -> list[str]:
    """Returns how many bytes of updates each open method sends."""
    told = lambda cell: count(over_seeds(cell, lambda run: run.bytes_up))
    return [
        f"{cell.label}: {told(cell)} bytes of updates left the clients"
        for cell in of_kind(ladder, "open")
    ]


DEFINED: Mapping[str, Callable[[Ladder], list[str]]] = {
    "H1": tokens,
    "H2": drills,
    "H4": methods_open,
    "H5": licences,
    "H6": audit,
    "H7": sent,
}


def _tokens_told(cell: Cell) -> str:
    sent = over_seeds(cell, disclosed)
    left = f"{count(sent)} private tokens left the federation"
    if not asks(cell):
        return f"{cell.label} ({cell.tier}), which asks no host: {left}"
    places = {run.inference or "a place not told" for run in cell.runs.values()}
    told = f"{cell.label} ({cell.tier}), inference at {', '.join(sorted(places))}: {left}"
    if "provider" in places and not (sent and sent.mean):
        return told
    if "provider" in places:
        return f"{told}; held by the clients, the target would have shown nobody the same queries"
    seen = count(over_seeds(cell, if_hosted))
    return f"{told}; had a provider hosted the target, the same run would have shown it {seen}"


def _retired_told(ladder: Ladder) -> list[str]:
    """Returns the dates at which hosted models of the passports end."""
    passports = ladder.facts.get("passports") or {}
    dates = {name: p["retirement"] for name, p in passports.items() if p.get("retirement")}
    return [
        f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in found.items())
        for name, found in dates.items()
    ]


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


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested mappings, by their paths in words."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}".replace("_", " ")
        flat |= _flat(value, f"{path}, ") if isinstance(value, Mapping) else {path: value}
    return flat
