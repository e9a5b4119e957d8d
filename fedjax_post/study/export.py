"""Writes what a run deploys as a folder."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np

import fedjax_post
from fedjax_post.core.engine import State
from fedjax_post.data.table import gather
from fedjax_post.data.template import PLAIN
from fedjax_post.evaluate.scores import Scores
from fedjax_post.hub import artefact
from fedjax_post.hub.load import load_model
from fedjax_post.simulate import processes
from fedjax_post.study import (
    factories,
    folder,
    hosting,
    methods,
    patience,
    peers,
    private,
    secure,
)
from fedjax_post.study.build import Parts
from fedjax_post.study.plan import count

_NONE: Mapping[str, Scores] = MappingProxyType({})


def write(parts: Parts, state: State, path: Path, *, scores: Mapping[str, Scores] = _NONE) -> None:
    """Writes what is deployed after a round as a folder, see `hub.artefact`.

    All processes of a run call it, and the first one writes.

    Args:
      parts: of the run.
      state: after the round.
      path: of the folder; an existing one is replaced.
      scores: by name, such as "base" and "final"; shown on the model card.

    Raises:
      ValueError: if a stand-in is served, which has no files that the result could refer to.
    """
    model, params = fedjax_post.deployed(parts.algorithm, parts.model, state)
    if serves_stand_in(parts, state):
        raise ValueError(
            "a stand-in has no files of its own, so that what was trained on it cannot be "
            "exported; with plug_in=true it is exported for the target"
        )
    name = parts.spec.model.name
    if "proxy" in parts.algorithm.access:  # what was trained adapts the proxy
        model, name = parts.model["proxy"], parts.spec.model.proxy
    if hosting.is_hosted(parts.spec) and parts.spec.adapter.kind == "soft_prompt":
        model = load_model(name, dtype=parts.spec.model.dtype)  # whose shape PEFT's files name
    if artefact.changes_base(model, params) and peers.are_several():
        host = jax.local_devices(backend="cpu")[0]  # the whole model fits in host memory only
        model, params = jax.device_put(processes.gather((model, params)), host)
    with peers.together():
        if peers.is_first():
            about = _about(parts, scores)
            make = lambda aside: artefact.write(aside, model, params, base=name, about=about)
            folder.write_whole(path, make)


def serves_stand_in(parts: Parts, state: State) -> bool:
    """Returns whether a run deploys the stand-in of its target, as a control."""
    if "emulator" not in parts.algorithm.access:
        return False
    model, _ = fedjax_post.deployed(parts.algorithm, parts.model, state)
    return model is parts.model["emulator"].model


def _about(parts: Parts, scores: Mapping[str, Scores]) -> artefact.About:
    """Returns the content of the model card, which is the same for equal runs."""
    spec, tokenizer = parts.spec, parts.tokenizer
    report, table, row = parts.data.report, parts.heldout.table, parts.heldout.rows[0]
    tokens = gather(table, np.asarray([row]))[0][0]
    example = tokenizer.decode(tokens[: table.prompt_length[row]])
    template = spec.data.template
    chat = template == "chat" or (template == "auto" and tokenizer.chat_template)
    own = template if "{" in template else "" if chat else PLAIN
    source = spec.data.source
    facts = [
        ("method", f"{methods.describe(spec)}; {patience.describe_rounds(spec)}"),
        ("trained", f"{count(parts.params):,} numbers ({spec.adapter.kind})"),
        *([("trained from", spec.adapter.init)] if spec.adapter.init else ()),
        ("data", f"`{_name(source)}`, {report['examples']:,} examples"),
        ("clients", f"{report['clients']:,}, {report['partition']}"),
        ("prompts", template),
        ("seed", str(spec.seed)),
    ]
    if parts.promised is not None:
        facts.append(("privacy", "; ".join(private.describe(parts.promised, spec))))
    if parts.agreed is not None:
        facts.append(("secure sums", secure.describe(parts.agreed)))
    for when, found in scores.items():
        numbers = [(k, v) for k, v in found.items() if isinstance(v, float)]
        text = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in numbers)
        facts.append((f"held out, {'before' if when == 'base' else when}", text))
    coded = "none" if "proxy" in parts.algorithm.access else spec.model.quantize
    dtype = spec.model.dtype or "float32"
    return artefact.About(tokenizer, example, own, tuple(facts), dtype, coded)


def _name(source: object) -> str:
    return Path(source).name if isinstance(source, str) else factories.display_name(source)
