"""An adapter that was trained before, as the start of a new training."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_post.hub import adapter_config
from fedjax_post.hub.peft import load_adapter
from fedjax_post.hub.prompt import is_prompt, load_prompt
from fedjax_post.model.views import LanguageModel
from fedjax_post.study import folder
from fedjax_post.study.spec import Spec

PyTree = Any
_KINDS = ("lora", "soft_prompt")


def check(spec: Spec) -> None:
    """Refuses a start that the experiment's adapter cannot have; reads no weights.

    Raises:
      ValueError: naming the field and the remedy.
      FileNotFoundError: if there is no such adapter.
    """
    if not spec.adapter.init:
        return
    if spec.adapter.kind not in _KINDS:
        instead = "model" if spec.adapter.kind == "full" else "prompt_text"
        raise ValueError(
            f"adapter.init={spec.adapter.init} is for adapter={' or '.join(_KINDS)}; "
            f"with adapter={spec.adapter.kind} give the start as `{instead}`"
        )
    directory = folder.adapter_of(Path(spec.adapter.init))
    if (directory / "config.json").exists():
        raise ValueError(
            f"adapter.init={spec.adapter.init} holds a whole model, which the adapter was folded "
            f"into; give model={directory} instead"
        )
    if not (directory / adapter_config.CONFIG).exists():
        raise FileNotFoundError(
            f"adapter.init={spec.adapter.init} has no {adapter_config.CONFIG}; give a folder that "
            "`peft` or a run wrote"
        )


def load(spec: Spec, model: LanguageModel, params: PyTree) -> PyTree:
    """Returns the trained parameters of `adapter.init`, in the place of fresh ones.

    Args:
      spec: the experiment.
      model: the base, with the scales of the experiment's adapter.
      params: as the experiment would start without `adapter.init`.

    Raises:
      ValueError: if the adapter is damaged, or its rank, alpha, layers or length are not those
        of the experiment.
    """
    directory = folder.adapter_of(Path(spec.adapter.init))
    if spec.adapter.kind == "soft_prompt":
        found = load_prompt(directory, model) if is_prompt(directory) else {}
        _check_like(spec, found, params, "a soft prompt of `prompt_length` tokens")
        return found
    loaded, found = load_adapter(directory, model)
    config = adapter_config.read_adapter_config(directory)
    wanted = f"the `rank`, `targets` and `layers` of LoRA that it has (r={config['r']})"
    _check_like(spec, found, params, wanted)
    scales = [m.variables["lora_scale"] for m in (loaded, model)]
    if not all(map(np.allclose, *map(jax.tree.leaves, scales))):
        raise ValueError(
            f"adapter.init={spec.adapter.init} was trained with another scale; give its `alpha`, "
            f"{config['lora_alpha']:g} for rank {config['r']}"
        )
    return found


def _check_like(spec: Spec, found: PyTree, fresh: PyTree, wanted: str) -> None:
    shapes = lambda tree: {
        jax.tree_util.keystr(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    if shapes(found) != shapes(fresh):
        odd = sorted(set(shapes(found).items()) ^ set(shapes(fresh).items()))[0]
        raise ValueError(
            f"adapter.init={spec.adapter.init} does not fit the experiment's adapter, for example "
            f"at {odd[0]}; give {wanted}"
        )
