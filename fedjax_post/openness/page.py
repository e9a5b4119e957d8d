"""Text pages for a terminal: passports, and the methods that can run on a model."""

from collections.abc import Mapping, Sequence

from fedjax_post.core.access import Access, spoken
from fedjax_post.hub.families import FAMILIES
from fedjax_post.openness import passport as read
from fedjax_post.openness.framework import CLASSES, COMPONENTS, UNKNOWN, Evaluation
from fedjax_post.openness.licences import RULES, terms_of
from fedjax_post.openness.passport import Passport
from fedjax_post.openness.runnable import Refusal, lost_methods, refusals, roles

_NEXT = {0: 3, 3: 2, 2: 1}  # class -> the next higher class


def passport_page(passport: Passport) -> str:
    """Returns all statements of a passport, each with its source's number in brackets."""
    sources: list[tuple[str, str]] = []
    lines = [
        f"{passport.title}, {passport.producer}",
        "",
        *_framework(passport, sources),
        "",
        f"Open Source AI Definition 1.0: {read.meets_definition(passport)} by its three parts",
        *_statements(passport.definition, sources),
        "",
        *_index(passport, sources),
        "",
        "Access",
        *_statements(_access(passport), sources),
        *_conversion(passport, sources),
        "",
        *_redistribution(passport, sources),
        "",
        *_retirement(passport, sources),
        "Sources",
        *(f"  [{i + 1}] {what} ({date})" for i, (what, date) in enumerate(sources)),
    ]
    return "\n".join(lines)


def passport_table(passports: Sequence[Passport]) -> str:
    """Returns one row per model: class, definition, index, access, licence, derived terms."""
    head = ("model", "class", "at best", "definition", "index", "access", "licence", "same terms")
    rows = [head]
    for passport in passports:
        points, known = read.index_score(passport)
        rows.append(
            (
                passport.name,
                _numeral(read.classify(passport)),
                _numeral(read.classify(passport, hopeful=True)),
                read.meets_definition(passport),
                f"{points:g} of {known}{_star(passport)}" if known else UNKNOWN,
                passport.tier.value,
                passport.terms.value,
                terms_of(passport.terms.value).rules["same_terms"].partition(":")[0],
            )
        )
    return (
        _columns(rows)
        + "\n\nclass: of the Model Openness Framework; at best: if all that is unknown were open; "
        + "*: read in an entry on another size or version, which the passport names"
    )


def methods_page(passports: Sequence[Passport], methods: Mapping[str, Mapping[str, Access]]) -> str:
    """Returns a table of the methods that models allow, with a numbered reason for each refusal."""
    reasons: list[str] = []
    columns = [_column(passport, methods, reasons) for passport in passports]
    needs = [_needs(needed) for needed in methods.values()]
    head = ("method", "needs", *(passport.name for passport in passports))
    rows = [head, *zip(methods, needs, *columns, strict=True)]
    counts = [str(column.count("runs")) for column in columns]
    lines = [_columns([*rows, (f"{len(methods)} methods", "run:", *counts)])]
    lines += ["", *(f"[{i + 1}] {reason}" for i, reason in enumerate(reasons))]
    for passport in passports:
        places = ", ".join(_as_list(passport.inference.value))
        tier, source, date, _ = passport.tier
        lines.append(f"{passport.title} grants {tier} ({source}, {date}); it may run at: {places}")
        if passport.model_type not in (*FAMILIES, UNKNOWN):
            lines.append(
                f"  not loaded by this library: model_type {passport.model_type} has no row in "
                "fedjax_post/hub/families.py; that is the library's limit, not the model's"
            )
    return "\n".join(lines)


def downgrade_page(
    passport: Passport, methods: Mapping[str, Mapping[str, Access]], tier: Access
) -> str:
    """Returns the methods that would be lost if a model were open only to a tier.

    Args:
      passport: of the model.
      methods: name -> the access that the method declares for each model role.
      tier: the lower access.
    """
    granted = read.granted_access(passport)
    gone: list[Refusal] = lost_methods(methods, granted, tier)
    told, open_to = spoken(granted), spoken(tier)
    if not gone:
        return f"{passport.title} grants {told}; at {open_to} nothing would be lost."
    lines = [f"{passport.title}, open to {open_to} and not to {told}, would lose", ""]
    lines.append(_columns([("method", "reason"), *gone]))
    return "\n".join([*lines, "", f"{len(gone)} of {len(methods)} methods lost."])


