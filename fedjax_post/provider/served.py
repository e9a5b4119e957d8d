"""A model on the server side: computes texts and log-probabilities from prompts.

Prompts are padded to a few shapes, so that a request of a new length rarely needs a new
compilation.
"""

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_post.hub import prompt
from fedjax_post.hub.load import load_model
from fedjax_post.hub.peft import load_adapter
from fedjax_post.hub.tokenizer import check_tokenizer, load_tokenizer, pad_id_of
from fedjax_post.model.generate import generate
from fedjax_post.model.views import LanguageModel
from fedjax_post.provider.codec import decode_after, token_texts
from fedjax_post.provider.programs import Programs

PyTree = Any
MOST_ROWS = 16  # prompts in a batch
SHORTEST = 32  # least number of tokens that prompts are padded to, doubled as needed


class Served(NamedTuple):
    """A model with its tokenizer and its name in answers."""

    name: str
    model: LanguageModel
    tokenizer: Any
    params: PyTree  # an adapter, or {}
    fingerprint: str  # of the model's configuration and weights
    token_texts: Sequence[str]  # name of every token in log-probabilities
    longest: int  # characters of the longest token
    programs: Programs

    @property
    def context(self) -> int:
        """Maximum number of tokens of a prompt and its answer together."""
        return self.model.config.max_positions - self.model.prompt_length(self.params)


class Completion(NamedTuple):
    """A model's answer to a prompt."""

    text: str
    ended: bool  # by an end-of-sequence token or a stop text; else by the maximum length
    num_tokens: int
    tokens: list[str]  # names, if log-probabilities are requested, else []
    log_probs: list[float]  # of the tokens
    top: list[dict[str, float]]  # log-probabilities of the most likely tokens at each position


def load_served(name_or_path: str, *, adapter: str | None = None, dtype: str = "float32") -> Served:
    """Returns a model that is ready to be served under the last part of its name.

    Args:
      name_or_path: hub name, folder or file, as for `load_model`.
      adapter: folder of a LoRA adapter or of a prompt; None: the model alone.
      dtype: of weights and matrix products.

    Raises:
      FileNotFoundError: if the model or the adapter does not exist.
      ValueError: if files are damaged, or the tokenizer or adapter belongs to another model.

    >>> load_served("builtin").name
    'builtin'
    """
    model, tokenizer = load_model(name_or_path, dtype=dtype), load_tokenizer(name_or_path)
    check_tokenizer(tokenizer, model.config)
    params: PyTree = {}
    if adapter is not None and prompt.is_prompt(adapter):
        params = prompt.load_prompt(adapter, model)
    elif adapter is not None:
        model, params = load_adapter(adapter, model)
    return make_served(Path(name_or_path).name, model, tokenizer, params)


def make_served(name: str, model: LanguageModel, tokenizer: Any, params: PyTree = None) -> Served:
    """Returns a model that is ready to be served.

    Args:
      name: that answers carry.
      model: the model.
      tokenizer: its Hugging Face tokenizer.
      params: of an adapter; None: none.
    """
    params = params or {}
    fingerprint = f"fp_{_checksum(model, params):08x}"
    names = token_texts(tokenizer, range(len(tokenizer)))
    longest = max(map(len, names))
    return Served(name, model, tokenizer, params, fingerprint, names, longest, Programs())


def adapted(served: Served, name: str, model: LanguageModel, params: PyTree) -> Served:
    """Returns a model that is served under another name, with an adapter over the same base.

    Args:
      served: the base.
      name: that answers carry.
      model: the base, prepared for the adapter.
      params: of the adapter.
    """
    fingerprint = f"fp_{_checksum(model, params):08x}"
    return served._replace(name=name, model=model, params=params, fingerprint=fingerprint)


def complete(
    served: Served,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stop: Sequence[str] = (),
    num_top: int | None = None,
) -> list[Completion]:
    """Returns greedy completions of prompts.

    Args:
      served: the model.
      prompts: token ids, at least one each; together with max_tokens within the model's context.
      max_tokens: of each answer, at least 1.
      stop: texts that end an answer and are not part of it.
      num_top: number of log-probabilities at each position; None: none.
    """
    most = served.context - room_of(max_tokens)
    found = []
    for start in range(0, len(prompts), MOST_ROWS):
        part = prompts[start : start + MOST_ROWS]
        width = _width(max(map(len, part)), most)
        rows, mask = _pad_left(part, served.tokenizer, width=width)
        tokens, chosen, top = _answers(served, rows, mask, max_tokens=max_tokens, num_top=num_top)
        for i, asked in enumerate(part):
            place = None if num_top is None else (chosen[i], [t[i] for t in top])
            found.append(_completion(served, asked, tokens[i].tolist(), place, stop))
    return found


