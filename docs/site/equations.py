"""Equations as the heads of algorithms write them, typeset in HTML without any script."""

import html
import re

_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "eps": "ε",
    "eta": "η", "theta": "θ", "lambda": "λ", "mu": "μ", "rho": "ρ", "sigma": "σ", "tau": "τ",
}  # fmt: skip
_WORDS = {"sum": "Σ", "grad": "∇", "sqrt": "√"}
_SIGNS = {"<-": "←", "->": "→", "<=": "≤", ">=": "≥", "<": "⟨", ">": "⟩", "...": "…", "..": "…"}
_GROUP = r"\{[^{}]*\}"
_TOKEN = re.compile(
    rf"""(?P<name>[A-Za-z]+)(?P<prime>'?)(?:_(?P<sub>{_GROUP}|[A-Za-z0-9]+))?
         (?P<rest>(?:_[A-Za-z]+)*)
       | \^(?P<sup>{_GROUP}|\([^()]*\)|-?[\d.]*\d|[A-Za-z]+)
       | (?P<sign><-|->|<=|>=|\.{{2,3}}|<(?=[a-z])|(?<=\))>)
       | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


def typeset(text: str) -> str:
    """Returns HTML of equations: subscripts, powers, Greek letters, italics for variables.

    Args:
      text: lines of plain text, such as `w_k <- w_k - eta grad f_k(w)^2`.

    Example:
      >>> typeset("x_k <- mu x^2")
      '<i>x</i><sub><i>k</i></sub> ← <i>μ</i> <i>x</i><sup>2</sup>'
    """
    return "".join(_put(match) for match in _TOKEN.finditer(text))


def _put(match: re.Match) -> str:
    if match["sup"]:
        return f"<sup>{typeset(match['sup'].strip('{}()'))}</sup>"
    if match["sign"]:
        return _SIGNS[match["sign"]]
    if match["other"]:
        return html.escape(match["other"], quote=False)
    name, sub = match["name"], match["sub"]
    if _is_code(name, sub, match["rest"]):
        return f"<code>{html.escape(match[0])}</code>"
    shown = _name(name) + ("′" if match["prime"] else "")
    return shown + (f"<sub>{typeset(sub.strip('{}'))}</sub>" if sub else "")


def _is_code(name: str, sub: str | None, rest: str) -> bool:
    """Whether it is the name of an argument, such as `max_variance`, and no subscript."""
    long = sub is not None and len(sub) > 2 and not sub.startswith("{")
    return bool(rest) or (len(name) > 2 and long and name not in _WORDS | _GREEK)


def _name(name: str) -> str:
    if name in _WORDS:
        return _WORDS[name]
    if name in _GREEK:
        return f"<i>{_GREEK[name]}</i>"
    single = len(name) == 1 or (len(name) == 2 and name in ("ij", "jk"))
    return f"<i>{name}</i>" if single else name
