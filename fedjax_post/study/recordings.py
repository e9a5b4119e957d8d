"""Which messages of an experiment are recorded, and what they take on disk."""

from fedjax_post.core.engine import WireBytes
from fedjax_post.simulate.recording import Recording, projected
from fedjax_post.study import hosting
from fedjax_post.study.rows import cohort_size
from fedjax_post.study.spec import Spec
from fedjax_post.study.trained import layer_range


def check(spec: Spec) -> None:
    """Checks that the messages of the run can be recorded, before anything is read.

    Raises:
      ValueError: naming the field and the remedy.
    """
    given, clients = spec.execution.record_wire, spec.execution.record_wire_clients
    if given is None:
        if clients:
            raise ValueError(f"record_wire_clients={clients} needs `record_wire`, such as 0:1")
        return
    recording_of(spec)
    if spec.method.baseline != "none":
        raise ValueError(
            f"record_wire={given}: baseline={spec.method.baseline} sends nothing; leave one out"
        )
    if hosting.is_hosted(spec):
        raise ValueError(
            f"record_wire={given} is for messages of clients that hold the model; leave it out "
            "with `hosting.url`, whose calls are in the journal"
        )
    if spec.privacy.secure and clients:
        raise ValueError(
            f"record_wire_clients={clients}: with `privacy.secure` the server reads only the sum "
            "of a round; leave it out"
        )


def recording_of(spec: Spec) -> Recording | None:
    """Returns which messages are recorded; None if the experiment asks for none.

    Raises:
      ValueError: for rounds that the run does not have.
    """
    given = spec.execution.record_wire
    if given is None:
        return None
    try:
        first, end = layer_range(given, spec.training.rounds)
    except ValueError:
        first, end = 1, 0
    if not 0 <= first < min(end, spec.training.rounds):
        raise ValueError(
            f"record_wire={given} is no range of the {spec.training.rounds} rounds; write "
            "first:end from 0, such as 0:1"
        )
    clients = spec.execution.record_wire_clients
    return Recording(range(first, end), clients, only_sums=spec.privacy.secure)


def size_of(spec: Spec, wire: WireBytes, *, population: int) -> int:
    """Returns the bytes on disk of the messages; 0 if none are recorded.

    Args:
      spec: the experiment, with every default filled in.
      wire: bytes of one client in one round.
      population: number of clients.
    """
    recording = recording_of(spec)
    if recording is None:
        return 0
    cohort = cohort_size(spec, population)
    return projected(recording, wire, cohort=cohort, rounds=spec.training.rounds)
