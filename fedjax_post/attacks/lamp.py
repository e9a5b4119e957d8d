"""LAMP and TAG: rows whose gradient is like the one that was seen, by optimisation.

Balunovic, Dimitrov, Jovanovic, Vechev, "LAMP: Extracting Text from Gradients with Language Model
Priors", NeurIPS 2022, arXiv:2202.08827: the cosine distance of gradients is minimised over
embeddings, in turn with changes of tokens, scored by that distance and a language model. Deng et
al., "TAG: Gradient Attack on Transformer-based Language Models", EMNLP 2021, arXiv:2103.06819: the
same without changes, for the distance L2 + factor L1.

It needs one local step, and is told what these papers also give their attacks: the number of rows
and their length; here also how many of their last tokens the loss counts.

Deviations: tokens are distributions over the vocabulary, the softmax of what is optimised, because
a decoder's tokens are its targets too; the vocabulary is cut down to the tokens in the span of the
first layer's gradient, where LAMP takes those whose embedding has a gradient; the public base is
the language model; LAMP's changes are swaps and replacements of single tokens; its pull of
embeddings to a mean length is not needed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_post.attacks import evidence
from fedjax_post.attacks.attack import Attack, Guess
from fedjax_post.attacks.dager import NEAR, find_tokens
from fedjax_post.attacks.seen import Public, Sent

PyTree = Any


def lamp(
    *,
    length: int,
    response: int | None = None,
    rows: int = 1,
    steps: int = 400,
    learning_rate: float = 0.1,
    changes: int = 200,
    prior: float = 0.1,
    l1: float | None = None,
) -> Attack:
    """Returns the attack.

    Args:
      length: tokens in each row, the first and the last included.
      response: last tokens of a row that the loss counts; None: all but the first.
      rows: number of rows.
      steps: of Adam, in four parts with changes after each.
      learning_rate: of Adam.
      changes: swaps and replacements of tokens that are tried after each part; 0 for TAG.
      prior: weight of the loss under the public base, nats per token, where changes are judged.
      l1: None for the cosine distance of LAMP; else the factor of TAG's L1 distance.

    Raises:
      ValueError: for numbers out of range.
    """
    response = length - 1 if response is None else response
    for name, value, low in (
        ("length", length, 2),
        ("response", response, 1),
        ("rows", rows, 1),
        ("steps", steps, 4),
        ("changes", changes, 0),
        ("prior", prior, 0),
    ):
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")

    def invert(public: Public, sent: Sent) -> Guess:
        if sent.num_steps != 1:
            return Guess((), f"{sent.num_steps:g} local steps have no single gradient; see utr")
        known = _vocabulary(public, sent)
        objective = lambda scores, weight: distance(
            public, sent, _tokens(public, scores, known), response=response, l1=l1, prior=weight
        )
        key = jax.random.key(0)
        scores = 0.1 * jax.random.normal(key, (rows, length, len(known)))
        tx = optax.adam(optax.cosine_decay_schedule(learning_rate, steps, 0.1))
        begin, state = float(objective(scores, 0.0)), tx.init(scores)

        @jax.jit
        def part(scores, state):
            def step(carry, _):
                scores, state = carry
                grads = jax.grad(objective)(scores, 0.0)
                updates, state = tx.update(grads, state)
                return (optax.apply_updates(scores, updates), state), None

            return jax.lax.scan(step, (scores, state), length=steps // 4)[0]

        judge = jax.jit(lambda scores: objective(_hardened(scores), prior))
        rng = np.random.default_rng(0)
        for _ in range(4):
            scores, state = part(scores, state)
            scores = _change(scores, judge, rng, changes)
        tokens = np.asarray(jnp.argmax(_tokens(public, scores, known), axis=-1))
        numbers: dict[str, Any] = {
            "distance": float(objective(scores, 0.0)),
            "distance_at_start": begin,
            "vocabulary": len(known),
            "told": {"rows": rows, "length": length, "response": response},
        }
        return Guess(tuple(tuple(row.tolist()) for row in tokens), "", numbers)

    return Attack("lamp" if l1 is None else "tag", invert)


def distance(
    public: Public,
    sent: Sent,
    tokens: jax.Array,
    *,
    response: int,
    l1: float | None,
    prior: Any,
) -> jax.Array:
    """Returns how far the gradient of some rows is from the one that was seen, ().

    Args:
      public: of the run.
      sent: a change after one local step.
      tokens: `[rows, length, V]`, distributions over tokens.
      response: last tokens of a row that the loss counts.
      l1: as for `lamp`.
      prior: weight of the rows' loss under the public base, nats per token.
    """
    target = jax.tree.map(lambda x: -np.asarray(x) / public.learning_rate, sent.change)
    gradient = jax.grad(lambda params: _loss(public, params, tokens, response))(sent.start)
    pairs = [
        (found, seen)
        for found, seen in zip(jax.tree.leaves(gradient), jax.tree.leaves(target), strict=True)
        if np.any(seen)
    ]
    if l1 is None:
        far = jnp.stack([1 - _cosine(found, seen) for found, seen in pairs]).mean()
    else:
        gaps = [found - seen for found, seen in pairs]
        far = jnp.stack([jnp.square(x).sum() + l1 * jnp.abs(x).sum() for x in gaps]).sum()
    base = sent.start if "params" in sent.start else {}
    return far + prior * _loss(public, base, tokens, tokens.shape[1] - 1)


def _loss(public, params, tokens, response):
    """Returns the mean loss of the last tokens of each row, where tokens are distributions."""
    model = public.model
    table = model.embed(params, jnp.arange(tokens.shape[-1])[None])[0]
    logits = model.embed_logits(params, jnp.einsum("blv,vd->bld", tokens, table))
    log_probs = jax.nn.log_softmax(logits[:, -response - 1 : -1])
    return -(tokens[:, -response:] * log_probs).sum(-1).mean()


def _cosine(one, other):
    norms = jnp.sqrt(jnp.square(one).sum() * jnp.square(other).sum())
    return (one * other).sum() / jnp.maximum(norms, 1e-20)


def _vocabulary(public: Public, sent: Sent) -> np.ndarray:
    """Returns the tokens that rows may hold: those that the first layer shows, else all."""
    every = np.arange(public.model.config.vocab_size)
    if not evidence.adapted(public, sent):
        return every
    tokens, why, _ = find_tokens(public, sent, threshold=NEAR)
    # The last token of a row has no gradient
    return every if why else np.union1d(tokens, public.eos_id)


def _tokens(public: Public, scores: jax.Array, known: np.ndarray) -> jax.Array:
    """Returns distributions over all tokens; a row's first token is known if all begin with it."""
    size = public.model.config.vocab_size
    tokens = jnp.zeros((*scores.shape[:2], size)).at[..., known].set(jax.nn.softmax(scores))
    bos = public.model.config.bos_id
    if bos not in known:
        return tokens
    return tokens.at[:, 0].set(jax.nn.one_hot(bos, tokens.shape[-1])[None])


def _hardened(scores: jax.Array) -> jax.Array:
    """Returns scores whose softmax is a single token."""
    return 1e3 * jax.nn.one_hot(jnp.argmax(scores, axis=-1), scores.shape[-1])


def _change(scores, judge, rng, changes):
    """Returns the scores after those swaps and replacements of tokens that lower the objective."""
    if not changes:
        return scores
    scores, number = np.array(scores), scores.shape[-1]
    best = float(judge(scores))
    for i in range(changes):
        changed, row = scores.copy(), rng.integers(scores.shape[0])
        one, other = rng.choice(scores.shape[1], 2, replace=False)
        if i % 2:
            changed[row, [one, other]] = scores[row, [other, one]]
        else:
            changed[row, one, rng.integers(number)] = scores[row, one].max() + 1
        if (value := float(judge(changed))) < best:
            scores, best = changed, value
    return jnp.asarray(scores)
