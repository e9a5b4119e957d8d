"""What a federation made, as files: written, read back, and what its licence asks."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from fedjax_post.core.algorithm import PyTree
from fedjax_post.hub.load import load_model, save_model
from fedjax_post.hub.peft import load_adapter, save_adapter
from fedjax_post.hub.prompt import is_prompt, load_prompt, save_prompt
from fedjax_post.model.views import LanguageModel
from fedjax_post.openness.artefact import artefact_terms, passport_of
from fedjax_post.openness.framework import UNKNOWN
from fedjax_post.openness.load import load_passport

_PROMPT, _LEAVES = "prompt", "leaves.npz"
_flat = jax.tree_util.tree_leaves_with_path


def write(
    directory: Path,
    model: LanguageModel,
    params: PyTree,
    *,
    base: str,
    run: str = "",
    decode_fn: Callable[[list[int]], str] = lambda tokens: "",
) -> bool:
    """Writes what is deployed as one folder, without the base where it is not changed.

    | made | files |
    | --- | --- |
    | factors | PEFT's |
    | a prompt | PEFT's, or of words `prompt.json`; beside factors or weights in `prompt/` |
    | weights, or what was folded into them | a Hugging Face model's |
    | what several models are steered by | `leaves.npz`, which is not read back |
    | nothing | none |

    Args:
      directory: made if missing.
      model: as deployed.
      params: merged over it.
      base: name of the base.
      run: what made it, kept with it.
      decode_fn: tokens of a prompt -> what they spell, for readers.

    Returns:
      Whether anything of it is derived from the base's weights.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rest = {name: tree for name, tree in params.items() if name != "prompt"}
    whole, told = changes_base(model, params), {"base_name": base, "run": run}
    if params.get("prompt"):
        text = decode_fn(list(params["prompt"].get("tokens", ())))
        prompt = {"prompt": params["prompt"]}
        save_prompt(
            directory / _PROMPT if rest or whole else directory, model, prompt, text=text, **told
        )
    if whole:
        save_model(directory, model, params=rest, run=run)
    elif rest and isinstance(model, LanguageModel):
        save_adapter(directory, model, rest, **told)
    elif rest:
        leaves = {jax.tree_util.keystr(path): leaf for path, leaf in _flat(rest)}
        np.savez(directory / _LEAVES, **leaves)
    return whole or bool(rest)


def changes_base(model: LanguageModel, params: PyTree) -> bool:
    """Returns whether weights of the base itself were changed, so that they are written too."""
    if not isinstance(model, LanguageModel):  # several models that answer together
        return False
    return "residual" in model.variables or not set(params) <= {"prompt", "lora"}


def read(directory: Path, *, base: str, dtype: str = "float32") -> tuple[LanguageModel, PyTree]:
    """Returns the model and parameters that `write` wrote, the base read anew where needed."""
    params: PyTree = {}
    whole = (directory / "config.json").exists()
    model = load_model(str(directory) if whole else base, dtype=dtype)
    if is_prompt(directory):
        return model, load_prompt(directory, model)
    if (directory / "adapter_config.json").exists():
        model, params = load_adapter(directory, model)
    if (directory / _PROMPT).exists():
        params |= load_prompt(directory / _PROMPT, model)
    return model, params


def terms(
    base: str, *, passport: str = "", holds_weights: bool = True, data_licence: str = UNKNOWN
) -> list[dict[str, str]]:
    """Returns what may be done with an artefact, by the base's passport, for JSON.

    Args:
      base: name of the base; its passport is found by it.
      passport: another passport's name, or the path of one.
      holds_weights: as `write` returns it.
      data_licence: of the clients' data.
    """
    name = passport or passport_of(base)
    if not name:
        told = f"no passport for {base}; give one by --passport"
        return [{"about": "licence of the base", "says": told, "source": "", "date": ""}]
    found = artefact_terms(
        load_passport(name), holds_weights=holds_weights, data_licence=data_licence
    )
    return [consequence._asdict() for consequence in found]