def _answers(served, rows, mask, *, max_tokens, num_top):
    """Returns tokens `[B, T]`, and if requested, their and the most likely log-probabilities."""
    tokenizer, room = served.tokenizer, room_of(max_tokens)
    room = min(room, served.context - rows.shape[1])
    ends = {"eos_id": tokenizer.eos_token_id, "pad_id": pad_id_of(tokenizer)}
    if num_top is None or room > 1:
        given = (served.model, served.params, rows, mask)
        tokens = served.programs.run(generate, *given, max_new_tokens=room, **ends)
        if num_top is None:
            return tokens[:, :max_tokens], None, None
    else:
        tokens = None
    size = min(max(room_of(num_top), 1), served.model.config.vocab_size)
    places = (served.model, served.params, rows, mask, tokens)
    tokens, chosen, values, ids = (
        x[:, :max_tokens] for x in served.programs.run(_likely, *places, num_top=size)
    )
    return tokens, chosen, (values[..., :num_top], ids[..., :num_top])


def _likely(model, params, rows, mask, tokens, *, num_top):
    """Returns log-probabilities `[B, T]` of tokens, and `[B, T, num_top]` of the most likely.

    Without tokens, T is 1 and the token is the most likely one. The ids of the most likely tokens
    are returned as well.
    """
    length, number = rows.shape[1], mask.sum(axis=1).astype(jnp.int32)
    given = 1 if tokens is None else tokens.shape[1]
    logits, cache = model.prefill(params, rows, mask=mask, num_slots=length + given)
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    if tokens is None:
        values, ids = jax.lax.top_k(log_probs, num_top)
        return ids[:, :1], values[:, :1], values[:, None], ids[:, None]

    def body(carry, token):
        log_probs, cache, at = carry
        seen = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
        here = jnp.ones((len(token), 1), bool)
        positions = (number + at)[:, None]
        logits, cache = model.step(
            params, token[:, None], positions=positions, mask=here, cache=cache
        )
        after = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        return (after, cache, at + 1), (seen, *jax.lax.top_k(log_probs, num_top))

    _, places = jax.lax.scan(body, (log_probs, cache, jnp.int32(0)), tokens.T)
    return tokens, *(jnp.moveaxis(x, 0, 1) for x in places)


def _completion(served, asked, tokens, place, stop) -> Completion:
    tokenizer, end = served.tokenizer, served.tokenizer.eos_token_id
    ended = end in tokens
    num_tokens = tokens.index(end) + 1 if ended else len(tokens)
    answer = tokens[: num_tokens - ended]
    text = decode_after(tokenizer, asked, answer)
    cuts = [text.find(word) for word in stop if word in text]
    if cuts:
        text, ended = text[: min(cuts)], True
        reached = (decode_after(tokenizer, asked, answer[:n]) for n in range(len(answer) + 1))
        num_tokens = next(n for n, text in enumerate(reached) if any(w in text for w in stop))
    if place is None:
        return Completion(text, ended, num_tokens, [], [], [])
    chosen, (values, ids) = place
    names = [served.token_texts[token] for token in tokens[:num_tokens]]
    top = [_by_name(served.token_texts, *pair) for pair in zip(values, ids, strict=True)]
    top = top[:num_tokens]
    return Completion(text, ended, num_tokens, names, chosen[:num_tokens].tolist(), top)


def _by_name(texts, values, ids) -> dict[str, float]:
    """Returns log-probabilities by name; for equal names, that of the most likely token."""
    named: dict[str, float] = {}
    for value, token in zip(values.tolist(), ids.tolist(), strict=True):
        if math.isfinite(value) and token < len(texts):
            named.setdefault(texts[token], value)
    return named


def _pad_left(prompts, tokenizer, *, width):
    rows = np.full((room_of(len(prompts)), width), pad_id_of(tokenizer), np.int32)
    mask = np.zeros(rows.shape, bool)
    for i, asked in enumerate(prompts):
        rows[i, width - len(asked) :] = asked
        mask[i, width - len(asked) :] = True
    mask[len(prompts) :, -1] = True  # a row of padding alone would have nothing to attend to
    return jnp.asarray(rows), jnp.asarray(mask)


def room_of(count: int) -> int:
    """Returns the next power of two, to which sizes of programs are rounded up."""
    return 1 << max(0, count - 1).bit_length()


def _width(longest: int, most: int) -> int:
    """Returns the number of tokens that prompts are padded to."""
    return max(longest, min(most, max(SHORTEST, room_of(longest))))


def _checksum(model, params) -> int:
    leaves = jax.tree.leaves((model, params))
    numbers = [float(jnp.sum(jnp.abs(leaf.astype(jnp.float32)))) for leaf in leaves]
    return zlib.crc32(repr((model.config, numbers)).encode())
