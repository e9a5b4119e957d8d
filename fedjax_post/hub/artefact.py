"""Writes what a run deploys as a folder that can be used by itself, and reads it back.

| trained | files |
| --- | --- |
| factors | those of PEFT |
| a prompt | those of PEFT, or `prompt.json` for tokens; in `prompt/` beside factors or weights |
| weights, or additions to them | a Hugging Face model's, with `generation_config.json` |
| parameters that steer several models | `leaves.npz`, which cannot be read back |
| nothing | none |

In addition, the folder contains the tokenizer as the run used it, an example of a prompt as it is
served (`example_prompt.txt`), the format of prompts if this is not the tokenizer's chat template
(`prompt_template.txt`), and a card (`README.md`). Nothing in the folder depends on its path or
on the time: equal runs write equal bytes.
"""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_post.hub import gguf
from fedjax_post.hub.adapter_config import CONFIG
from fedjax_post.hub.card import make_card
from fedjax_post.hub.documents import write_json
from fedjax_post.hub.files import BUILTIN, PACKAGED, find_folder, fingerprint
from fedjax_post.hub.load import load_model, save_model
from fedjax_post.hub.peft import load_adapter, save_adapter
from fedjax_post.hub.prompt import is_prompt, load_prompt, save_prompt
from fedjax_post.model.views import LanguageModel

PyTree = Any
EXAMPLE, TEMPLATE, CARD = "example_prompt.txt", "prompt_template.txt", "README.md"
_PROMPT, _LEAVES = "prompt", "leaves.npz"
_flat = jax.tree_util.tree_leaves_with_path


class About(NamedTuple):
    """The description of an artefact, in addition to what was trained."""

    tokenizer: Any = None  # with the end-of-sequence token that ended answers in training
    example: str = ""  # a prompt as it is served, with its special tokens spelled
    template: str = ""  # the format of prompts, if it is not the tokenizer's chat template
    facts: tuple[tuple[str, str], ...] = ()  # lines of the card: name and value
    dtype: str = "float32"  # of the base, as it was loaded for training
    quantize: str = "none"  # the same; see `load_model`


def write(
    directory: Path,
    model: LanguageModel,
    params: PyTree,
    *,
    base: str,
    about: About = About(),  # noqa: B008
) -> bool:
    """Writes what is deployed as one folder, without the base if that is unchanged.

    Args:
      directory: created if missing.
      model: as deployed.
      params: merged over the model.
      base: name or folder of the base, as the user gave it. It is written to the folder, so that
        `peft` finds the base; for a built-in base, the folder where it is installed is written.
      about: the description of the artefact.

    Returns:
      Whether any part of the folder is derived from the base's weights.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rest = {name: tree for name, tree in params.items() if name != "prompt"}
    whole = changes_base(model, params)
    source = {"base_name": str(find_folder(base)) if base in BUILTIN else base}
    if params.get("prompt"):
        tokens = np.asarray(params["prompt"].get("tokens", ()), np.int32).tolist()
        spell = about.tokenizer and about.tokenizer.decode
        text = spell(tokens, skip_special_tokens=True) if spell and tokens else ""
        prompt = {"prompt": params["prompt"]}
        save_prompt(
            directory / _PROMPT if rest or whole else directory, model, prompt, text=text, **source
        )
    if whole:
        save_model(directory, model, params=rest)
    elif rest and isinstance(model, LanguageModel):
        save_adapter(directory, model, rest, **source)
    elif rest:
        leaves = {jax.tree_util.keystr(path): leaf for path, leaf in _flat(rest)}
        np.savez(directory / _LEAVES, **leaves)
    _describe(directory, about, base=base, whole=whole)
    return whole or bool(rest)


def changes_base(model: LanguageModel, params: PyTree) -> bool:
    """Returns whether weights of the base were changed, so that they must be written too."""
    if not isinstance(model, LanguageModel):  # several models that answer together
        return False
    return "residual" in model.variables or not set(params) <= {"prompt", "lora"}


def has_weights(directory: Path) -> bool:
    """Returns whether a folder that `write` wrote has weights of its own, in place of the base."""
    return (directory / "config.json").exists()


def read(
    directory: Path, *, base: str, dtype: Any = "float32", quantize: str = "none"
) -> tuple[LanguageModel, PyTree]:
    """Returns the model and parameters that `write` wrote.

    Args:
      directory: the folder.
      base: name or folder of the base, which is read if the folder has no weights of its own.
      dtype: dtype of the model.
      quantize: of the base, as for `load_model`. The folder's own weights are read as they were
        deployed: what was trained on codes is in them, and to round it again would change it.
    """
    params: PyTree = {}
    if has_weights(directory):
        model = load_model(str(directory), dtype=dtype)
    else:
        model = load_model(base, dtype=dtype, quantize=quantize)
    if is_prompt(directory):
        return model, load_prompt(directory, model)
    if (directory / CONFIG).exists():
        model, params = load_adapter(directory, model)
    if (directory / _PROMPT).exists():
        params |= load_prompt(directory / _PROMPT, model)
    return model, params


def _describe(directory: Path, about: About, *, base: str, whole: bool) -> None:
    """Writes everything except weights."""
    if about.tokenizer is not None:
        tokenizer = copy.deepcopy(about.tokenizer)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:  # otherwise the padding of the last call would be saved
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
    facts = [*_header(base), *about.facts]
    reading = {} if about.dtype == "float32" else {"dtype": about.dtype}
    if about.quantize != "none":
        facts.append(("layers of the base", f"rounded to {about.quantize} in training and scores"))
        reading |= {} if whole else {"quantize": about.quantize}
    card = make_card(files, base=base, weights=fingerprint(base), facts=facts, reading=reading)
    (directory / CARD).write_text(card, encoding="utf-8")


def _header(base: str) -> list[tuple[str, str]]:
    """Returns what the GGUF file of the base says about itself; nothing for other files."""
    if base not in PACKAGED and not gguf.is_gguf(Path(base)):
        return []
    found = find_folder(base)
    return gguf.header_facts(gguf.read_gguf(found)) if gguf.is_gguf(found) else []
