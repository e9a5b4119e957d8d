"""How much of the evaluation a base model has read in its training and remembers (H6).

Possible only where the corpus of the base model is open.
"""

from typing import Any

from fedjax_post.core.access import AccessError
from fedjax_post.data.reading import READINGS, fresh_texts, read_texts
from fedjax_post.data.source import load_splits
from fedjax_post.data.splits import hold_out
from fedjax_post.openness.artefact import passport_of
from fedjax_post.openness.audit import audit, check_corpus
from fedjax_post.openness.read import load_passport
from fedjax_post.study.build import Parts

# Documents searched for each call of a training, which used 2,000 to 10,000: a sample, so that
# what it finds is a lower bound. Fresh texts that serve as a control.
_PER_CALL, _FRESH = 400, 300


def audit_of(parts: Parts) -> dict[str, Any]:
    """Returns an audit of the target on the held-out rows, or {"refused": reason}.

    Only the corpora of the base models that this project trained can be generated again. For
    any other open corpus, pass its documents to `openness.audit.audit`.
    """
    model = parts.spec.model.name
    name = passport_of(model)
    try:
        if not name:
            raise AccessError(f"{model} has no passport, so that its corpus is unknown")
        passport = load_passport(name)
        check_corpus(passport)
        if model not in READINGS:
            raise AccessError(f"the documents that {model} has read are not on this machine")
        found = audit(
            parts.target,
            parts.tokenizer,
            read_texts(model, per_call=_PER_CALL),
            _rows(parts),
            passport=passport,
            fresh=fresh_texts(model, _FRESH),
        )
    except AccessError as error:
        return {"refused": str(error)}
    parts_found = {name: part._asdict() for name, part in found._asdict().items()}
    return parts_found | {"sampled": True, "documents_per_call": _PER_CALL}


def _rows(parts: Parts) -> list[tuple[str, str]]:
    """Returns the held-out questions and answers as they stand in the data set."""
    data, seed = parts.spec.data, parts.spec.seed
    splits = load_splits(data.source, split=data.split, num_clients=data.num_clients, seed=seed)
    heldout = hold_out(splits, data.heldout_fraction, seed=seed).heldout
    assert heldout is not None  # the run has rows to score on
    names = parts.data.report["columns"]
    return [(str(row[names["prompt"]]), str(row[names["response"]])) for row in heldout]
