"""The model of an experiment, its tokenizer, and its trained parameters."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from fedjax_post.adapters.lora import add_lora
from fedjax_post.disclosure.meter import Meter
from fedjax_post.hub.load import load_model
from fedjax_post.hub.tokenizer import load_tokenizer
from fedjax_post.model.views import LanguageModel
from fedjax_post.study import devices, hosting, initial, prompts
from fedjax_post.study.spec import Spec

PyTree = Any
# The model that was read last, by what was asked for, in a context that keeps it
_kept: contextvars.ContextVar[dict[tuple[str, ...], LanguageModel] | None]
_kept = contextvars.ContextVar("_kept", default=None)


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """A context in which targets of one name, dtype and quantization are read once in a row.

    For checks of many experiments: no file may change meanwhile. One model at a time is held.
    """
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def find_tokenizer(spec: Spec) -> Any:
    """Returns the target's tokenizer, with the end token of the specification.

    Raises:
      ValueError: if the end token is not a token.
    """
    tokenizer = load_tokenizer(spec.model.name)
    if spec.model.end_token is not None:
        if spec.model.end_token not in tokenizer.get_vocab():
            raise ValueError(
                f"end_token={spec.model.end_token} is no token of model={spec.model.name}; its "
                f"special tokens are {', '.join(tokenizer.all_special_tokens)}"
            )
        tokenizer.eos_token = spec.model.end_token
    return tokenizer


def load_target(spec: Spec, tokenizer: Any, mesh: Any) -> Any:
    """Returns the model that is adapted: its weights, or a hosted model.

    Args:
      spec: the experiment.
      tokenizer: of the model.
      mesh: devices that share the weights; None for one device.
    """
    if hosting.is_hosted(spec):
        return hosting.model_of(spec, tokenizer, directory=None, meter=Meter())
    model = _read(spec) if mesh is None else _load(spec, mesh)
    if spec.model.remat is None:
        return model
    return dataclasses.replace(
        model, config=dataclasses.replace(model.config, remat=spec.model.remat)
    )


def _read(spec: Spec) -> LanguageModel:
    """Returns the model for one device, which may be the one that was read last."""
    kept = _kept.get()
    if kept is None:
        return _load(spec, None)
    asked = (spec.model.name, str(spec.model.dtype), spec.model.quantize)
    if asked not in kept:
        kept.clear()
        kept[asked] = _load(spec, None)
    return kept[asked]


def _load(spec: Spec, mesh: Any) -> LanguageModel:
    name, dtype, quantize = spec.model.name, spec.model.dtype, spec.model.quantize
    return load_model(name, dtype=dtype, quantize=quantize, **devices.loading(mesh))


def make_trainable(
    spec: Spec, model: LanguageModel, tokenizer: Any
) -> tuple[LanguageModel, PyTree]:
    """Returns the frozen model and the initial parameters that the federation trains.

    Args:
      spec: the experiment.
      model: the base.
      tokenizer: of the model, for prompts of text.
    """
    model, params = _make_fresh(spec, model, tokenizer)
    return model, initial.load(spec, model, params) if spec.adapter.init else params


def _make_fresh(spec: Spec, model: LanguageModel, tokenizer: Any) -> tuple[LanguageModel, PyTree]:
    if spec.adapter.kind in prompts.ADAPTERS:
        return model, prompts.make_start(spec, model, tokenizer)
    if spec.adapter.kind == "full":
        # float32, so that small updates of a bfloat16 model are not rounded away
        weights = jax.tree.map(lambda leaf: leaf.astype("float32"), model.variables["params"])
        return dataclasses.replace(model, variables={}), {"params": weights}
    targets = spec.adapter.targets
    return add_lora(
        model,
        jax.random.key(spec.seed),
        rank=spec.adapter.rank,
        alpha=spec.adapter.alpha,
        targets=targets[0] if len(targets) == 1 else targets,
        layers=layer_range(spec.adapter.layers, model.config.num_layers),
        dropout=spec.adapter.dropout,
    )


def layer_range(text: str, num_layers: int) -> tuple[int, int]:
    """Returns the first layer of `first:end`, and the one after the last; both are optional.

    Raises:
      ValueError: if the text is not a range. The model's layers are not checked.
    """
    try:
        first, end = (int(part) if part.strip() else None for part in text.split(":"))
    except ValueError:
        raise ValueError(
            f"adapter.layers={text} is no range of layers; write first:end, such as 4: or 2:6"
        ) from None
    return first or 0, num_layers if end is None else end
