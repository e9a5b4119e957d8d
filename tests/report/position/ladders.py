"""Small made-up ladders, in memory and as folders."""

import tarfile
from pathlib import Path

from fedjax_post.integrity import seal_file, seal_line
from fedjax_post.report.position.ladder import Cell, Ladder, Run
from fedjax_post.report.position.verdicts import verdicts

GATE = {"manual_prompt": 0.4, "chance": 0.2, "soft_prompt_share": 0.7, "passed": True}


def run(exact_match, *, base=0.4, sent=0.0, asked=None, inference="client", queries=0.0):
    """One seed: `sent` private tokens left; a provider would have been shown `asked`."""
    spent = {"queries": queries, "tokens_sent": asked, "labels_sent": 0}
    summary = {"model": "m", "rounds": 3, "command": "train", "commit": "c", "seed": 0}
    summary |= {"heldout_examples": 240}
    disclosure = {"private_tokens": sent, "serving_discloses": inference == "provider"}
    return Run(exact_match, base, 1000, 2000, spent, inference, disclosure, [], summary)


def cell(method, kind, scores, *, tier=None, control="", **told):
    """A cell with a run for each score."""
    tier = tier or {"closed": "LOGITS", "baseline": "TEXT"}.get(kind, "GRADIENTS")
    runs = {seed: run(score, **told) for seed, score in enumerate(scores)}
    return Cell(method, method.title(), tier, kind, "final", runs, control)


def control(key, *scores, name=None):
    """A control cell, by a key of `CONTROLS`."""
    return cell(name or key, "control", scores, control=key)


def ladder(cells, *, bases=None, **facts):
    """A ladder whose base can be prompted, unless the gate is given."""
    return Ladder(cells, {"gate": GATE, "chance": 0.2} | facts, bases or {})


OPEN = cell("lora", "open", (0.80, 0.82, 0.81))
CLOSED = cell("fed_bpt", "closed", (0.50, 0.52, 0.51), asked=700.0, queries=10.0)
MANUAL = cell("manual_prompt", "baseline", (0.4, 0.4, 0.4))
CENTRAL = control("central", 0.6, 0.62, 0.61)
PROMPTS = [control("manual", 0.4, 0.4, 0.4, name=f"manual_{n}") for n in range(2, 11)]


FAILED = {"gate": GATE | {"manual_prompt": 0.25}}  # facts of a ladder whose base is not prompted


def attack(recovered, guess=0.1):
    """An attack of H7: the shares that it recovers, and those that guessing finds."""
    guesses = [guess] * len(recovered)
    found = {"attack": "inversion", "method": "lora", "recovered": recovered, "guess": guesses}
    return found | {"tokens": [330] * len(recovered)}


def judge(key, found):
    """What H1 to H9 come to, one of them."""
    return next(v.finding for v in verdicts(found) if v.claim.key == key)


def write_ladder(directory, cells, **facts):
    """Writes cells as run folders and ladder.json, as the programs do."""
    rows = []
    for one in cells:
        keys = ("method", "label", "tier", "kind", "score", "control")
        rows.append({key: getattr(one, key) for key in keys})
        for seed, found in one.runs.items():
            write_run(directory / one.method / f"seed-{seed}", one, found)
    content = {"task": "kinds", "model": "m", "cells": rows, "chance": 0.2, "gate": GATE} | facts
    (directory / "ladder.json").write_text(seal_file(content))


def write_run(folder, one, found):
    """Writes a run's summary and its records, with two scores on the way."""
    folder.mkdir(parents=True)
    scores = {"base": {"exact_match": found.base}, one.score: {"exact_match": found.right}}
    place = {"inference": found.inference, "disclosure": found.disclosure}
    sent = {"bytes_up": found.bytes_up, "bytes_down": found.bytes_down}
    (folder / "summary.json").write_text(
        seal_file(found.summary | scores | sent | found.spent | place)
    )
    share = {"queries": found.spent["queries"] / 2}
    records = [
        {"round": 0, "eval_exact_match": 0.3, **share},
        {"round": 1, "eval_exact_match": 0.4, **share},
    ]
    (folder / "records.jsonl").write_text("".join(map(seal_line, records)))


def names_in(path):
    """The files of an archive."""
    with tarfile.open(path) as archive:
        return set(archive.getnames())


DOCS = Path(__file__).parents[3] / "docs"
ARCHIVES = sorted((DOCS / "evidence").glob("*.tar.xz"))
EVIDENCE = [path for path in ARCHIVES if "ladder.json" in names_in(path)]  # others: a search alone
