"""What a run deploys, as a folder that can be used by itself: written, and read back.

| made | files |
| --- | --- |
| factors | PEFT's |
| a prompt | PEFT's, or of words `prompt.json`; beside factors or weights in `prompt/` |
| weights, or what was folded into them | a Hugging Face model's, with `generation_config.json` |
| what several models are steered by | `leaves.npz`, which is not read back |
| nothing | none |

Beside them stand the tokenizer, as the run used it, an example of a prompt as it is served
(`example_prompt.txt`), the format of prompts where the tokenizer has no chat template for them
(`prompt_template.txt`), and a card (`README.md`). Nothing in the folder depends on where it
lies or when it was written: equal runs write equal bytes.
"""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_post.hub.adapter_config import CONFIG
from fedjax_post.hub.card import make_card
from fedjax_post.hub.documents import write_json
from fedjax_post.hub.files import BUILTIN, find_folder, fingerprint
from fedjax_post.hub.load import load_model, save_model
from fedjax_post.hub.peft import load_adapter, save_adapter
from fedjax_post.hub.prompt import is_prompt, load_prompt, save_prompt
from fedjax_post.model.views import LanguageModel

PyTree = Any
EXAMPLE, TEMPLATE, CARD = "example_prompt.txt", "prompt_template.txt", "README.md"
_PROMPT, _LEAVES = "prompt", "leaves.npz"
_flat = jax.tree_util.tree_leaves_with_path


class About(NamedTuple):
    """What an artefact says of itself, beside what was trained."""

    tokenizer: Any = None  # with the end of sequence that answers were trained to end with
    example: str = ""  # a prompt as it is served, its special tokens spelled
    template: str = ""  # the format of prompts, where it is not the tokenizer's chat template
    facts: tuple[tuple[str, str], ...] = ()  # lines of the card: what, and its value


def write(
    directory: Path,
    model: LanguageModel,
    params: PyTree,
    *,
    base: str,
    about: About = About(),  # noqa: B008
) -> bool:
    """Writes what is deployed as one folder, without the base where it is not changed.

    Args:
      directory: made if missing.
      model: as deployed.
      params: merged over it.
      base: the base's name or folder, as the user gave it. It goes into the folder, so that
        `peft` finds the base; of a built-in one the folder where it is installed does.
      about: what the folder says of itself.

    Returns:
      Whether anything of it is derived from the base's weights.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rest = {name: tree for name, tree in params.items() if name != "prompt"}
    whole = changes_base(model, params)
    told = {"base_name": str(find_folder(base)) if base in BUILTIN else base}
    if params.get("prompt"):
        tokens = np.asarray(params["prompt"].get("tokens", ()), np.int32).tolist()
        spell = about.tokenizer and about.tokenizer.decode
        text = spell(tokens, skip_special_tokens=True) if spell and tokens else ""
        prompt = {"prompt": params["prompt"]}
        save_prompt(
            directory / _PROMPT if rest or whole else directory, model, prompt, text=text, **told
        )
    if whole:
        save_model(directory, model, params=rest)
    elif rest and isinstance(model, LanguageModel):
        save_adapter(directory, model, rest, **told)
    elif rest:
        leaves = {jax.tree_util.keystr(path): leaf for path, leaf in _flat(rest)}
        np.savez(directory / _LEAVES, **leaves)
    _describe(directory, about, base=base, whole=whole)
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
    if (directory / CONFIG).exists():
        model, params = load_adapter(directory, model)
    if (directory / _PROMPT).exists():
        params |= load_prompt(directory / _PROMPT, model)
    return model, params


def _describe(directory: Path, about: About, *, base: str, whole: bool) -> None:
    """Writes all that is not weights."""
    if about.tokenizer is not None:
        tokenizer = copy.deepcopy(about.tokenizer)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:  # how the last call padded its rows would be kept
            backend.no_padding()
            backend.no_truncation()
        tokenizer.save_pretrained(directory)
        if whole:
            names = ("bos_token_id", "eos_token_id", "pad_token_id")
            ids = {name: getattr(tokenizer, name) for name in names}
            known = {name: number for name, number in ids.items() if number is not None}
            write_json(directory / "generation_config.json", known)
    for name, text in ((EXAMPLE, about.example), (TEMPLATE, about.template)):
        if text:
            (directory / name).write_text(text, encoding="utf-8")
    files = {path.name for path in directory.iterdir()}
    card = make_card(files, base=base, weights=fingerprint(base), facts=about.facts)
    (directory / CARD).write_text(card, encoding="utf-8")
