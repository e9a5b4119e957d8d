"""What a run deploys, written as a folder by the first of its processes."""

from pathlib import Path

import jax

import fedjax_post
from fedjax_post.core.engine import State
from fedjax_post.hub.files import BUILTIN, find_folder
from fedjax_post.simulate import processes
from fedjax_post.study import artefact, folder, peers
from fedjax_post.study.build import Parts


def write(parts: Parts, state: State, path: Path, *, run: str) -> None:
    """Writes what is deployed after a round, see `artefact.write`.

    All processes of a run call it, and the first one writes.

    Args:
      parts: of the run.
      state: after the round.
      path: of the folder; one that is there is replaced.
      run: what made it, kept with it.
    """
    model, params = fedjax_post.deployed(parts.algorithm, parts.model, state)
    name = parts.spec.model.name
    if "proxy" in parts.algorithm.access:  # what was trained adapts the proxy
        model, name = parts.model["proxy"], parts.spec.model.proxy
    base = str(find_folder(name)) if name in BUILTIN else name
    if artefact.changes_base(model, params) and peers.are_several():
        host = jax.local_devices(backend="cpu")[0]  # whose memory holds the whole model
        model, params = jax.device_put(processes.gathered((model, params)), host)
    told = {"base": base, "run": run, "decode_fn": parts.heldout.decode_fn}
    make = lambda aside: artefact.write(aside, model, params, **told)
    with peers.together():
        if peers.is_first():
            folder.write_whole(path, make)
