"""Tables of figures, as Markdown: for the terminal and for the README."""

from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = ("figure", "measured", "quartiles", "aim", "met")


def latest(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the last line of each figure, in the order in which figures first appear."""
    found: dict[tuple, Mapping[str, Any]] = {}
    for line in lines:
        found[line["suite"], line["figure"]] = line
    return list(found.values())


def figures_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns figures as a Markdown table, one row per line."""
    rows = [_HEAD, ("---",) * len(_HEAD), *(_row(line) for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def report(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns the latest figures, a table for each suite after the commands that measured it."""
    suites: dict[str, list] = {}
    for line in latest(lines):
        suites.setdefault(line["suite"], []).append(line)
    return "\n\n".join(_section(name, suites[name]) for name in suites)


def _section(suite: str, lines: Sequence[Mapping[str, Any]]) -> str:
    commands = dict.fromkeys(line["command"] for line in lines)
    where = dict.fromkeys(
        f"{line['machine']['device']}, {line['machine']['cores']} cores, "
        f"jax {line['versions']['jax']}, commit {str(line['commit'])[:7]}, {line['date'][:10]}"
        for line in lines
    )
    listed = "\n".join(f"`{command}`" for command in commands)
    return f"**{suite}** ({'; '.join(where)})\n{listed}\n\n{figures_table(lines)}"


def _row(line: Mapping[str, Any]) -> tuple[str, ...]:
    unit, aim = line["unit"], line["aim"]
    quartiles = line["quartiles"]
    return (
        line["figure"],
        amount(line["value"], unit),
        " to ".join(amount(x, unit) for x in quartiles) if quartiles else "",
        f"{'≥' if aim['at_least'] else '≤'} {amount(aim['number'], unit)}" if aim else "",
        {None: "", True: "yes", False: "no"}[line["met"]],
    )


def amount(value: float, unit: str) -> str:
    """Returns a number with its unit, to three digits."""
    if unit == "bytes":
        for scale, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if abs(value) >= scale:
                return f"{value / scale:.3g} {name}"
        return f"{value:.0f} B"
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return number if unit == "ratio" else f"{number} {unit}"
