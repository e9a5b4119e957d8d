"""What the rules make of made-up ladders: of noise, of either side, and of known differences.

A rule that comes out the same whatever the scores are is no rule, and one that finds what is not
there is no test. Made-up ladders are complete: every control and every drill is there, the base can
be prompted, and only numbers vary.

    from fedjax_post.report.position import noise
    print(noise.table())
    print(noise.rates())
"""

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np

from fedjax_post.report.position.aspects import matrix
from fedjax_post.report.position.controls import is_manual
from fedjax_post.report.position.ladder import Cell, Ladder, Run
from fedjax_post.report.position.losses import CHANGES, EXCLUSIONS
from fedjax_post.report.position.measured import MEASURES
from fedjax_post.report.position.thresholds import BEST_OF
from fedjax_post.report.position.verdicts import NOT_SUPPORTED, SUPPORTED, verdicts

WORLDS = ("noise", "the paper's side", "its opposite")
_SPREAD = 0.005  # of scores over seeds, where they are no noise
# cell -> (kind, tier, control, mean score on the paper's side, on the opposite side)
_CELLS: Mapping[str, tuple[str, str, str, float, float]] = {
    "lora": ("open", "GRADIENTS", "", 0.85, 0.65),
    "bdpl": ("closed", "LOGITS", "", 0.60, 0.85),
    "fed_pt": ("closed", "LOGITS", "", 0.50, 0.80),
    "offsite_tuning": ("closed", "EMULATOR", "", 0.50, 0.80),
    "host_tuning": ("closed", "FINETUNE", "", 0.60, 0.85),  # limited, on the paper's side
    "manual_prompt": ("baseline", "TEXT", "", 0.45, 0.45),
    "proxy": ("control", "GRADIENTS", "proxy", 0.53, 0.50),
    "stand_in": ("control", "EMULATOR", "stand_in", 0.53, 0.50),
    "stand_in_untuned": ("control", "EMULATOR", "stand_in_untuned", 0.40, 0.40),
    "one_client": ("control", "GRADIENTS", "one_client", 0.50, 0.50),
    "central": ("control", "GRADIENTS", "central", 0.85, 0.65),  # as LoRA
    **{
        f"manual_{n}": ("control", "TEXT", "manual", 0.42, 0.42)
        for n in range(1, int(BEST_OF.value))
    },
}
_DRILLED = ("bdpl", "host_tuning")  # a method of each way in which a closed model is used
# In ladders of known differences: the means without one, and the cells that have it in addition
_EVEN = {"lora": 0.75, "bdpl": 0.75, "host_tuning": 0.75, "central": 0.75, "fed_pt": 0.6,
         "offsite_tuning": 0.6, "proxy": 0.6, "stand_in": 0.6}  # fmt: skip
