"""The fault of a host that withdraws the model which it has fine-tuned.

It is announced with a notice, in which a federation can have its rows trained on again. This is on
the same base, which by definition gives the same model: measured is only what it takes, since all
rows are disclosed and paid for once more. Whoever does not act within the notice has nothing that
answers.
"""

from fedjax_post.disclosure.ledger import is_tuned_by_host
from fedjax_post.study import other_hosts
from fedjax_post.study.autonomy import Row
from fedjax_post.study.faults import Played, Stage, row_of
from fedjax_post.study.version_faults import trained_again


def drill_tuned_withdrawn(stage: Stage, name: str, played: Played) -> list[Row]:
    """Returns the rows of a host that withdraws the model that it has fine-tuned."""
    del played
    if not is_tuned_by_host(stage.parts.algorithm.access):
        note = "no host keeps a model that was fine-tuned for it"
        return [row_of(stage, name, stage.base, note, by_definition=True)]
    parts, where = stage.parts, stage.directory / name  # without any of the host's files
    host = other_hosts.make(stage.spec, parts.tokenizer, directory=where, meter=parts.meter)
    return [trained_again(stage, name, host, by_definition=True)]
