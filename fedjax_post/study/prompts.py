"""Prompts: the text before every row, the prompt that is trained, and its loss."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fedjax_post.adapters.prompt import add_soft_prompt, text_prompt
from fedjax_post.core.access import Access, union
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.hub.load import load_model
from fedjax_post.hub.tokenizer import pad_id_of
from fedjax_post.objectives.choice import answer_loss, choice_loss
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.study import factories, roles
from fedjax_post.study.spec import Spec

PyTree = Any
_WORD = re.compile("[Ġ▁][a-zA-Z]+")  # with the space before it, as tokenizers write it
ADAPTERS = ("soft_prompt", "text_prompt")


def check(spec: Spec) -> None:
    """Refuses fields that do not go together.

    Raises:
      ValueError: naming the field and the remedy.
    """
    if spec.adapter.kind == "text_prompt" and not spec.adapter.prompt_text.strip():
        raise ValueError(
            "adapter=text_prompt starts from a text; give one, such as "
            "prompt_text='answer in one word:'"
        )
    if spec.adapter.prompt_text and "{" not in spec.data.template:
        raise ValueError(
            f"prompt_text={spec.adapter.prompt_text!r} is put before the rows of a format string, "
            f"and template={spec.data.template} is none; give one, such as "
            "template='{instruction}\\n'"
        )


def template_of(spec: Spec) -> str:
    """Returns the rows' template, with the prompt's text in front unless that is trained."""
    template = spec.data.template.replace("\\n", "\n")
    if not spec.adapter.prompt_text or spec.adapter.kind == "text_prompt":
        return template
    words = spec.adapter.prompt_text.strip().replace("{", "{{").replace("}", "}}")
    return f"{words} {template}"


def make_start(spec: Spec, model: Any, tokenizer: Any) -> PyTree:
    """Returns the prompt where training starts."""
    if spec.adapter.kind == "soft_prompt":
        key = jax.random.key(spec.seed)
        return add_soft_prompt(model, key, length=spec.adapter.prompt_length)
    return text_prompt(_tokens_of(spec, tokenizer))


def places_of(spec: Spec, tokenizer: Any) -> int:
    """Returns the places that the trained prompt takes in a model's context; 0 without one."""
    if spec.adapter.kind == "soft_prompt":
        return spec.adapter.prompt_length
    return len(_tokens_of(spec, tokenizer)) if spec.adapter.kind == "text_prompt" else 0


def offered(spec: Spec, factory: Callable, tokenizer: Any) -> dict[str, Any]:
    """Returns the tokens that a factory asks for, by the annotations of its arguments.

    Raises:
      ValueError: if there is no candidate, or embeddings are of other tokens.
    """
    make = {
        "Candidates": lambda: _candidates(spec, tokenizer),
        "Embeddings": lambda: _embeddings(spec),
        "Separator": lambda: np.int32(tokenizer.encode("\n", add_special_tokens=False)[-1]),
        "VocabSize": lambda: len(tokenizer),
        "Specials": lambda: np.asarray(sorted(set(tokenizer.all_special_ids)), np.int32),
    }
    return {name: fn() for name, fn in make.items() if factories.needs(factory, name)}


def loss_of(spec: Spec, algorithm: Algorithm, tokenizer: Any, *, longest: int) -> Callable:
    """Returns the loss that an algorithm's access allows.

    Args:
      spec: the experiment.
      algorithm: for what it declares.
      tokenizer: of the target.
      longest: tokens of the longest response, its end included.

    Raises:
      ValueError: if the labels are needed and missing, or begin alike.
    """
    if Access.READ in union(algorithm.access):
        return sft_loss
    if union(algorithm.access) == Access.TEXT:
        ends = {"eos_id": tokenizer.eos_token_id, "pad_id": pad_id_of(tokenizer)}
        return answer_loss(**ends, max_new_tokens=longest)
    if not spec.data.labels:
        raise ValueError(
            f"method={spec.method.name} sees the scores of answers alone; say which there "
            "are, such as labels=yes,no"
        )
    # runs are scored by answers in text, so that no other word may be likelier than the label
    return choice_loss(first_tokens(tokenizer, spec.data.labels), among_all=True)


def first_tokens(tokenizer: Any, labels: Sequence[str]) -> list[int]:
    """Returns the first token of each label, as a response is tokenised."""
    return [tokenizer.encode(label, add_special_tokens=False)[0] for label in labels]


def _tokens_of(spec: Spec, tokenizer: Any) -> list[int]:
    """The prompt's text in tokens."""
    return tokenizer.encode(spec.adapter.prompt_text.strip(), add_special_tokens=False)


def _embeddings(spec: Spec) -> jax.Array | None:
    """The table `[V, D]` of a public model, or None."""
    if spec.model.embeddings is None:
        return None
    roles.check_vocabulary(spec, "embeddings")
    return load_model(spec.model.embeddings).variables["params"]["embedding"]


def _candidates(spec: Spec, tokenizer: Any) -> np.ndarray:
    if spec.adapter.candidates:
        found = first_tokens(tokenizer, spec.adapter.candidates)
    else:
        found = [index for token, index in tokenizer.get_vocab().items() if _WORD.fullmatch(token)]
    if not found:
        raise ValueError(
            f"method={spec.method.name} puts words into a prompt, and the vocabulary has no "
            "token of a whole word; give some by `candidates`"
        )
    return np.unique(np.asarray(found, np.int32))
