"""How much of the evaluation a base model has read in its training and remembers (H6).

Possible only where the corpus of the base model is open. What is searched is all that the base has
read, and what is sought are the rows that the ladder's methods are scored on, of all seeds.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_post.core.access import AccessError
from fedjax_post.data.load import as_splits
from fedjax_post.data.reading import READINGS, all_texts, fresh_texts, read_texts
from fedjax_post.data.splits import hold_out
from fedjax_post.evaluate.heldout import choose_rows
from fedjax_post.integrity import read_file
from fedjax_post.openness.artefact import passport_of
from fedjax_post.openness.audit import Row, check_corpus, contamination, memorisation
from fedjax_post.openness.read import load_passport
from fedjax_post.study import folder
from fedjax_post.study.build import Parts
from fedjax_post.study.rows import load_data, population_of
from fedjax_post.study.spec import Spec

# Texts of each group that the model itself is asked for, which is slow: fresh ones, and at least as
# many that it has read, the first of each call of its training.
_PROBED = 300


def read_or_make(directory: Path, parts: Parts, methods: Sequence[str]) -> Mapping[str, Any]:
    """Returns the audit of a ladder from its `audit.json`, made anew if seeds have been added.

    Args:
      directory: of the ladder, whose runs have finished.
      parts: of one of its runs.
      methods: names of the rungs, whose folders show which seeds there are.
    """
    path = directory / "audit.json"
    seeds = finished_seeds(directory, methods)
    if path.exists() and (before := read_file(path)).get("seeds") == seeds:
        return before
    folder.write_json(path, audit_of(parts, seeds))
    return read_file(path)


def finished_seeds(directory: Path, methods: Iterable[str]) -> list[int]:
    """Returns the seeds of all finished cells, ascending; arguments are those of `read_or_make`."""
    finished = (p for name in methods for p in (directory / name).glob("seed-*/summary.json"))
    return sorted({int(found.parent.name.removeprefix("seed-")) for found in finished})


def audit_of(parts: Parts, seeds: Sequence[int]) -> dict[str, Any]:
    """Returns an audit of the target on the rows that are scored, or {"refused": reason}.

    Only the corpora of the base models that this project trained can be generated again. For
    any other open corpus, pass its documents to `openness.audit.audit`. It takes about half a
    minute of processor time, or nothing if it is refused.

    Args:
      parts: of a run of any seed.
      seeds: of the runs. A row that is scored with several seeds counts once.

    Returns:
      `contamination` of the rows by the whole corpus; `memorisation`, of a sample of the documents
      of the base's last training; `sampled`, whether a part of the corpus was searched; `seeds` and
      `num_seeds`; `only_scored`, False if rows that are not scored had to be sought too.
    """
    model = parts.spec.model.name
    name = passport_of(model)
    try:
        if not name:
            raise AccessError(f"{model} has no passport, so that its corpus is unknown")
        check_corpus(load_passport(name))
        if model not in READINGS:
            raise AccessError(f"the documents that {model} has read are not on this machine")
        found = [_rows(parts, parts.spec.replace(seed=seed)) for seed in seeds]
    except AccessError as error:
        return {"refused": str(error)}
    rows = list(dict.fromkeys(row for scored, _ in found for row in scored))
    per_call = -(-_PROBED // READINGS[model].num_calls)
    probed = list(read_texts(model, per_call=per_call)), fresh_texts(model, _PROBED)
    return {
        "contamination": contamination(all_texts(model), rows)._asdict(),
        "memorisation": memorisation(parts.target, parts.tokenizer, *probed)._asdict(),
        "sampled": False,
        "only_scored": all(is_exact for _, is_exact in found),
        "seeds": list(seeds),
        "num_seeds": len(seeds),
    }


def _rows(parts: Parts, spec: Spec) -> tuple[list[Row], bool]:
    """Returns questions and answers as the data set has them, and whether just these are scored.

    If some held-out rows are too long for the model or are those of held-out clients, nothing says
    which of them are left, and all are returned.

    Raises:
      AccessError: if the rows are chats, which have no single question.
    """
    data = spec.data
    splits = as_splits(data.source, population_of(spec), split=data.split)
    heldout = hold_out(splits, data.heldout_fraction, seed=spec.seed).heldout
    loaded = load_data(spec, parts.tokenizer, context_length=parts.heldout.room or 0)
    assert heldout is not None  # both are the rows that a run is scored on
    assert loaded.heldout is not None
    is_exact = len(loaded.heldout.length) == len(heldout)
    limit = spec.scoring.examples if is_exact else 0
    scored = heldout.select(choose_rows(len(heldout), limit, seed=spec.seed))
    columns, words = loaded.report["columns"], data.response_words
    if "prompt" not in columns:
        raise AccessError("the evaluation rows are chats, in which the audit finds no question")
    # with `words`, the column of responses is made from that of the labels when rows are loaded
    column = (data.response_column or columns["label"]) if words else columns["response"]
    pairs = zip(scored[columns["prompt"]], map(str, scored[column]), strict=True)
    return [(str(question), words.get(answer, answer)) for question, answer in pairs], is_exact
