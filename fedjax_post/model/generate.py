"""Generation: prefill and cached decoding in one compiled loop."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedjax_post.core.view import View
from fedjax_post.model.sealed import reach_model

PyTree = Any


class Sampling(NamedTuple):
    """How tokens are drawn and when a row ends; every field is static.

    A row ends after an end token or a stop sequence, which is part of the result, and is padded
    from there on.
    """

    max_new_tokens: int  # T, at least 1
    eos_id: int | tuple[int, ...]
    pad_id: int
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # draw from the k most likely tokens; 0 is all
    top_p: float = 1.0  # draw from the fewest tokens whose probabilities sum to this, (0, 1]
    stop: tuple[tuple[int, ...], ...] = ()  # sequences of tokens


def generate(
    model: View,
    params: PyTree,
    prompts: Int[Array, "B L"],
    prompt_mask: Bool[Array, "B L"],
    *,
    max_new_tokens: int,
    eos_id: int | tuple[int, ...],
    pad_id: int,
    prefix: Int[Array, " F"] | None = None,
) -> Int[Array, "B T"]:
    """Returns the greedy continuations of left-padded prompts.

    A row is padded after its end token; the loop stops when all rows have ended. A row of padding
    alone has no continuation. To use a
    different adapter for each row, apply `jax.vmap` over `params` and batches of one prompt: the
    base weights remain shared.

    >>> import jax.numpy as jnp
    >>> from fedjax_post.model.generate import generate
    >>> from fedjax_post.testing.models import tiny_model
    >>> prompts, mask = jnp.array([[0, 5, 6]]), jnp.array([[False, True, True]])
    >>> generate(tiny_model(), {}, prompts, mask, max_new_tokens=4, eos_id=1, pad_id=0).shape
    (1, 4)

    Args:
      model: the frozen model, or a view that grants LOGITS.
      params: the parameters that are merged over the model's variables.
      prompts: int32, padded on the left.
      prompt_mask: False for padding.
      max_new_tokens: T, at least 1.
      eos_id: the end token or tokens; the result includes the end token.
      pad_id: the token that fills a row after its end.
      prefix: int32, tokens that precede every prompt and are read once for all; None for none.

    Raises:
      ValueError: if T < 1, or the prompt and T together exceed the model's context.
    """
    rule = Sampling(max_new_tokens, eos_id, pad_id, temperature=0.0)
    return sample(model, params, prompts, prompt_mask, rule=rule, prefix=prefix)


def sample(
    model: View,
    params: PyTree,
    prompts: Int[Array, "B L"],
    prompt_mask: Bool[Array, "B L"],
    *,
    rule: Sampling,
    key: Array | None = None,
    prefix: Int[Array, " F"] | None = None,
) -> Int[Array, "B T"]:
    """Returns continuations of left-padded prompts, drawn by `rule`.

    The tokens of a row depend on the key and the row's place in the batch, not on other rows.

    Args:
      model: the frozen model, or a view that grants LOGITS.
      params: the parameters that are merged over the model's variables.
      prompts: int32, padded on the left.
      prompt_mask: False for padding.
      rule: how to draw and when to end.
      key: PRNG key; may be None at temperature 0.
      prefix: as for `generate`.

    Raises:
      ValueError: if a field of `rule` is out of range, the prompt and T together exceed the
        model's context, or a key is needed and missing.
    """
    opened: Any = reach_model(model)
    length = prompts.shape[1] + opened.prompt_length(params)
    check_sampling(rule, opened, length=length + (0 if prefix is None else len(prefix)))
    if key is None and rule.temperature > 0:
        raise ValueError(f"temperature={rule.temperature} draws at random; pass a key")
    if not isinstance(rule.eos_id, int):
        rule = rule._replace(eos_id=tuple(rule.eos_id))
    rule = rule._replace(stop=tuple(tuple(sequence) for sequence in rule.stop))
    key = jax.random.key(0) if key is None else key
    return _decode(opened, params, prompts, prompt_mask, key, prefix, rule=rule)


def check_sampling(rule: Sampling, model: Any, *, length: int) -> None:
    """Raises an error if a sampling rule is out of range or too long for the model.

    Args:
      rule: the rule.
      model: the model, whose context is the limit.
      length: the tokens of the prompt, including that of `params`.

    Raises:
      ValueError: if a field is out of range, or `length` and T together exceed the context.
    """
    if rule.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {rule.max_new_tokens}")
    if length + rule.max_new_tokens > model.config.max_positions:
        raise ValueError(
            f"a prompt of {length} tokens and max_new_tokens={rule.max_new_tokens} exceed the "
            f"model's context of {model.config.max_positions}; shorten one of them"
        )
    if rule.temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {rule.temperature}; 0 is greedy")
    if rule.top_k < 0:
        raise ValueError(f"top_k must be at least 0, got {rule.top_k}; 0 draws from all tokens")
    if not 0 < rule.top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {rule.top_p}; 1 draws from all tokens")
    if any(len(sequence) == 0 for sequence in rule.stop):
        raise ValueError("a stop sequence is empty; leave it out")


def filter_logits(logits: Float[Array, "B V"], rule: Sampling) -> Float[Array, "B V"]:
    """Returns logits divided by the temperature, -inf where top-k and then top-p exclude a token.

    Tokens as likely as the last included one are included too.
    """
    logits = logits / rule.temperature
    if 0 < rule.top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, rule.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if rule.top_p < 1:
        ordered = -jnp.sort(-logits, axis=-1)
        probs = jax.nn.softmax(ordered, axis=-1)
        is_included = jnp.cumsum(probs, axis=-1) - probs < rule.top_p
        least = jnp.min(jnp.where(is_included, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


class _Carry(NamedTuple):
    """The state of the decoding loop."""

    at: Array  # (), int32: tokens drawn so far
    logits: Array  # [B, V], of the next token
    cache: PyTree
    tokens: Array  # [B, T]
    done: Array  # [B], bool


@functools.partial(jax.jit, static_argnames=("rule",))
def _decode(model, params, prompts, prompt_mask, key, prefix, *, rule: Sampling):
    """Runs the compiled part of `sample`."""
    batch, length = prompts.shape
    prompt_mask = prompt_mask.astype(bool)
    num_prompt = prompt_mask.sum(axis=1).astype(jnp.int32)
    keys = jax.random.split(key, batch)
    where = {"num_slots": length + rule.max_new_tokens, "prefix": prefix}
    logits, cache = model.prefill(params, prompts, mask=prompt_mask, **where)
    blank = jnp.full((batch, rule.max_new_tokens), rule.pad_id, jnp.int32)
    here = jnp.ones((batch, 1), bool)

    def more(carry):
        return (carry.at < rule.max_new_tokens) & ~_all_ended(carry.done)

    def body(carry):
        chosen = _draw(carry.logits, keys, carry.at, rule=rule)
        chosen = jnp.where(carry.done, rule.pad_id, chosen)
        tokens = jax.lax.dynamic_update_slice(carry.tokens, chosen[:, None], (0, carry.at))
        done = carry.done | _has_ended(tokens, carry.at, rule=rule)
        logits, cache = model.step(
            params,
            chosen[:, None],
            positions=(num_prompt + carry.at)[:, None],
            mask=here,
            cache=carry.cache,
        )
        return _Carry(carry.at + 1, logits, cache, tokens, done)

    start = _Carry(jnp.int32(0), logits, cache, blank, num_prompt == 0)
    return jax.lax.while_loop(more, body, start).tokens


@jax.custom_batching.custom_vmap
def _all_ended(done: Array) -> Array:
    """Returns whether all rows have ended, under `jax.vmap` those of all mapped calls.

    One condition for all of them keeps the loop's counter single. Otherwise every step would
    scatter into the cache, and select between the old and the new one.
    """
    return done.all()


@_all_ended.def_vmap
def _all_ended_mapped(axis_size, in_batched, done):
    del axis_size, in_batched
    return _all_ended(done), False


def _draw(logits, keys, count, *, rule: Sampling):
    """Returns one token per row, int32."""
    if rule.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, count))(keys)
    drawn = jax.vmap(jax.random.categorical)(keys, filter_logits(logits, rule))
    return drawn.astype(jnp.int32)


def _has_ended(tokens, count, *, rule: Sampling):
    """Returns whether the token at `count` ends a row or completes a stop sequence, bool [B]."""
    ended = jnp.zeros(tokens.shape[0], bool)
    ends = (rule.eos_id,) if isinstance(rule.eos_id, int) else rule.eos_id
    for sequence in (*((end,) for end in ends), *rule.stop):
        if len(sequence) > tokens.shape[1]:
            continue
        first = count - len(sequence) + 1
        last = jax.lax.dynamic_slice_in_dim(tokens, first, len(sequence), axis=1)
        matches = (last == jnp.array(sequence, jnp.int32)[None]).all(axis=1)
        ended = ended | (matches & (first >= 0))
    return ended
