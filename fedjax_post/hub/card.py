"""The card of an artefact: what it is, how it was made, how it is loaded, what it is not."""

from collections.abc import Iterable, Set

from fedjax_post.hub.adapter_config import CONFIG, WEIGHTS
from fedjax_post.hub.facts import CHECKPOINTS
from fedjax_post.hub.files import BUILTIN
from fedjax_post.hub.prompt import TEXT
from fedjax_post.hub.tensors import SINGLE

UNKNOWN = "not known"
_OURS = """from fedjax_post.hub import artefact
model, params = artefact.read(Path("this folder"), base="{base}")"""
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

A research artefact of a simulated federation, made by `fedjax_post`. It was scored on nothing but
what is listed here and reviewed by nobody; it is fit for experiments, not for use.

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
    WEIGHTS: "what was trained, without the base",
    CONFIG: "how `peft` puts it over the base, and where the base was found",
    SINGLE: "all weights of the model",
    "config.json": "its architecture",
    "generation_config.json": "the tokens that begin, end and pad a text",
    TEXT: "a prompt of words: its tokens, and what they spell",
    "prompt": "a prompt that belongs to the rest",
    "leaves.npz": "the arrays by which several models are steered; they are not read back",
    "tokenizer.json": "the tokenizer as it was trained with, beside its configuration",
    "chat_template.jinja": "how the tokenizer writes a chat",
    "example_prompt.txt": "a prompt, to the letter, as the model was given it",
    "prompt_template.txt": "the format of prompts, for `str.format`",
}


def make_card(
    files: Set[str], *, base: str, weights: str, facts: Iterable[tuple[str, str]] = ()
) -> str:
    """Returns the text of a folder's README.md.

    Args:
      files: names of what lies in the folder; they say what it is.
      base: the base's name or folder, as the user gave it.
      weights: hash of the base's weights, "" if they are not at hand.
      facts: further lines of the table: what, and its value.
    """
    kind, loads = _kind(files)
    licence = next((entry.licence for entry in CHECKPOINTS if entry.name == base), None)
    given = f"{licence.value} (says {licence.source}, {licence.date})" if licence else UNKNOWN
    rows = [("base", f"`{base}`"), ("SHA-256 of the base's weights", weights or UNKNOWN)]
    rows += [("licence of the base", given), *facts]
    found = f"fedjax_post.hub.files.find_folder({base!r})" if base in BUILTIN else repr(base)
    loads = loads.format(found=found, imports="import fedjax_post.hub.files\n" * (base in BUILTIN))
    metadata = ["library_name: " + ("peft" if CONFIG in files else "transformers")]
    metadata += ["pipeline_tag: text-generation", "tags: [federated-learning, fedjax_post]"]
    if licence and any(entry.name == base for entry in CHECKPOINTS) and base not in BUILTIN:
        metadata.insert(0, f"base_model: {base}")
    return _CARD.format(
        metadata="\n".join(metadata),
        title=f"{kind}, trained by a federation",
        rows="\n".join(f"| {what} | {_cell(value)} |" for what, value in rows),
        ours=_OURS.format(base=base),
        others=f"\nWith other libraries:\n\n```python\n{loads}\n```\n" if loads else "",
        files="\n".join(f"- `{name}`: {text}" for name, text in _FILES.items() if name in files),
    )


def _kind(files: Set[str]) -> tuple[str, str]:
    """What the folder holds, and how other libraries load it."""
    if SINGLE in files:
        return "A language model", _WHOLE
    if CONFIG in files:
        return "An adapter", _PEFT
    if TEXT in files:
        return "A prompt", ""
    return "What steers several models" if "leaves.npz" in files else "A base as it was", ""


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
