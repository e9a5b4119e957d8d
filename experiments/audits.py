"""What a base has read of an evaluation, and remembers, as far as its corpus is open (H6)."""

from typing import Any

from absl import flags

from experiments.build import Job
from fedjax_post.core.access import AccessError
from fedjax_post.data.reading import READINGS, fresh_texts, read_texts
from fedjax_post.data.source import load_splits
from fedjax_post.data.splits import hold_out
from fedjax_post.openness.artefact import passport_of
from fedjax_post.openness.audit import audit, check_corpus
from fedjax_post.openness.load import load_passport

_PER_CALL, _FRESH = 400, 300  # documents read of each call of a training; texts probed for memory


def audit_of(job: Job, options: flags.FlagValues) -> dict[str, Any]:
    """Returns an audit of the target and the held-out rows: numbers, or why there are none.

    Only the bases that this project trained have documents that can be made again; of any
    other open corpus a person would have to pass the documents to `openness.audit.audit`.
    """
    name = passport_of(options.model)
    try:
        if not name:
            raise AccessError(f"{options.model} has no passport, so that its corpus is unknown")
        passport = load_passport(name)
        check_corpus(passport)
        if options.model not in READINGS:
            raise AccessError(
                f"the documents that {options.model} has read are not on this machine"
            )
        found = audit(
            job.target,
            job.tokenizer,
            read_texts(options.model, per_call=_PER_CALL),
            _rows(job, options),
            passport=passport,
            fresh=fresh_texts(options.model, _FRESH),
        )
    except AccessError as error:
        return {"refused": str(error)}
    return {name: part._asdict() for name, part in found._asdict().items()}


def _rows(job: Job, options: flags.FlagValues) -> list[tuple[str, str]]:
    """The held-out questions and answers as the data set has them."""
    splits = load_splits(
        options.dataset, split=options.split, num_clients=options.num_clients, seed=options.seed
    )
    heldout = hold_out(splits, options.heldout_fraction, seed=options.seed).heldout
    names = job.data.report["columns"]
    return [(str(row[names["prompt"]]), str(row[names["response"]])) for row in heldout]
