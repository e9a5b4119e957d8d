"""Two adapters on one model: the one that all clients share, and a client's own."""

from typing import Any

from fedjax_post.adapters import factors


def check_share(share: Any) -> None:
    """Checks the share of a client's own adapter beside the shared one; tracers pass.

    Raises:
      ValueError: if it is outside [0, 1].
    """
    if isinstance(share, int | float) and not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}; 0 is the shared adapter alone")


def deploy_both(model: Any, replica: Any, own: factors.Factors, *, share: Any) -> tuple[Any, Any]:
    """Returns a model and parameters in which both adapters stand, as one of 2 R components.

    Args:
      model: the frozen model, with the scale of an adapter of R components.
      replica: parameters of the shared adapter.
      own: a client's own adapter.
      share: weight of `own`, in [0, 1]; that of the shared one is 1 - share.
    """
    wide, both = factors.concatenate(model, factors.split(replica), own, share)
    return wide, factors.join(both)
