"""Trains a built-in base model on a corpus generated in code, and writes it as a folder.

    python -m experiments.pretrain --output_dir=/tmp/base

The defaults are exactly what made `fedjax_post/hub/builtin`. The cards of `builtin_instruct`
and `builtin_small` beside it give theirs: `--corpus=instruct` reads instructions and examples,
`--init=builtin` goes on from weights. The folder is an ordinary Hugging Face one: config,
safetensors, tokenizer and model card.
"""

import json
import os
import random
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from optax import contrib
from tqdm import trange

from fedjax_post.data.builtin import corpus, instruct, tasks
from fedjax_post.hub.load import load_model, num_parameters, save_model
from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.generate import generate
from fedjax_post.model.views import LanguageModel, init_model

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", None, "folder to write, made if missing", required=True)
flags.DEFINE_enum("corpus", "formal", ["formal", "instruct"], "what is read")
flags.DEFINE_string("init", None, "a model to go on from, such as builtin; its shape is kept")
flags.DEFINE_integer("seed", 0, "of weights, corpus and checks")
flags.DEFINE_integer("num_steps", 1400, "optimizer steps", lower_bound=1)
flags.DEFINE_integer("batch_size", 64, "rows in a step", lower_bound=1)
flags.DEFINE_integer("length", 64, "tokens in a row", lower_bound=8)
flags.DEFINE_float("learning_rate", 3e-3, "peak of a warm-up and cosine schedule", lower_bound=0)
flags.DEFINE_float("chance_weight", 0.2, "weight of tokens that are no answer", lower_bound=0)
flags.DEFINE_integer("hidden_size", 128, "width of the residual stream", lower_bound=2)
flags.DEFINE_integer("intermediate_size", 256, "width of the gated layer", lower_bound=1)
flags.DEFINE_integer("num_layers", 4, "decoder layers", lower_bound=1)
flags.DEFINE_integer("num_heads", 4, "query heads", lower_bound=1)
flags.DEFINE_integer("num_kv_heads", 2, "key and value heads", lower_bound=1)
flags.DEFINE_integer("num_checks", 400, "held-out formulas for the skill table", lower_bound=1)

_STEPS_PER_CALL = 20

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

It is no language model for any use outside this project: it knows about {num_words} words, has
no knowledge of the world, {limit}, and turns any other text into bytes that it
was never trained on. Results on it say how federated algorithms compare on a small, clean
problem; they say little about how large a gain would be on a real model.
"""

# corpus -> what the card says of a model that read it
_TEXTS = {
    "formal": {
        "title": "The built-in base model",
        "origin": """pre-trained by the project itself on text that the project generates. \
It exists so that
federated post-training can be tried, tested and measured in minutes, offline, on a laptop.

It knows ten small skills on lists of words and numbers in a formal notation
(`rev ( cat hat pie ) = pie hat cat`), half of the time with the operator spelled out in words
(`backwards ( cat hat pie ) = pie hat cat`), and some prose about the same words. It has never seen
an instruction with its answer; that is what the built-in federated tasks
(`--dataset=builtin`) teach. No list of the held-out split was in its corpus.""",
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
of the first corpus. The vague wordings are shared by several rules, so that a prompt, examples or
training can say which is meant. No document asks about a list of the held-out split of a built-in
task (`--dataset=builtin`, `--dataset=builtin-kinds`); a short one may stand within a longer list,
which `fedjax_post/openness/audit.py` counts.""",
        "measure": "Exact match with held-out lists, greedy decoding, {num_checks} formulas "
        "(one word a row) and\n{num_each} of each other question:",
        "limit": "understands a few dozen instructions about lists of nouns",
    },
}


def config_from_flags(vocab_size: int) -> DecoderConfig:
    """The architecture that the flags describe: a Llama with tied embeddings."""
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=FLAGS.hidden_size,
        intermediate_size=FLAGS.intermediate_size,
        num_layers=FLAGS.num_layers,
        num_heads=FLAGS.num_heads,
        num_kv_heads=FLAGS.num_kv_heads,
        head_dim=FLAGS.hidden_size // FLAGS.num_heads,
        max_positions=512,
    )


def make_steps(model: LanguageModel, tx: optax.GradientTransformation):
    """A compiled run of several steps: (weights, state, rows) -> (weights, state, losses)."""

    def loss_fn(weights, rows):
        logits = model.logits({"params": weights}, rows["tokens"][:, :-1])
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, rows["tokens"][:, 1:])
        is_answer = rows["is_answer"][:, 1:]
        weight = jnp.where(is_answer, 1.0, FLAGS.chance_weight)
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


