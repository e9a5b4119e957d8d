"""From flags to prompts: the text before every row, the prompt that is trained, and its loss."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import factories, roles
from fedjax_post.adapters.prompt import add_soft_prompt, text_prompt
from fedjax_post.core.access import Access
from fedjax_post.core.algorithm import Algorithm
from fedjax_post.hub.load import load_model
from fedjax_post.hub.tokenizer import pad_id_of
from fedjax_post.objectives.choice import answer_loss, choice_loss
from fedjax_post.objectives.sft import sft_loss

PyTree = Any
_WORD = re.compile("[Ġ▁][a-zA-Z]+")  # with the space before it, as tokenizers write it
ADAPTERS = ("soft_prompt", "text_prompt")


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    text = "text before every row; what is trained where --adapter=text_prompt"
    flags.DEFINE_string("prompt_text", "", text, flag_values=values)
    length = "tokens of a soft prompt (--adapter=soft_prompt)"
    flags.DEFINE_integer("prompt_length", 10, length, lower_bound=1, flag_values=values)
    words = "words that a search may put into the prompt (every word of the vocabulary)"
    flags.DEFINE_list("candidates", [], words, flag_values=values)
    alike = "a small open model of the target's vocabulary, by whose embeddings tokens are alike"
    flags.DEFINE_string("embeddings", None, alike, flag_values=values)
    labels = "the answers that there are, for algorithms that see scores but no weights"
    flags.DEFINE_list("labels", [], labels, flag_values=values)


def check(options: flags.FlagValues) -> None:
    """Refuses flags that do not go together.

    Raises:
      ValueError: naming the flag and the remedy.
    """
    if options.adapter == "text_prompt" and not options.prompt_text.strip():
        raise ValueError(
            "--adapter=text_prompt starts from a text; give one, such as "
            "--prompt_text='answer in one word:'"
        )
    if options.prompt_text and "{" not in options.template:
        raise ValueError(
            f"--prompt_text={options.prompt_text!r} is put before the rows of a format string, "
            f"and --template={options.template} is none; give one, such as "
            "--template='{instruction}\\n'"
        )


def template_of(options: flags.FlagValues) -> str:
    """Returns the rows' template, with the prompt's text in front unless that is trained."""
    template = options.template.replace("\\n", "\n")
    if not options.prompt_text or options.adapter == "text_prompt":
        return template
    words = options.prompt_text.strip().replace("{", "{{").replace("}", "}}")
    return f"{words} {template}"


def make_start(options: flags.FlagValues, model: Any, tokenizer: Any) -> PyTree:
    """Returns the prompt where training starts."""
    if options.adapter == "soft_prompt":
        key = jax.random.key(options.seed)
        return add_soft_prompt(model, key, length=options.prompt_length)
    return text_prompt(_tokens_of(options, tokenizer))


def places_of(options: flags.FlagValues, tokenizer: Any) -> int:
    """Returns the places that the trained prompt takes in a model's context; 0 without one."""
    if options.adapter == "soft_prompt":
        return options.prompt_length
    return len(_tokens_of(options, tokenizer)) if options.adapter == "text_prompt" else 0


def offered(options: flags.FlagValues, factory: Callable, tokenizer: Any) -> dict[str, Any]:
    """Returns the tokens that a factory asks for, by the annotations of its arguments.

    Raises:
      ValueError: if there is no candidate, or embeddings are of other tokens.
    """
    make = {
        "Candidates": lambda: _candidates(options, tokenizer),
        "Embeddings": lambda: _embeddings(options),
        "Separator": lambda: np.int32(tokenizer.encode("\n", add_special_tokens=False)[-1]),
        "VocabSize": lambda: len(tokenizer),
        "Specials": lambda: np.asarray(sorted(set(tokenizer.all_special_ids)), np.int32),
    }
    return {name: fn() for name, fn in make.items() if factories.needs(factory, name)}


def loss_of(
    options: flags.FlagValues, algorithm: Algorithm, tokenizer: Any, *, longest: int
) -> Callable:
    """Returns the loss that an algorithm's access allows.

    Args:
      options: parsed flags.
      algorithm: for what it declares.
      tokenizer: of the target.
      longest: tokens of the longest response, its end included.

    Raises:
      ValueError: if the labels are needed and missing, or begin alike.
    """
    if max(algorithm.access.values()) >= Access.WEIGHTS:
        return sft_loss
    if max(algorithm.access.values()) == Access.TEXT:
        ends = {"eos_id": tokenizer.eos_token_id, "pad_id": pad_id_of(tokenizer)}
        return answer_loss(**ends, max_new_tokens=longest)
    if not options.labels:
        raise ValueError(
            f"--algorithm={options.algorithm} sees the scores of answers alone; say which there "
            "are, such as --labels=yes,no"
        )
    # runs are scored by answers in text, so that no other word may be likelier than the label
    return choice_loss(first_tokens(tokenizer, options.labels), among_all=True)


def first_tokens(tokenizer: Any, labels: Sequence[str]) -> list[int]:
    """Returns the first token of each label, as a response is tokenised."""
    return [tokenizer.encode(label, add_special_tokens=False)[0] for label in labels]


def _tokens_of(options: flags.FlagValues, tokenizer: Any) -> list[int]:
    """The prompt's text in tokens."""
    return tokenizer.encode(options.prompt_text.strip(), add_special_tokens=False)


def _embeddings(options: flags.FlagValues) -> jax.Array | None:
    """The table `[V, D]` of a public model, or None."""
    if options.embeddings is None:
        return None
    roles.check_vocabulary(options, "embeddings")
    return load_model(options.embeddings).variables["params"]["embedding"]


def _candidates(options: flags.FlagValues, tokenizer: Any) -> np.ndarray:
    if options.candidates:
        found = first_tokens(tokenizer, options.candidates)
    else:
        found = [index for token, index in tokenizer.get_vocab().items() if _WORD.fullmatch(token)]
    if not found:
        raise ValueError(
            f"--algorithm={options.algorithm} puts words into a prompt, and the vocabulary has no "
            "token of a whole word; give some by --candidates"
        )
    return np.unique(np.asarray(found, np.int32))
