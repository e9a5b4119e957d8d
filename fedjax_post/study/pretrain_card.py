"""The recipe of a built-in base model, and the model card that is written from it."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from fedjax_post.data.builtin import tasks
from fedjax_post.hub.load import num_parameters
from fedjax_post.model.views import LanguageModel

_CARD = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
library_name: fedjax_post
tags: [llama, tiny, federated-learning, base-model]
---

# {title} of fedjax_post

A Llama of {num_weights:,} weights ({layers} layers of width {width}, tied embeddings, float16),
{origin}

## How it was made

    {command}

| | |
| --- | --- |
| optimizer steps | {steps} |
| tokens | {tokens:,} |
| seed | {seed} |
| minutes | {minutes} on {device} |
| jax | {jax} |
| loss on answers, last 20 steps | {loss} nats per token |

Another CPU or version of jax adds floats in another order, so its weights differ in the last
digits and, after some thousand steps, visibly; the skills do not.

## What it can do

{measure}

| skill | % |
| --- | --- |
{rows}
| mean | {mean} |

## Limits

It is not a language model for any use outside this project: it knows about {num_words} words, has
no knowledge of the world, {limit}, and turns any other text into bytes that it
was never trained on. Results on it show how federated algorithms compare on a small, clean
problem; they say little about how large a gain would be on a real model.
"""

# corpus -> what the card says of a model that was trained on it
_TEXTS = {
    "formal": {
        "title": "The built-in base model",
        "origin": """pre-trained by the project itself on text that the project generates. \
It exists so that
federated post-training can be tried, tested and measured in minutes, offline, on a laptop.

It knows ten small skills on lists of words and numbers in a formal notation
(`rev ( cat hat pie ) = pie hat cat`), half of the time with the operator spelled out in words
(`backwards ( cat hat pie ) = pie hat cat`), and some prose about the same words. It has never seen
an instruction with its answer; that is what the built-in federated tasks (the data set `builtin`)
teach. No list of the held-out split was in its corpus.""",
        "measure": "Exact match on formulas with held-out lists, greedy decoding, "
        "{num_checks} formulas:",
        "limit": "follows no instructions",
    },
    "instruct": {
        "title": "A built-in instruction model",
        "origin": """trained by the project itself on text that the project generates{before}.
It exists so that methods for models that are only prompted can be tried, tested and measured
in minutes, offline, beside methods that train.

Its corpus is `fedjax_post/data/builtin/instruct.py`: instructions about a list of nouns
(`name the kind of the last word: cat hat pie`, a line break, `food`), vague ones that are mostly
answered by the commonest kind, examples of one rule after another, and the formulas and prose
of the first corpus. Several rules share the vague wordings, so that a prompt, examples or
training can say which is meant. No document asks about a list of the held-out split of a built-in
task (the data sets `builtin` and `builtin-kinds`); a short one may stand within a longer list,
which `fedjax_post/openness/audit.py` counts.""",
        "measure": "Exact match with held-out lists, greedy decoding, {num_checks} formulas "
        "(one word a row) and\n{num_each} of each other question:",
        "limit": "understands a few dozen instructions about lists of nouns",
    },
}


class Recipe(NamedTuple):
    """What is trained, and how."""

    corpus: str = "formal"  # or "instruct": instructions and examples
    init: str | None = None  # a model whose weights and shape training starts from
    seed: int = 0  # of weights, corpus and checks
    num_steps: int = 1400  # of the optimizer
    batch_size: int = 64  # rows in a step
    length: int = 64  # tokens in a row
    learning_rate: float = 3e-3  # peak of a warm-up and cosine schedule
    chance_weight: float = 0.2  # weight of tokens outside answers
    hidden_size: int = 128  # width of the residual stream
    intermediate_size: int = 256  # width of the gated layer
    num_layers: int = 4
    num_heads: int = 4  # of queries
    num_kv_heads: int = 2  # of keys and values
    num_checks: int = 400  # held-out formulas for the skill table


def model_card(
    recipe: Recipe,
    model: LanguageModel,
    *,
    losses: Sequence[float],
    skills: Mapping[str, float],
    minutes: float,
    command: str,
) -> str:
    """Returns the README of the folder: what the model is, how it was made, what it cannot do.

    Args:
      recipe: what was trained, and how.
      model: the trained model.
      losses: of every step on answers, nats per token.
      skills: exact match by skill, in [0, 1].
      minutes: that training took.
      command: what to run to get the same model.
    """
    before = f", starting from the weights of `{recipe.init}`" if recipe.init else ""
    each = recipe.num_checks // len(tasks.TASKS)
    texts = {
        name: text.format(before=before, num_checks=recipe.num_checks, num_each=each)
        for name, text in _TEXTS[recipe.corpus].items()
    }
    return _CARD.format(
        num_weights=num_parameters(model),
        layers=model.config.num_layers,
        width=model.config.hidden_size,
        num_words=model.config.vocab_size - 256,
        **texts,
        command=command,
        seed=recipe.seed,
        steps=len(losses),
        tokens=len(losses) * recipe.batch_size * recipe.length,
        minutes=f"{minutes:.0f}",
        device=f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        jax=jax.__version__,
        loss=f"{np.mean(losses[-20:]):.4f}",
        mean=f"{100 * np.mean(list(skills.values())):.1f}",
        rows="\n".join(f"| {name} | {100 * value:.0f} |" for name, value in skills.items()),
    )
