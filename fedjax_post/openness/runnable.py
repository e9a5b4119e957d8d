"""Methods that can run on a model: their declared access compared with what it grants."""

from collections.abc import Mapping
from typing import NamedTuple

from fedjax_post.core.access import Access, AccessError, check_access


class Refusal(NamedTuple):
    """A method that a model does not allow."""

    method: str
    reason: str  # role, tiers, and what would have to be open


def roles(tier: Access) -> dict[str, Access]:
    """Returns the access that the model of each role grants, with a target that grants `tier`.

    A proxy is another, open model. An emulator can be made by anyone who holds the target's
    weights; for a closed target only its owner could make it. Likewise a service that fine-tunes
    the target can be run by anyone who can train it.
    """
    stand_in = {"emulator": Access.GRADIENTS} if Access.READ in tier else {}
    service = Access.FINETUNE if Access.DIFFERENTIATE in tier else Access(0)
    return {"target": tier | service, "proxy": Access.GRADIENTS, **stand_in}


def refusals(
    methods: Mapping[str, Mapping[str, Access]], granted: Mapping[str, Access]
) -> list[Refusal]:
    """Returns the methods that are refused, with reasons, in the given order.

    Args:
      methods: name -> the access that the method declares for each model role.
      granted: the access that the model of each role grants.
    """
    found = []
    for name, needed in methods.items():
        try:
            check_access(needed, granted)
        except AccessError as error:
            missing = "emulator" in needed and "emulator" not in granted
            found.append(Refusal(name, _NO_STAND_IN if missing else str(error)))
    return found


def lost_methods(
    methods: Mapping[str, Mapping[str, Access]], granted: Access, lowered: Access
) -> list[Refusal]:
    """Returns the methods that run at one access tier and would not at a lower one.

    A service of the host that fine-tunes the model is of no tier, and stays.

    Args:
      methods: name -> the access that the method declares for each model role.
      granted: the present access to the target.
      lowered: the lower access.
    """
    before = {refusal.method for refusal in refusals(methods, roles(granted))}
    after = refusals(methods, roles(granted & (lowered | Access.FINETUNE)))
    return [refusal for refusal in after if refusal.method not in before]


_NO_STAND_IN = (
    "the algorithm trains an emulator of the 'target' model, which is made from its weights: its "
    "owner would have to make one and give it out"
)
