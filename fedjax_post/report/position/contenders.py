"""Who is compared in H3 and H9: open methods that use the federation, and their rivals."""

from collections.abc import Sequence
from typing import NamedTuple

from fedjax_post.report.position.budgets import is_off, share_of_budget, spent_of
from fedjax_post.report.position.contrasts import Contrast, any_ahead, less
from fedjax_post.report.position.controls import (
    CONTROLS,
    Side,
    best_control,
    best_of,
    best_prompts,
    controls,
    is_silent,
    manual_prompts,
    scores_of,
    side_of,
    start_of,
)
from fedjax_post.report.position.ladder import Cell, Ladder, comparable, least_row, on_all_rows
from fedjax_post.report.position.thresholds import ALPHA, BUDGET

_HOST = "fine-tuning by the host"


class Contenders(NamedTuple):
    """The cells of both sides that count."""

    held: list[Cell]  # open methods that gain over one client alone and over their start
    others: list[Cell]  # open methods that were not shown to; they can be behind, and not ahead
    rivals: list[Cell]
    missing: list[str]  # controls
    unscored: list[str]  # labels of rivals
    told: list[str]  # who does not count, and who stands for whom


def without_weights(ladder: Ladder) -> Contenders:
    """Returns who is compared in H3, where no host fine-tunes its model for the clients.

    A method that asks nothing in training is a rival only if it gains over its control.
    """
    held, others, missing = _open_side(ladder)
    closed = [cell for cell in comparable(ladder, "closed") if not _is_tuned(cell)]
    silent = [cell for cell in closed if is_silent(cell)]
    using, lacks = _counted(ladder, silent)
    manual, few = manual_prompts(ladder)
    baselines = [c for c in comparable(ladder, "baseline") if c not in manual]
    asking = [cell for cell in closed if cell not in silent]
    told = [f"not counted as using the target: {c.label}" for c in silent if c not in using]
    scored = [c for c in ladder.cells if c.kind in ("closed", "baseline") and not _is_tuned(c)]
    return Contenders(
        held,
        others,
        [*asking, *using, *baselines, *best_prompts(ladder)[0]],
        [*few, *missing, *lacks],
        [cell.label for cell in scored if not scores_of(cell)],
        [*told, *own_rows_told(ladder)],
    )


def tuned_by_host(ladder: Ladder) -> Contenders:
    """Returns who is compared in H9, where a host fine-tunes its model on the clients' rows.

    In a ladder without one, LoRA on all rows in one place stands for it, since that is what such a
    host computes.
    """
    held, others, missing = _open_side(ladder)
    tuned = [cell for cell in comparable(ladder, "closed") if _is_tuned(cell)]
    told = own_rows_told(ladder)
    unscored = [c.label for c in ladder.cells if _is_tuned(c) and not scores_of(c)]
    if not tuned and not unscored:
        tuned = controls(ladder, "central")
        missing += [] if tuned else [f"{_HOST}, or {CONTROLS['central']}"]
        told += [f"stands for {_HOST}, which was not run: {cell.label}" for cell in tuned]
    return Contenders(held, others, tuned, missing, unscored, told)


def own_rows_told(ladder: Ladder) -> list[str]:
    """Returns which cells are compared with no other, because their rows are others."""
    own = [cell.label for cell in ladder.cells if cell.runs and not on_all_rows(cell)]
    return [f"scored on each client's own rows, and not compared: {', '.join(own)}"] if own else []


def over_controls(ladder: Ladder, cells: Sequence[Cell]) -> tuple[list[Contrast], list[str]]:
    """Returns a contrast of each cell with its control, and the controls that are missing."""
    contrasts, missing = [], []
    for cell in cells:
        control, lacks = best_control(ladder, cell)
        missing += lacks or ([control.lacking] if control.lacking else [])
        name = f"{cell.label} less its control ({', '.join(control.chosen) or 'missing'})"
        contrasts.append(less(name, side_of(cell), control, least=least_row(ladder)))
    return contrasts, missing


def unequal(ladder: Ladder, sides: Contenders, best: Side, rival: Side, *, open_leads: bool) -> str:
    """Returns why budgets forbid that one side leads the other; "" if they do not.

    The side that leads must not have spent more than the budget, and the other one not less, unless
    it is a baseline: that learns nothing, so that more tokens would not serve it. Without a budget,
    spending is compared.

    Args:
      ladder: with its budget.
      sides: all cells of both sides.
      best: the open cells that were chosen.
      rival: the other ones.
      open_leads: which side would lead.
    """
    held = [cell for cell in (*sides.held, *sides.others) if cell.label in best.chosen]
    rivals = [c for c in sides.rivals if c.label in rival.chosen]
    learning = [cell for cell in rivals if cell.kind != "baseline" and cell.control != "manual"]
    ahead, behind = (held, learning) if open_leads else (rivals, held)
    more = [c.label for c in ahead if _differs(ladder, c) > 0]
    less_ = [c.label for c in behind if _differs(ladder, c) < 0]
    if more or less_:
        return f"unequal budgets: {', '.join([*more, *less_])}"
    sides_ = (held, learning) if open_leads else (learning, held)
    spent = [[s.mean for c in cells if (s := spent_of(c))] for cells in sides_]
    stated = ladder.facts.get("budget") or not all(spent)
    if stated or max(spent[0]) <= (1 + BUDGET.value) * min(spent[1]):
        return ""
    side = "open" if open_leads else "closed"
    return f"unequal budgets: none was stated, and the {side} side spent more"


def leads_start(ladder: Ladder, sides: Contenders, rival: Side) -> bool:
    """Returns whether a rival's score is above that of the open methods before they were trained.

    If it is not, the task may leave nothing to gain, and that no open method gained shows nothing.
    """
    starts = [start_of(cell) for cell in sides.others]
    start = best_of("the start", starts, seeds=rival.scores or None)
    return _gains(less("the rival less the start", rival, start, least=least_row(ladder)))


def left_told(*sides: Side) -> list[str]:
    """Returns which cells had no part in a choice, because they lack seeds."""
    return [
        f"left out of {side.name}, for want of seeds: {', '.join(side.left)}"
        for side in sides
        if side.left
    ]


def _open_side(ladder: Ladder) -> tuple[list[Cell], list[Cell], list[str]]:
    """Returns the open methods that gain over their controls, the others, and missing controls."""
    cells = comparable(ladder, "open")
    gaining, missing = _counted(ladder, cells)
    return gaining, [cell for cell in cells if cell not in gaining], missing


def _counted(ladder: Ladder, cells: Sequence[Cell]) -> tuple[list[Cell], list[str]]:
    """Returns the cells that gain over their controls, and the controls that are missing."""
    gains, missing = over_controls(ladder, cells)
    return [cell for cell, gain in zip(cells, gains, strict=True) if _gains(gain)], missing


def _is_tuned(cell: Cell) -> bool:
    return cell.kind == "closed" and cell.tier == "FINETUNE"


def _differs(ladder: Ladder, cell: Cell) -> float:
    """Returns by which share of the budget a cell is off it; 0 within the tolerance."""
    share = share_of_budget(ladder, cell)
    return 0.0 if share is None or not is_off(share) else share - 1


def _gains(contrast: Contrast) -> bool:
    """Returns whether a cell gains over its control, uncorrected: it decides what is compared."""
    return bool(contrast.differences) and any_ahead([contrast]).p_for <= ALPHA.value