def _framework(passport: Passport, sources: list) -> list[str]:
    found, best = read.classify(passport), read.classify(passport, hopeful=True)
    lines = [f"Model Openness Framework: class {CLASSES[found.rank]}"]
    if best.rank != found.rank:
        lines[0] += f"; class {CLASSES[best.rank]} if all that is unknown were open"
    if found.rank in _NEXT:
        above = _NEXT[found.rank]
        lines.append(f"  missing for class {CLASSES[above]}:")
        for name, why in found.lacking[above].items():
            unknown = passport.components[name].released == UNKNOWN
            why = "unknown whether it was released" if unknown else why
            lines.append(f"    {COMPONENTS[name].title}: {why}")
    for name in found.warnings:
        content, licence = COMPONENTS[name].content, found.licences[name]
        lines.append(f"  warning: {COMPONENTS[name].title}: {licence} is not made for {content}")
    rows = []
    for name, part in passport.components.items():
        licence = found.licences.get(name, "")
        number = _number(part.source, part.date, sources)
        rows.append((f"  {COMPONENTS[name].title}", part.released + _of(part), licence, number))
    return [*lines, _columns(rows)]


def _index(passport: Passport, sources: list) -> list[str]:
    points, known = read.index_score(passport)
    if not known:
        return ["European Open Source AI Index: no entry found"]
    lines = [f"European Open Source AI Index: {points:g} points on {known} of 12 dimensions"]
    return [*lines, *_statements(passport.eu_index, sources)]


def _conversion(passport: Passport, sources: list) -> list[str]:
    if not passport.conversion:
        return []
    words = {name.replace("_", " "): value for name, value in passport.conversion.items()}
    return ["", "The weights that are loaded were converted", *_statements(words, sources)]


def _access(passport: Passport) -> dict[str, read.Statement]:
    found = {"tier": passport.tier, "inference may run at": passport.inference}
    api = {"probabilities": passport.scores, "fine-tuning by its host": passport.fine_tuning}
    return found | {name: one for name, one in api.items() if one is not None}


def _retirement(passport: Passport, sources: list) -> list[str]:
    """Returns the dates of a hosted model's retirement, and an empty line; [] if none is known."""
    if not passport.retirement:
        return []
    named = {name.replace("_", " "): one for name, one in passport.retirement.items()}
    return ["Retirement", *_statements(named, sources), ""]


def _redistribution(passport: Passport, sources: list) -> list[str]:
    licence = passport.terms
    number = _number(licence.source, licence.date, sources)
    free = "open" if read.may_relicense(passport) else "not open"
    terms = terms_of(licence.value)
    rows = [
        (f"  {RULES[rule]}", value, _number(terms.source, terms.date, sources))
        for rule, value in terms.rules.items()
    ]
    told = f"Licence and redistribution: {licence.value} ({free}){_of(licence)} {number}"
    return [told, _columns(rows)]


def _statements(given: Mapping[str, read.Statement], sources: list) -> list[str]:
    rows = [
        (
            f"  {name}",
            ", ".join(_as_list(one.value)) + _of(one),
            _number(one.source, one.date, sources),
        )
        for name, one in given.items()
    ]
    return [_columns(rows)]


def _of(one: read.Statement | read.Release) -> str:
    """Returns the mark of a statement that was read in an entry on another model."""
    return f" (of {one.of})" if one.of else ""


def _star(passport: Passport) -> str:
    return "*" if read.transferred(passport.eu_index.values()) else ""


def _number(source: str, date: str, sources: list) -> str:
    """Returns the bracketed number of a source, which is added to the list if it is new."""
    if source == UNKNOWN:
        return ""
    if (source, date) not in sources:
        sources.append((source, date))
    return f"[{sources.index((source, date)) + 1}]"


def _column(
    passport: Passport, methods: Mapping[str, Mapping[str, Access]], reasons: list[str]
) -> list[str]:
    """Returns a model's column of cells; new reasons are added to the list."""
    refused = dict(refusals(methods, roles(read.granted_access(passport))))
    reasons += [reason for reason in dict.fromkeys(refused.values()) if reason not in reasons]
    return [f"no [{reasons.index(refused[m]) + 1}]" if m in refused else "runs" for m in methods]


def _numeral(evaluation: Evaluation) -> str:
    return CLASSES[evaluation.rank].partition(" ")[0]


def _needs(needed: Mapping[str, Access]) -> str:
    if set(needed) == {"target"}:
        return spoken(needed["target"])
    return ", ".join(f"{role}: {spoken(tier)}" for role, tier in needed.items())


def _as_list(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(padded.rstrip())
    return "\n".join(lines)
