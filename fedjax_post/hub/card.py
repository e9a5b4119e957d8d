"""Makes the card of an artefact: what it is, how it was made, how to load it, and its limits."""

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from types import MappingProxyType

from fedjax_post.hub.adapter_config import CONFIG, WEIGHTS
from fedjax_post.hub.facts import CHECKPOINTS
from fedjax_post.hub.files import BUILTIN, PACKAGED, find_folder
from fedjax_post.hub.prompt import TEXT
from fedjax_post.hub.tensors import SINGLE

UNKNOWN = "not known"
_OURS = """from fedjax_post.hub import artefact
model, params = artefact.read(Path("this folder"), {arguments})"""
_PEFT = """{imports}from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base = AutoModelForCausalLM.from_pretrained({found})
model = PeftModel.from_pretrained(base, "this folder")
tokenizer = AutoTokenizer.from_pretrained("this folder")"""
_WHOLE = """from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("this folder")
tokenizer = AutoTokenizer.from_pretrained("this folder")"""
_CARD = """---
{metadata}
---

# {title}

A research artefact of a simulated federation, made by `fedjax_post`. It was evaluated only as
listed here, and nobody has reviewed it. It is meant for experiments, not for production use.

| | |
| --- | --- |
{rows}

## How to load it

With `fedjax_post`:

```python
from pathlib import Path
{ours}
```
{others}
## What is in this folder

{files}
"""
_FILES = {
    WEIGHTS: "the trained parameters, without the base",
    CONFIG: "how `peft` applies it to the base, and where the base was found",
    SINGLE: "all weights of the model",
    "config.json": "the architecture of the model",
    "generation_config.json": "the tokens that begin, end and pad a text",
    TEXT: "a prompt of words: its tokens and its text",
    "prompt": "a prompt that is used together with the rest",
    "leaves.npz": "the arrays that steer several models; they cannot be read back",
    "tokenizer.json": "the tokenizer that was used in training, beside its configuration",
    "chat_template.jinja": "the tokenizer's format of chats",
    "example_prompt.txt": "an example of a prompt, exactly as the model was given it",
    "prompt_template.txt": "the format of prompts, for `str.format`",
}


def make_card(
    files: Set[str],
    *,
    base: str,
    weights: str,
    facts: Iterable[tuple[str, str]] = (),
    reading: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Returns the text of a folder's README.md.

    Args:
      files: names of the files in the folder, which determine its kind.
      base: name or folder of the base, as the user gave it.
      weights: hash of the base's weights, "" if they are not available.
      facts: further lines of the table: name and value.
      reading: further arguments of `artefact.read`, with which the model is the one that was run.
    """
    kind, loads = _kind(files)
    licence = next((entry.licence for entry in CHECKPOINTS if entry.name == base), None)
    given = f"{licence.value} (source: {licence.source}, {licence.date})" if licence else UNKNOWN
    rows = [("base", f"`{base}`"), ("SHA-256 of the base's weights", weights or UNKNOWN)]
    rows += [("licence of the base", given), *facts]
    ours = base in BUILTIN or base in PACKAGED
    arguments = ", ".join(f'{name}="{value}"' for name, value in {"base": base, **reading}.items())
    loads = loads.format(found=_found(base), imports="import fedjax_post.hub.files\n" * ours)
    metadata = ["library_name: " + ("peft" if CONFIG in files else "transformers")]
    metadata += ["pipeline_tag: text-generation", "tags: [federated-learning, fedjax_post]"]
    if licence and base not in BUILTIN:
        metadata.insert(0, f"base_model: {PACKAGED[base].hub if base in PACKAGED else base}")
    return _CARD.format(
        metadata="\n".join(metadata),
        title=f"{kind}, trained by a federation",
        rows="\n".join(f"| {what} | {_cell(value)} |" for what, value in rows),
        ours=_OURS.format(arguments=arguments),
        others=f"\nWith other libraries:\n\n```python\n{loads}\n```\n" if loads else "",
        files="\n".join(f"- `{name}`: {text}" for name, text in _FILES.items() if name in files),
    )


def _found(base: str) -> str:
    """Returns the arguments with which other libraries load the base, as code."""
    here = f"fedjax_post.hub.files.find_folder({base!r})"
    if base in PACKAGED and (path := find_folder(base)).is_file():
        return f"{here}.parent, gguf_file={path.name!r}"
    if base.lower().endswith(".gguf"):
        return f"{str(Path(base).parent)!r}, gguf_file={Path(base).name!r}"
    return here if base in (*BUILTIN, *PACKAGED) else repr(base)


def _kind(files: Set[str]) -> tuple[str, str]:
    """Returns what the folder holds, and how other libraries load it."""
    if SINGLE in files:
        return "A language model", _WHOLE
    if CONFIG in files:
        return "An adapter", _PEFT
    if TEXT in files:
        return "A prompt", ""
    return (
        "Parameters that steer several models" if "leaves.npz" in files else "An unchanged base",
        "",
    )


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