_AHEAD = ("lora", "fed_pt", "offsite_tuning")
# quantity -> (mean on the paper's side, on the opposite side)
_OTHERS = {
    "base": (0.85, 0.45),  # LoRA on a second base
    "recovered": (0.60, 0.07),  # by an attack
    "guess": (0.10, 0.10),
    "closed lost": (0.20, 0.00),
    "open lost": (0.01, 0.05),
    "licence lost": (0.08, 0.00),
    "asked": (0.42, 0.42),  # a manual prompt on the seed of the search
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
    return Ladder(cells, _facts(lambda name: draw(*_OTHERS[name])), {"second": [other]})


def known(
    difference: float, spread: float, rng: np.random.Generator, *, num_seeds: int = 5
) -> Ladder:
    """Returns a complete ladder in which the contrast of each hypothesis has a known mean.

    Args:
      difference: of the first side of each contrast from the second, as a share.
      spread: standard deviation of this difference over seeds.
      rng: draws the scores.
      num_seeds: of each cell.
    """
    noise = lambda: spread / np.sqrt(2) * rng.standard_normal(num_seeds)
    draw = lambda mean: list(mean + noise())
    cells = [
        _cell(name, draw(_EVEN.get(name, low) + difference * (name in _AHEAD)), *kind)
        for name, (*kind, low, _) in _CELLS.items()
    ]
    other = _cell("lora", draw(_EVEN["lora"]), "open", "GRADIENTS", "")
    lost = {name: 0.1 + difference * (name == "closed lost") for name in _OTHERS}
    lost |= {"recovered": 0.3 + difference, "guess": 0.3}
    return Ladder(cells, _facts(lambda name: draw(lost[name])), {"second": [other]})


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


def found_rates(
    difference: float, spread: float, *, draws: int, seed: int = 0, num_seeds: int = 5
) -> dict[str, tuple[float, float]]:
    """Returns for each measured hypothesis how often an advantage is found, and how often none.

    H6 has no sides: for it, 'an advantage' is a base that differs, and 'none' one that does not.

    Args:
      difference: as for `known`.
      spread: as for `known`.
      draws: number of ladders.
      seed: of the draws.
      num_seeds: of each cell.
    """
    rng = np.random.default_rng(seed)
    counted: dict[str, Counter[str]] = {key: Counter() for key in MEASURES}
    for _ in range(draws):
        for one in verdicts(known(difference, spread, rng, num_seeds=num_seeds)):
            if one.claim.key in counted:
                counted[one.claim.key][one.finding.verdict] += 1
    ahead = {key: NOT_SUPPORTED if key in ("H1", "H6") else SUPPORTED for key in MEASURES}
    none = {key: SUPPORTED if key in ("H1", "H6") else NOT_SUPPORTED for key in MEASURES}
    return {key: (n[ahead[key]] / draws, n[none[key]] / draws) for key, n in counted.items()}


def rates(*, draws: int = 200, seed: int = 0, num_seeds: int = 5) -> str:
    """Returns how often true differences are found, as a Markdown table.

    Args:
      draws: number of ladders for each line.
      seed: of the draws.
      num_seeds: of each cell.
    """
    keys = [key for key in MEASURES if key != "H6"]
    head = f"| true difference | spread over seeds | {' | '.join([*keys, 'H6'])} |"
    lines = [head, f"| --- | --- |{' --- |' * (len(keys) + 1)}"]
    for difference, spread in product((0.0, 0.01, 0.02, 0.05), (0.005, 0.01, 0.02, 0.03)):
        found = found_rates(difference, spread, draws=draws, seed=seed, num_seeds=num_seeds)
        told = [f"{100 * a:.0f} / {100 * n:.0f}" for a, n in (found[k] for k in [*keys, "H6"])]
        lines.append(f"| {100 * difference:g} | {100 * spread:g} | {' | '.join(told)} |")
    return "\n".join(lines)


def is_measured(key: str) -> bool:
    """Returns whether a hypothesis has a measured part, which noise must leave undecided."""
    return key in MEASURES


def _told(counted: Counter[str]) -> str:
    whole = sum(counted.values())
    return ", ".join(f"{verdict} {100 * n / whole:.0f} %" for verdict, n in counted.most_common())


def _facts(draw: Callable[[str], list[float]]) -> dict[str, Any]:
    def drill(name: str, method: str, cost: str) -> dict[str, Any]:
        lost = draw(f"{cost} lost")
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
                "recovered": draw("recovered"),
                "guess": draw("guess"),
                "tokens": [1000],
            }
        ],
        "search": {"seed": 100, "prompts": {name: draw("asked")[0] for name in _prompts()}},
        "drills": [
            *(drill(name, way, "closed") for name in _faults("ours") for way in _DRILLED),
            *(drill(name, "lora", _of_weights(name)) for name in _faults("theirs")),
        ],
    }


def _prompts() -> list[str]:
    """Returns the cells of manual prompts."""
    return [name for name, (kind, _, key, *_) in _CELLS.items() if is_manual(name, kind, key)]


def _of_weights(fault: str) -> str:
    return "licence" if fault == "excluded_weights_licence" else "open"


def _faults(side: str) -> list[str]:
    """Returns the drills of one side of all pairs, each once."""
    return list(dict.fromkeys(getattr(pair, side) for pair in (*CHANGES, *EXCLUSIONS)))


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