def train(tokenizer) -> tuple[LanguageModel, list[float]]:
    """The trained model and the loss of every step on answers, in nats per token."""
    packed_rows = {"formal": corpus.packed_rows, "instruct": instruct.packed_rows}[FLAGS.corpus]
    if FLAGS.init:
        model = load_model(FLAGS.init)
    else:
        model = init_model(config_from_flags(len(tokenizer)), jax.random.key(FLAGS.seed))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, FLAGS.learning_rate, FLAGS.num_steps // 20, FLAGS.num_steps
    )
    # a matrix [num_layers, in, out] is a stack over which Muon maps; the rest is Adam's
    tx = contrib.muon(
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
    weights = model.variables["params"]
    state = tx.init(weights)
    steps = make_steps(model, tx)
    losses: list[float] = []
    progress = trange(FLAGS.num_steps // _STEPS_PER_CALL, desc="pretraining", unit="call")
    for call in progress:
        rows = packed_rows(
            tokenizer,
            _STEPS_PER_CALL * FLAGS.batch_size,
            length=FLAGS.length,
            seed=f"{FLAGS.seed} {call}",
        )
        shape = (_STEPS_PER_CALL, FLAGS.batch_size, FLAGS.length)
        rows = {name: column.reshape(shape) for name, column in rows.items()}
        weights, state, new = steps(weights, state, rows)
        losses += np.asarray(new).tolist()
        progress.set_postfix(loss=f"{np.mean(losses[-_STEPS_PER_CALL:]):.3f}")
    return LanguageModel({"params": weights}, model.config), losses


def skill_table(model: LanguageModel, tokenizer) -> dict[str, float]:
    """Exact match on held-out lists by skill, each in [0, 1]."""
    rng = random.Random(f"checks {FLAGS.seed}")
    skills = list(tasks.TASKS)
    names = [skills[index % len(skills)] for index in range(FLAGS.num_checks)]
    asked = [corpus.formula(rng, tasks.draw_problem(rng, name, held_out=True)) for name in names]
    if FLAGS.corpus == "instruct":
        more = [name for name in instruct.CHECKS for _ in range(FLAGS.num_checks // len(skills))]
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


def model_card(model: LanguageModel, *, losses: list[float], table: dict, minutes: float) -> str:
    """The README of the folder: what the model is, how it was made, what it cannot do."""
    command = " ".join(
        [f"python -m experiments.pretrain --output_dir={FLAGS.output_dir}"]
        + [f"--{flag.name}={flag.value}" for flag in _changed_flags()]
    )
    before = f", going on from the weights of `{FLAGS.init}`" if FLAGS.init else ""
    each = FLAGS.num_checks // len(tasks.TASKS)
    texts = {
        name: text.format(before=before, num_checks=FLAGS.num_checks, num_each=each)
        for name, text in _TEXTS[FLAGS.corpus].items()
    }
    return _CARD.format(
        num_weights=num_parameters(model),
        layers=model.config.num_layers,
        width=model.config.hidden_size,
        num_words=model.config.vocab_size - 256,
        **texts,
        command=command,
        seed=FLAGS.seed,
        steps=len(losses),
        tokens=len(losses) * FLAGS.batch_size * FLAGS.length,
        minutes=f"{minutes:.0f}",
        device=f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        jax=jax.__version__,
        loss=f"{np.mean(losses[-20:]):.4f}",
        mean=f"{100 * np.mean(list(table.values())):.1f}",
        rows="\n".join(f"| {name} | {100 * value:.0f} |" for name, value in table.items()),
    )


def _changed_flags() -> list:
    """The program's own flags whose value is not the default, `output_dir` aside."""
    own = FLAGS.get_key_flags_for_module(sys.argv[0])
    return [f for f in own if f.value != f.default and f.name != "output_dir"]


def _add_token_ids(path: Path, tokenizer) -> None:
    """Tells other libraries, whose defaults are Llama's, which tokens begin, end and pad a text."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    config = json.loads(path.read_text()) | {name: getattr(tokenizer, name) for name in names}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main(argv):
    """Trains, checks, and writes the folder."""
    del argv
    start = time.time()
    tokenizer = corpus.build_tokenizer()
    model, losses = train(tokenizer)
    minutes = (time.time() - start) / 60
    save_model(FLAGS.output_dir, model, dtype="float16")
    tokenizer.save_pretrained(FLAGS.output_dir)
    _add_token_ids(Path(FLAGS.output_dir) / "config.json", tokenizer)
    # what is checked is what was written, rounded to half precision
    table = skill_table(load_model(FLAGS.output_dir), tokenizer)
    card = model_card(model, losses=losses, table=table, minutes=minutes)
    (Path(FLAGS.output_dir) / "README.md").write_text(card)
    for name, value in table.items():
        print(f"{name:10} {100 * value:5.1f} %")
    print(f"loss {np.mean(losses[-20:]):.4f}, {minutes:.1f} minutes, wrote {FLAGS.output_dir}")


if __name__ == "__main__":
    app.run(main)
