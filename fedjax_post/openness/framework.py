"""The Model Openness Framework: the class that a model reaches with its released components.

White et al., "The Model Openness Framework", 2024, arXiv:2403.13784. The rules are those of its
tool (lfai/model_openness_tool 8b5d30e), implemented again here: classes are cumulative; a
component counts if it is released under an open licence; its own licence takes precedence, then
the project's licence for its kind of content, then the project's licence for everything; an open
licence made for another kind of content counts, with a warning; a research paper can replace the
technical report.

One deviation: the tool's list has CC0-1.0 for data and for documents, and its import keeps only
the last. Here it suits both; this affects warnings, never a class.
"""

from collections.abc import Mapping
from typing import NamedTuple

from fedjax_post.openness.licences import is_open, suits

UNLICENSED = "unlicensed"
UNKNOWN = "unknown"
CLASSES = {
    0: "none",
    1: "I (Open Science)",
    2: "II (Open Tooling)",
    3: "III (Open Model)",
}


class Component(NamedTuple):
    """One of the framework's 17 components."""

    title: str  # name in the framework
    content: str  # code, data or document
    rank: int  # class to which it belongs, from 3 (reached first) to 1
    required: bool = True


COMPONENTS = {
    "architecture": Component("Model architecture", "code", 3),
    "parameters_final": Component("Model parameters (Final)", "data", 3),
    "technical_report": Component("Technical report", "document", 3),
    "evaluation_results": Component("Evaluation results", "document", 3),
    "model_card": Component("Model card", "document", 3),
    "data_card": Component("Data card", "document", 3),
    "sample_outputs": Component("Sample model outputs", "document", 3, required=False),
    "training_code": Component("Training code", "code", 2),
    "inference_code": Component("Inference code", "code", 2),
    "evaluation_code": Component("Evaluation code", "code", 2),
    "evaluation_data": Component("Evaluation data", "data", 2),
    "libraries": Component("Supporting libraries and tools", "code", 2, required=False),
    "datasets": Component("Datasets", "data", 1),
    "preprocessing_code": Component("Data preprocessing code", "code", 1),
    "parameters_intermediate": Component("Model parameters (Intermediate)", "data", 1),
    "research_paper": Component("Research paper", "document", 1),
    "metadata": Component("Model metadata", "data", 1, required=False),
}


class Evaluation(NamedTuple):
    """The framework's result for a model."""

    rank: int  # 1, 2 or 3 for classes I to III; 0 for none
    licences: Mapping[str, str]  # licence that applies to each released component
    lacking: Mapping[int, Mapping[str, str]]  # class -> required component that fails -> reason
    warnings: tuple[str, ...]  # components whose open licence is made for other content


def evaluate(released: Mapping[str, str | None], project: Mapping[str, str]) -> Evaluation:
    """Returns the class of a model, and what is missing for each class.

    Args:
      released: component -> its own licence, None if it has none; components that were not
        released are left out.
      project: the project's licences by 'code', 'data', 'document' and 'distribution'.

    Raises:
      ValueError: for a component that the framework does not have.

    >>> evaluate({"model_card": None}, {"distribution": "Apache-2.0"}).lacking[3]["architecture"]
    'not released'
    """
    unknown = [name for name in released if name not in COMPONENTS]
    if unknown:
        raise ValueError(f"component {unknown[0]!r} is unknown; there are {', '.join(COMPONENTS)}")
    licences = {name: _resolve(name, own, project) for name, own in released.items()}
    lacking = {rank: _lacking(rank, licences) for rank in (3, 2, 1)}
    reached = 0
    for rank in (3, 2, 1):
        if lacking[rank]:
            break
        reached = rank
    warnings = tuple(
        name
        for name, licence in licences.items()
        if is_open(licence) and not suits(licence, COMPONENTS[name].content)
    )
    return Evaluation(reached, licences, lacking, warnings)


def progress(evaluation: Evaluation, rank: int) -> float:
    """Returns the percentage of a class's required components that count.

    It is 0 until the class below is reached. The tool reports the same figure in its published
    results.
    """
    if any(evaluation.lacking[lower] for lower in range(rank + 1, 4)):
        return 0.0
    needed = required(rank)
    counted = [name for name in needed if name not in evaluation.lacking[rank]]
    stands_in = rank == 1 and not _counts("technical_report", evaluation.licences)
    total = len(needed) - (stands_in and _counts("research_paper", evaluation.licences))
    return 100.0 * min(1.0, (len(counted) - (len(needed) - total)) / total)


def required(rank: int) -> list[str]:
    """Returns the components that a class requires, including those of the classes below."""
    return [name for name, part in COMPONENTS.items() if part.required and part.rank >= rank]


def _resolve(name: str, own: str | None, project: Mapping[str, str]) -> str:
    if own is not None:
        return own or UNLICENSED
    content = COMPONENTS[name].content
    return project.get(content) or project.get("distribution") or UNLICENSED


def _lacking(rank: int, licences: Mapping[str, str]) -> dict[str, str]:
    """Returns the required components, of a class and those below, that do not count, and why."""
    failing = {name: _why(name, licences) for name in required(rank)}
    if _counts("research_paper", licences):
        failing["technical_report"] = ""
    return {name: why for name, why in failing.items() if why}


def _counts(name: str, licences: Mapping[str, str]) -> bool:
    return name in licences and is_open(licences[name])


def _why(name: str, licences: Mapping[str, str]) -> str:
    if name not in licences:
        return "not released"
    if licences[name] == UNLICENSED:
        return "released without a licence"
    if licences[name] == UNKNOWN:
        return "released, its licence unknown"
    return "" if is_open(licences[name]) else f"{licences[name]} is not an open licence"
