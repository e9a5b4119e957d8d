"""What can be run on a model: methods' declared access against what its passport grants."""

from collections.abc import Mapping
from typing import NamedTuple

from fedjax_post.core.access import Access, AccessError, check_access


class Refusal(NamedTuple):
    """A method that a model does not allow."""

    method: str
    reason: str  # role, tiers, and what would have to be open


def roles(tier: Access) -> dict[str, Access]:
    """Returns what each role's model grants, beside a target that grants `tier`.

    A proxy is another model, and open. A stand-in (an emulator) can be made by whoever holds
    the target's weights; of a closed target its owner would have to make it.
    """
    stand_in = {"emulator": Access.GRADIENTS} if Access.READ in tier else {}
    return {"target": tier, "proxy": Access.GRADIENTS, **stand_in}


def refusals(
    methods: Mapping[str, Mapping[str, Access]], granted: Mapping[str, Access]
) -> list[Refusal]:
    """Returns the methods that are refused, each with its reason, in the order given.

    Args:
      methods: name -> the tier that the method declares for each model role.
      granted: the tier that each role's model grants.
    """
    found = []
    for name, needed in methods.items():
        try:
            check_access(needed, granted)
        except AccessError as error:
            missing = "emulator" in needed and "emulator" not in granted
            found.append(Refusal(name, _NO_STAND_IN if missing else str(error)))
    return found


def lost(
    methods: Mapping[str, Mapping[str, Access]], granted: Access, lowered: Access
) -> list[Refusal]:
    """Returns the methods that run at one tier and would not at a lower one."""
    before = {refusal.method for refusal in refusals(methods, roles(granted))}
    after = refusals(methods, roles(granted & lowered))
    return [refusal for refusal in after if refusal.method not in before]


_NO_STAND_IN = (
    "the algorithm trains a stand-in for the 'target' model, which is made of its weights: its "
    "owner would have to make one and hand it out"
)
