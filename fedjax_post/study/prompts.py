"""Prompts: the text before every row, the trained prompt, and its loss."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fedjax_post.adapters.prompt import add_soft_prompt, text_prompt
from fedjax_post.core.access import Access, union
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.data.load import Loaded
from fedjax_post.hub.load import load_model
from fedjax_post.hub.tokenizer import pad_id_of
from fedjax_post.objectives.choice import answer_loss, choice_loss
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.study import factories, hosting, labels, roles
from fedjax_post.study.spec import Spec

PyTree = Any
_WORD = re.compile("[Ġ▁][a-zA-Z]+")  # with the space before it, as tokenizers write it
ADAPTERS = ("soft_prompt", "text_prompt")


def check(spec: Spec) -> None:
    """Checks that the fields on prompts go together.

    Raises:
      ValueError: naming the field and the remedy.
    """
    if spec.adapter.kind == "text_prompt" and not spec.adapter.prompt_text.strip():
        raise ValueError(
            "adapter=text_prompt needs an initial text; give one, such as "
            "prompt_text='answer in one word:'"
        )
    if spec.adapter.prompt_text and "{" not in spec.data.template:
        raise ValueError(
            f"prompt_text={spec.adapter.prompt_text!r} needs a template that is a format string, "
            f"and template={spec.data.template} is none; give one, such as "
            "template='{instruction}\\n'"
        )


def template_of(spec: Spec) -> str:
    """Returns the rows' template, with the prompt's text in front unless the prompt is trained."""
    template = spec.data.template.replace("\\n", "\n")
    if not spec.adapter.prompt_text or spec.adapter.kind == "text_prompt":
        return template
    words = spec.adapter.prompt_text.strip().replace("{", "{{").replace("}", "}}")
    return f"{words} {template}"


def make_start(spec: Spec, model: Any, tokenizer: Any) -> PyTree:
    """Returns the initial prompt.

    Args:
      spec: the experiment.
      model: the target, for its embeddings. A hosted one does not give them, so that a soft
        prompt starts from those of a copy of `model` here.
      tokenizer: of the target.
    """
    if spec.adapter.kind == "soft_prompt":
        key = jax.random.key(spec.seed)
        if hosting.is_hosted(spec):
            model = load_model(spec.model.name, dtype=spec.model.dtype)
        return add_soft_prompt(model, key, length=spec.adapter.prompt_length)
    return text_prompt(_tokens_of(spec, tokenizer))


def places_of(spec: Spec, tokenizer: Any) -> int:
    """Returns the number of tokens that the trained prompt takes in the context; 0 without one."""
    if spec.adapter.kind == "soft_prompt":
        return spec.adapter.prompt_length
    return len(_tokens_of(spec, tokenizer)) if spec.adapter.kind == "text_prompt" else 0


def token_arguments(spec: Spec, factory: Callable, tokenizer: Any) -> dict[str, Any]:
    """Returns values for a factory's arguments that concern tokens, by their annotations.

    Args:
      spec: the experiment.
      factory: of the algorithm.
      tokenizer: of the target.

    Raises:
      ValueError: if there are no candidate tokens, or `model.embeddings` has another vocabulary.
    """
    make = {
        "Candidates": lambda: _candidates(spec, tokenizer),
        "Embeddings": lambda: _embeddings(spec),
        "Separator": lambda: np.int32(tokenizer.encode("\n", add_special_tokens=False)[-1]),
        "VocabSize": lambda: len(tokenizer),
        "Specials": lambda: np.asarray(sorted(set(tokenizer.all_special_ids)), np.int32),
    }
    return {name: fn() for name, fn in make.items() if factories.needs(factory, name)}


def loss_of(
    spec: Spec,
    algorithm: Algorithm,
    tokenizer: Any,
    *,
    longest: int,
    prefix: Sequence[int],
    data: Loaded,
) -> Callable:
    """Returns the loss that can be computed with an algorithm's access.

    Args:
      spec: the experiment.
      algorithm: declares its access.
      tokenizer: of the target.
      longest: number of tokens of the longest response, its end included.
      prefix: tokens with which all prompts begin.
      data: the rows, whose responses spell the labels.

    Raises:
      ValueError: if labels are needed and missing, are no responses of the clients' rows, or two
        begin with the same token.
    """
    if Access.READ in union(algorithm.access):
        return sft_loss
    known = labels.find_labels(spec, data, tokenizer) if spec.data.labels else None
    if Access.SCORES not in union(algorithm.access):
        ends = {"eos_id": tokenizer.eos_token_id, "pad_id": pad_id_of(tokenizer)}
        begins = known is not None and tokenizer.eos_token_id not in known.tokens
        return answer_loss(**ends, max_new_tokens=longest, begins=begins, prefix=prefix)
    if known is None:
        raise ValueError(
            f"method={spec.method.name} sees only the scores of answers; list all answers, "
            "such as labels=yes,no"
        )
    labels.check_labels(known, data, tokenizer)
    # Where runs are scored by generated text any token could win, else only labels compete
    among_all = spec.scoring.exact_match != "off"
    return choice_loss(known.tokens[:, 0].tolist(), among_all=among_all, prefix=prefix)


def first_tokens(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Returns the first token of each word."""
    return [tokenizer.encode(word, add_special_tokens=False)[0] for word in words]


def _tokens_of(spec: Spec, tokenizer: Any) -> list[int]:
    """Returns the tokens of the prompt's text."""
    return tokenizer.encode(spec.adapter.prompt_text.strip(), add_special_tokens=False)


def _embeddings(spec: Spec) -> jax.Array | None:
    """Returns the embedding table `[V, D]` of a public model, or None."""
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
            f"method={spec.method.name} inserts whole words into a prompt, and no token of the "
            "vocabulary is one; give some by `candidates`"
        )
    return np.unique(np.asarray(found, np.int32))
