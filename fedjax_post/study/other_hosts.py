"""Other hosts of a run's target in this process, as faults of its own host need them."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fedjax_post.disclosure.meter import Meter
from fedjax_post.provider.hosted import Hosted
from fedjax_post.provider.journal import copy_training
from fedjax_post.study import folder, hosting
from fedjax_post.study.spec import Spec


def make(
    spec: Spec,
    tokenizer: Any,
    *,
    directory: Path,
    meter: Meter | None = None,
    of: Path | None = None,
    change_fn: Callable[[Any], Any] | None = None,
) -> Hosted:
    """Returns the target at another provider in this process.

    Args:
      spec: the experiment.
      tokenizer: that of the clients.
      directory: of its journal and its log, created if missing.
      meter: counts what calls carry; None counts every token as private.
      of: folder with the journal and the log of a host whose files and jobs it has too; what that
        one has answered in evaluations is asked anew. None: it has none.
      change_fn: as for `hosting.model_of`.

    Raises:
      ValueError: for a provider at an address, whose model nobody here can change.
    """
    check(spec)
    directory.mkdir(parents=True, exist_ok=True)
    copies: dict[str, Callable[[Path, Path], object]] = {
        hosting.LOG: shutil.copy,
        hosting.JOURNAL: copy_training,
    }
    for name, copy in copies.items():
        if of is not None and (of / name).exists() and not (directory / name).exists():
            folder.write_whole(directory / name, partial(copy, of / name))
    return hosting.model_of(
        spec, tokenizer, directory=directory, meter=meter or Meter(), change_fn=change_fn
    )


def check(spec: Spec) -> None:
    """Raises ValueError for a target at an address, whose host's model nobody here can change."""
    if spec.hosting.url is not None:
        raise ValueError(
            f"hosting.url={spec.hosting.url}: drills such as changed and base_retired change the "
            "model of a host, and that one is not ours; leave out these drills, or the address"
        )
