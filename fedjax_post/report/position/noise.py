"""The noise test: what the rules make of noise, of the paper's side, and of its opposite.

A rule that comes out the same whatever the scores are is no rule. Made-up ladders are complete:
every control and every drill is there, the base can be prompted, and only numbers vary.

    from fedjax_post.report.position import noise
    print(noise.table())
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fedjax_post.report.position.aspects import matrix
from fedjax_post.report.position.ladder import Cell, Ladder, Run
from fedjax_post.report.position.measured import MEASURES
from fedjax_post.report.position.thresholds import BEST_OF
from fedjax_post.report.position.verdicts import verdicts

WORLDS = ("noise", "the paper's side", "its opposite")
_SPREAD = 0.01  # of scores over seeds, where they are no noise
# cell -> (kind, tier, control, mean score on the paper's side, on the opposite side)
_CELLS: Mapping[str, tuple[str, str, str, float, float]] = {
    "lora": ("open", "GRADIENTS", "", 0.85, 0.65),
    "bdpl": ("closed", "LOGITS", "", 0.60, 0.85),
    "fed_pt": ("closed", "LOGITS", "", 0.50, 0.80),
    "offsite_tuning": ("closed", "EMULATOR", "", 0.50, 0.80),
    "manual_prompt": ("baseline", "TEXT", "", 0.45, 0.45),
    "proxy": ("control", "GRADIENTS", "proxy", 0.53, 0.50),
    "stand_in": ("control", "EMULATOR", "stand_in", 0.53, 0.50),
    "stand_in_untuned": ("control", "EMULATOR", "stand_in_untuned", 0.40, 0.40),
    "one_client": ("control", "GRADIENTS", "one_client", 0.50, 0.50),
    **{
        f"manual_{n}": ("control", "TEXT", "manual", 0.42, 0.42)
        for n in range(1, int(BEST_OF.value))
    },
}
# quantity -> (mean on the paper's side, on the opposite side)
_OTHERS = {
    "base": (0.85, 0.45),  # LoRA on a second base
    "recovered": (0.60, 0.07),  # by an attack, where guessing recovers 0.10
    "closed lost": (0.20, 0.01),
    "open lost": (0.01, 0.05),
    "memory lost": (0.00, 0.09),
    "licence lost": (0.08, -0.01),
}


def ladder(world: str, rng: np.random.Generator, *, num_seeds: int = 5) -> Ladder:
    """Returns a complete ladder with made-up scores.

    Args:
      world: one of `WORLDS`.
      rng: draws the scores.
      num_seeds: of each cell.
    """
    side = WORLDS.index(world) - 1

    def draw(*means: float) -> list[float]:
        if side < 0:
            return list(rng.uniform(size=num_seeds))
        return list(means[side] + _SPREAD * rng.standard_normal(num_seeds))

    cells = [
        _cell(name, draw(*means), kind, tier, control)
        for name, (kind, tier, control, *means) in _CELLS.items()
    ]
    other = _cell("lora", draw(*_OTHERS["base"]), "open", "GRADIENTS", "")
    return Ladder(cells, _facts(draw), {"second": [other]})


def tally(world: str, *, draws: int, seed: int = 0, num_seeds: int = 5) -> dict[str, Counter[str]]:
    """Returns how often each hypothesis and each cell of the matrix reads what.

    Args:
      world: one of `WORLDS`.
      draws: number of ladders.
      seed: of the draws.
      num_seeds: of each cell.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, Counter[str]] = {}
    for _ in range(draws):
        drawn = ladder(world, rng, num_seeds=num_seeds)
        judged = verdicts(drawn)
        read = {v.claim.key: v.finding.verdict for v in judged}
        read |= {f"{s.aspect}, {s.property}": s.finding.verdict for s in matrix(drawn, judged)}
        for name, verdict in read.items():
            found.setdefault(name, Counter())[verdict] += 1
    return found


def table(*, draws: int = 400, seed: int = 0, num_seeds: int = 5) -> str:
    """Returns the noise test as a Markdown table, a row for each hypothesis and matrix cell.

    Args:
      draws: number of ladders of noise; the other worlds have a tenth of them.
      seed: of the draws.
      num_seeds: of each cell.
    """
    read = {
        world: tally(
            world,
            draws=draws if world == "noise" else max(1, draws // 10),
            seed=seed,
            num_seeds=num_seeds,
        )
        for world in WORLDS
    }
    lines = [f"| | {' | '.join(WORLDS)} |", "| --- | --- | --- | --- |"]
    for name in read["noise"]:
        cells = [_told(read[world][name]) for world in WORLDS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def is_measured(key: str) -> bool:
    """Returns whether a hypothesis has a measured part, which noise must leave undecided."""
    return key in MEASURES


def _told(counted: Counter[str]) -> str:
    whole = sum(counted.values())
    return ", ".join(f"{verdict} {100 * n / whole:.0f} %" for verdict, n in counted.most_common())


def _facts(draw: Callable[..., list[float]]) -> dict[str, Any]:
    def drill(name: str, method: str, cost: str) -> dict[str, Any]:
        lost = draw(*_OTHERS[f"{cost} lost"])
        return {"drill": name, "method": method, "lost": lost, "by_definition": False}

    return {
        "gate": {"manual_prompt": 0.45, "chance": 0.2, "soft_prompt_share": 0.9, "gain": 0.4},
        "other_bases": {"second": {"shares_data": False}},
        "audit": {"contamination": {"rows": 0.0, "num_rows": 480}, "sampled": False},
        "matrix": {"methods": 50, "EMBEDDINGS": 9, "GRADIENTS": 50},
        "passports": {"x": {"tier": "GRADIENTS", "rules": {"use_policy": "some"}}},
        "attacks": [
            {
                "attack": "inversion",
                "method": "lora",
                "recovered": draw(*_OTHERS["recovered"]),
                "guess": draw(0.1, 0.1),
            }
        ],
        "drills": [
            drill("changed", "bdpl", "closed"),
            drill("base_update", "lora", "open"),
            drill("excluded_price", "bdpl", "closed"),
            drill("excluded_memory", "lora", "memory"),
            drill("excluded_licence", "lora", "licence"),
        ],
    }


def _cell(name: str, scores: list[float], kind: str, tier: str, control: str) -> Cell:
    asked = 0.0 if name in ("fed_pt", "offsite_tuning") else 700.0
    one = Run(
        right=None,
        base=0.4,
        bytes_up=1000.0,
        bytes_down=1000.0,
        spent={"queries": asked, "tokens_sent": asked},
        inference="provider",
        disclosure={"private_tokens": 0.0 if kind == "open" else asked},
        curve=[],
        summary={"heldout_examples": 240},
    )
    runs = {seed: one._replace(right=score) for seed, score in enumerate(scores)}
    return Cell(name, name, tier, kind, "final", runs, control)
