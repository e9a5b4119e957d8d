"""Membership attacks on a run's model: can its rows of training be told from held-out ones?"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fedjax_post.attacks.membership import Worth, all_scores, token_scores, worth
from fedjax_post.core.access import Access
from fedjax_post.data.table import TokenTable, response_tokens
from fedjax_post.report.table import columns
from fedjax_post.study import folder
from fedjax_post.study.served import load_rows, serve

_NONE: Mapping[str, Any] = MappingProxyType({})


class Membership(NamedTuple):
    """What each score tells about membership in a model's rows of training."""

    scores: dict[str, Worth]  # by name, see `attacks.membership`
    members: int  # rows of training that were scored
    others: int  # held-out rows that were scored

    def table(self) -> str:
        """Returns the scores as a text table, best first."""
        rates = list(next(iter(self.scores.values())).tpr)
        lines = [["score", "AUC", *(f"found at {100 * rate:g} % false" for rate in rates)]]
        for name, found in sorted(self.scores.items(), key=lambda item: -item[1].auc):
            lines.append([name, f"{found.auc:.3f}", *(f"{x:.1%}" for x in found.tpr.values())])
        return columns(lines)


def membership(
    what: str | Path,
    changes: Mapping[str, Any] = _NONE,
    *,
    num_rows: int = 512,
    batch_size: int = 32,
    command: Sequence[str] = (),
) -> Membership:
    """Returns what membership attacks learn of a run's rows from its model.

    The adversary has the trained model, the base as a reference, and rows, of which it must say
    whether a client holds them. Rows of clients that never took part count as members too. The
    result is added to the `attacks.jsonl` of a run.

    Args:
      what: as for `serve`.
      changes: to the run's specification, by path.
      num_rows: rows of training and held-out rows to score, as many of each, chosen at random;
        0: all.
      batch_size: rows in one compiled call.
      command: the command line, for the record.

    Raises:
      ValueError, OSError: for a number below 1, or a model or rows that cannot be read or scored.
    """
    for name, value, low in (("num_rows", num_rows, 0), ("batch_size", batch_size, 1)):
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")
    served = serve(what, changes)
    model, params, tokenizer = served[:3]
    if Access.LOGITS not in model.access:
        raise ValueError(f"`what`={what} gives no log-probabilities, which membership needs")
    spec, data, _ = load_rows(served)
    assert data.heldout is not None  # guaranteed by `load_data`
    held = data.clients.partition.indices, np.arange(len(data.heldout.length))
    rng, tables = np.random.default_rng(spec.seed), (data.clients.table, data.heldout)
    count = min(num_rows or max(map(len, held)), *map(len, held))
    chosen = [np.sort(rng.permutation(own)[:count]) for own in held]
    found = []
    for table, own in zip(tables, chosen, strict=True):
        score = partial(token_scores, model, table=table, rows=own, batch_size=batch_size)
        after, before = score(params), score({})
        found.append(all_scores(after, before, _texts(table, own, tokenizer)))
    scores = {name: worth(found[0][name], found[1][name]) for name in found[0]}
    made = Membership(scores, *map(len, chosen))
    if (Path(what) / folder.SPEC).exists():
        folder.add_lines(Path(what) / folder.ATTACKS, [_record(made, command)])
    return made


def _record(made: Membership, command: Sequence[str]) -> dict[str, Any]:
    scores = {
        name: {"auc": found.auc, **{f"found_at_{rate:g}": x for rate, x in found.tpr.items()}}
        for name, found in made.scores.items()
    }
    numbers = {"members": made.members, "others": made.others}
    return {"attack": "membership", **numbers, "scores": scores, "command": list(command)}


def _texts(table: TokenTable, own: np.ndarray, tokenizer: Any) -> list[str]:
    width = int((table.length - table.prompt_length)[own].max())
    ids = response_tokens(table, own, width=width).tolist()
    decode = lambda row: tokenizer.decode([i for i in row if i >= 0], skip_special_tokens=True)
    return [decode(row) for row in ids]
