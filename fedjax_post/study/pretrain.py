"""Pre-training of a built-in base model on a corpus that is generated in code.

The defaults of `Recipe` are exactly what made `fedjax_post/hub/builtin`. The cards of
`builtin_instruct` and `builtin_small` beside it state their recipes. The result is an ordinary
Hugging Face folder: config, safetensors, tokenizer and model card.
"""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib
from tqdm import trange

from fedjax_post.data.builtin import corpus, instruct, tasks
from fedjax_post.hub.load import load_model, save_model
from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.generate import generate
from fedjax_post.model.views import LanguageModel, init_model
from fedjax_post.study.pretrain_card import Recipe, model_card

_STEPS_PER_CALL = 20
# corpus -> (tokenizer, number of rows, length, seed) -> rows
CORPORA: dict[str, Callable] = {"formal": corpus.packed_rows, "instruct": instruct.packed_rows}


class Pretrained(NamedTuple):
    """What came of a pre-training."""

    skills: dict[str, float]  # exact match on held-out lists, in [0, 1]
    loss: float  # on answers, mean of the last 20 steps, nats per token
    minutes: float  # of training


def pretrain(recipe: Recipe, output_dir: str | Path, *, command: str) -> Pretrained:
    """Trains a model, measures its skills, and writes it as a folder.

    Args:
      recipe: what is trained, and how.
      output_dir: the folder to write; made if it does not exist.
      command: what to run to get the same model, as the card states it.

    Returns:
      The skills of the model as it was written, and what training took.
    """
    start = time.time()
    tokenizer = corpus.build_tokenizer()
    model, losses = train(recipe, tokenizer)
    minutes = (time.time() - start) / 60
    save_model(output_dir, model, dtype="float16")
    tokenizer.save_pretrained(output_dir)
    _add_token_ids(Path(output_dir) / "config.json", tokenizer)
    # measured on what was written, whose weights are rounded to half precision
    skills = skill_table(load_model(str(output_dir)), tokenizer, recipe=recipe)
    card = model_card(recipe, model, losses=losses, skills=skills, minutes=minutes, command=command)
    (Path(output_dir) / "README.md").write_text(card)
    return Pretrained(skills, float(np.mean(losses[-20:])), minutes)


def train(recipe: Recipe, tokenizer: Any) -> tuple[LanguageModel, list[float]]:
    """Returns the trained model and the loss of every step on answers, in nats per token."""
    if recipe.init:
        model = load_model(recipe.init)
    else:
        model = init_model(_config_of(recipe, len(tokenizer)), jax.random.key(recipe.seed))
    tx = _optimizer(recipe)
    weights = model.variables["params"]
    state = tx.init(weights)
    steps = _make_steps(model, tx, recipe.chance_weight)
    losses: list[float] = []
    progress = trange(recipe.num_steps // _STEPS_PER_CALL, desc="pretraining", unit="call")
    for call in progress:
        rows = CORPORA[recipe.corpus](
            tokenizer,
            _STEPS_PER_CALL * recipe.batch_size,
            length=recipe.length,
            seed=f"{recipe.seed} {call}",
        )
        shape = (_STEPS_PER_CALL, recipe.batch_size, recipe.length)
        rows = {name: column.reshape(shape) for name, column in rows.items()}
        weights, state, new = steps(weights, state, rows)
        losses += np.asarray(new).tolist()
        progress.set_postfix(loss=f"{np.mean(losses[-_STEPS_PER_CALL:]):.3f}")
    return LanguageModel({"params": weights}, model.config), losses


def skill_table(model: LanguageModel, tokenizer: Any, *, recipe: Recipe) -> dict[str, float]:
    """Returns the exact match on held-out lists by skill, each in [0, 1].

    Args:
      model: the model to measure; it answers by greedy decoding.
      tokenizer: the model's own.
      recipe: its corpus and seed decide which questions are asked, `num_checks` how many.
    """
    rng = random.Random(f"checks {recipe.seed}")
    skills = list(tasks.TASKS)
    names = [skills[index % len(skills)] for index in range(recipe.num_checks)]
    asked = [corpus.formula(rng, tasks.draw_problem(rng, name, held_out=True)) for name in names]
    if recipe.corpus == "instruct":
        more = [name for name in instruct.CHECKS for _ in range(recipe.num_checks // len(skills))]
        names, asked = names + more, asked + [instruct.check(rng, name) for name in more]
    prompts = tokenizer(
        [question for question, _ in asked], padding=True, padding_side="left", return_tensors="np"
    )
    tokens = generate(
        model,
        {},
        jnp.asarray(prompts["input_ids"], jnp.int32),
        jnp.asarray(prompts["attention_mask"], bool),
        max_new_tokens=12,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
    )
    texts = tokenizer.batch_decode(np.asarray(tokens), skip_special_tokens=True)
    right: dict[str, list[bool]] = {}
    for name, text, (_, answer) in zip(names, texts, asked, strict=True):
        right.setdefault(name, []).append(text.partition("\n")[0] == answer)
    return {name: float(np.mean(values)) for name, values in right.items()}


def _config_of(recipe: Recipe, vocab_size: int) -> DecoderConfig:
    """The architecture: a Llama with tied embeddings."""
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_layers=recipe.num_layers,
        num_heads=recipe.num_heads,
        num_kv_heads=recipe.num_kv_heads,
        head_dim=recipe.hidden_size // recipe.num_heads,
        max_positions=512,
    )


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Muon for matrices, which are leaves [num_layers, in, out], and Adam for the other leaves."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, recipe.num_steps // 20, recipe.num_steps
    )
    return contrib.muon(
        schedule,
        beta=0.95,
        weight_decay=0.01,
        adam_b2=0.98,
        adam_learning_rate=schedule,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=lambda weights: jax.tree.map(
            lambda leaf: contrib.MuonDimensionNumbers(1, 2) if leaf.ndim == 3 else None, weights
        ),
    )


def _make_steps(
    model: LanguageModel, tx: optax.GradientTransformation, chance_weight: float
) -> Callable:
    """A compiled run of several steps: (weights, state, rows) -> (weights, state, losses)."""

    def loss_fn(weights, rows):
        logits = model.logits({"params": weights}, rows["tokens"][:, :-1])
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, rows["tokens"][:, 1:])
        is_answer = rows["is_answer"][:, 1:]
        weight = jnp.where(is_answer, 1.0, chance_weight)
        answer_loss = jnp.where(is_answer, nll, 0).sum() / is_answer.sum()
        return (nll * weight).sum() / weight.sum(), answer_loss

    def step(carry, rows):
        weights, state = carry
        (_, loss), gradient = jax.value_and_grad(loss_fn, has_aux=True)(weights, rows)
        updates, state = tx.update(gradient, state, weights)
        return (optax.apply_updates(weights, updates), state), loss

    @jax.jit
    def steps(weights, state, rows):
        (weights, state), losses = jax.lax.scan(step, (weights, state), rows)
        return weights, state, losses

    return steps


def _add_token_ids(path: Path, tokenizer: Any) -> None:
    """Writes which tokens begin, end and pad a text: other libraries assume those of Llama."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    config = json.loads(path.read_text()) | {name: getattr(tokenizer, name) for name in names}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
