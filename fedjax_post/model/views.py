"""A language model as a value: frozen variables, a config, and the methods that use them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fedjax_post.core.access import Access, check_call, check_restriction, opaque
from fedjax_post.core.view import Scores, TotalLoss, View
from fedjax_post.model.config import DecoderConfig, dtype_name
from fedjax_post.model.decoder import Decoder
from fedjax_post.model.decoder import score_tokens as score_tokens
from fedjax_post.model.generate import generate
from fedjax_post.model.layers import KeyValues, Memory
from fedjax_post.model.prompted import insert, place_of_prompt, prompt_length
from fedjax_post.model.sealed import Sealed

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values of `S` slots for tokens, of which `slots` are filled."""

    layers: Memory  # of all layers
    positions: Int[Array, "B S"]  # of the token in each slot
    is_real: Array  # bool [B, S]; False for padding and empty slots
    slots: Array  # (), int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LanguageModel(View):
    """A frozen model. `params` of every method is merged over its collections.

    `params` is `{}` for the base model, `{"lora": tree}` for an adapter,
    `{"params": tree}` for full fine-tuning, where the tree may be part of the
    weights, and `{"prompt": tree}` for a prompt that is read with every row, see
    `model/prompted.py`. Only `params` is mapped over clients or differentiated.

    The tier of a view determines the `params` that it accepts:

    | tier | `params` |
    | --- | --- |
    | TEXT, LOGITS | `{}`, or a prompt of tokens |
    | EMBEDDINGS | also a prompt of embeddings |
    | WEIGHTS, GRADIENTS | anything |
    """

    variables: dict[str, PyTree]  # flax collections; leaves [num_layers, ...] below "layers"
    config: DecoderConfig = dataclasses.field(metadata={"static": True})
    lora_dropout: float = dataclasses.field(default=0.0, metadata={"static": True})
    # first layer with an adapter, and the one after the last; None for all layers
    lora_layers: tuple[int, int] | None = dataclasses.field(default=None, metadata={"static": True})
    access: Access = dataclasses.field(default=Access.GRADIENTS, metadata={"static": True})

    def restrict(self, tier: Access) -> "LanguageModel | Sealed":
        """Returns the model with access to `tier` only; below WEIGHTS a tree without leaves."""
        check_restriction(tier, self.access)
        view = dataclasses.replace(self, access=tier)
        return view if Access.READ in tier else Sealed(view)

    def logits(
        self,
        params: PyTree,
        tokens: Int[Array, "B L"],
        *,
        positions: Int[Array, "B L"] | None = None,
        segments: Int[Array, "B L"] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "B L V"]:
        """Returns the logits of the next token after each token, float32.

        A prompt of P tokens is inserted after bos, or at the start of a row without bos. The
        logits are those of the row's own L tokens.

        Args:
          params: merged over the frozen variables.
          tokens: int32; padding on the right needs no mask, since attention is causal.
          positions: int32; by default 0, 1, ... from the start of the sequence or segment.
          segments: int32; a token sees only its own segment. Several sequences in one
            row are numbered 1, 2, ...; padding on the left is a segment of its own.
          key: for dropout; None for evaluation.

        Raises:
          AccessError: if the view grants less than LOGITS, its tier does not allow `params`, or
            it is differentiated below GRADIENTS.
        """
        check_call("logits", Access.LOGITS, self.access, params)
        logits = self._apply(
            params, tokens, method=None, key=key, positions=positions, segments=segments
        )
        return logits if Access.DIFFERENTIATE in self.access else opaque(logits)

    def scores(
        self,
        params: PyTree,
        tokens: Int[Array, "B L"],
        *,
        positions: Int[Array, "B L"] | None = None,
        segments: Int[Array, "B L"] | None = None,
        key: Array | None = None,
    ) -> Scores:
        """Returns the log-probabilities of tokens 1 .. L - 1 in little memory; see `logits`."""
        check_call("scores", Access.LOGITS, self.access, params)
        scores = self._apply(
            params, tokens, method=Decoder.scores, key=key, positions=positions, segments=segments
        )
        if Access.DIFFERENTIATE in self.access:
            return scores
        return scores._replace(log_probs=opaque(scores.log_probs))

    def total_loss(
        self,
        params: PyTree,
        tokens: Int[Array, "B L"],
        loss_mask: Bool[Array, "B L"],
        *,
        targets: Int[Array, "B L"] | None = None,
        positions: Int[Array, "B L"] | None = None,
        segments: Int[Array, "B L"] | None = None,
        key: Array | None = None,
    ) -> TotalLoss:
        """Returns the summed loss of the tokens that `loss_mask` marks, without token 0.

        The head is computed only where it predicts these tokens, forward and backward; see
        `model/token_loss.py`.

        Args:
          params: merged over the frozen variables.
          tokens: int32.
          loss_mask: True for the tokens whose loss is summed.
          targets: int32, what follows each token; `loss_mask` then marks these, token 0 included.
            By default the next token of the row, so that its last token only costs time.
          positions: as for `logits`.
          segments: as for `logits`.
          key: for dropout; None for evaluation.
        """
        check_call("total_loss", Access.LOGITS, self.access, params)
        method = Decoder.total_loss
        where = {"targets": targets, "positions": positions, "segments": segments}
        loss = self._apply(params, tokens, loss_mask, method=method, key=key, **where)
        if Access.DIFFERENTIATE in self.access:
            return loss
        return loss._replace(nats=opaque(loss.nats))

    def embed(self, params: PyTree, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Returns the tokens' input embeddings, in the compute dtype, without a prompt."""
        check_call("embed", Access.EMBEDDINGS, self.access, params)
        embedded = self._apply(params, tokens, method=Decoder.embed)
        return embedded if Access.DIFFERENTIATE in self.access else opaque(embedded)

    def embed_logits(
        self,
        params: PyTree,
        embeddings: Float[Array, "B L D"],
        *,
        positions: Int[Array, "B L"] | None = None,
        segments: Int[Array, "B L"] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "B L V"]:
        """Returns the logits after embeddings of tokens, soft prompts or both.

        A prompt in `params` is not used; it would be among the embeddings.

        Args:
          params: merged over the frozen variables.
          embeddings: any float dtype; converted to the compute dtype.
          positions: as for `logits`.
          segments: as for `logits`.
          key: for dropout; None for evaluation.
        """
        check_call("embed_logits", Access.EMBEDDINGS, self.access, params)
        logits = self._apply(
            params,
            embeddings.astype(self.config.activation_dtype),
            method=Decoder.embed_logits,
            key=key,
            positions=positions,
            segments=segments,
        )
        return logits if Access.DIFFERENTIATE in self.access else opaque(logits)

    def prefill(
        self,
        params: PyTree,
        tokens: Int[Array, "B L"],
        *,
        mask: Array,
        num_slots: int,
        prefix: Int[Array, " F"] | None = None,
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Returns the logits after left-padded prompts, and the cache that holds them.

        Args:
          params: what is merged over the frozen variables.
          tokens: int32, padded on the left.
          mask: bool `[B, L]`, False for padding.
          num_slots: length of the cache, at least L plus the tokens to come; the length of the
            prompt in `params` is added to it.
          prefix: int32, tokens that precede every prompt and are read once for all, together with
            the prompt in `params`; None, or no tokens, for none.
        """
        check_call("generation", Access.LOGITS, self.access, params)
        batch, length = tokens.shape
        config = self.config
        if num_slots < length:
            raise ValueError(f"num_slots={num_slots} must hold the prompt of {length} tokens")
        mask, at, num_prompt = mask.astype(bool), None, self.prompt_length(params)
        shared, num_shared = None, 0
        if prefix is not None and len(prefix):
            every, slots = jnp.ones((1, len(prefix)), bool), len(prefix)
            shared = self.prefill(params, prefix[None], mask=every, num_slots=slots)[1].layers.own
            num_shared = shared.keys.shape[2]
        elif num_prompt:
            at = place_of_prompt(tokens, config.bos_id, is_real=mask)
            mask = insert(mask, jnp.ones(num_prompt, bool), at)
            num_slots += num_prompt
        shape = (config.num_layers, batch, num_slots, config.num_kv_heads, config.head_dim)
        empty = jnp.zeros(shape, config.activation_dtype)
        blank = jnp.zeros((batch, num_slots), jnp.int32)
        memory = Memory(KeyValues(empty, empty), shared)
        cache = Cache(memory, blank, blank > 0, jnp.int32(0))
        positions = num_shared + jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), axis=1) - 1, 0)
        return self._remember(params, tokens, positions=positions, mask=mask, cache=cache, at=at)

    def step(
        self,
        params: PyTree,
        tokens: Int[Array, "B L"],
        *,
        positions: Int[Array, "B L"],
        mask: Array,
        cache: Cache,
    ) -> tuple[Float[Array, "B V"], Cache]:
        """Returns the logits after the last of some new tokens, and the cache with them in it.

        Args:
          params: what is merged over the frozen variables.
          tokens: int32, L is 1 while decoding.
          positions: int32, of the new tokens, without the prefix and the prompt in `params`.
          mask: bool `[B, L]`, False for padding.
          cache: has at least L free slots.
        """
        check_call("generation", Access.LOGITS, self.access, params)
        shared = cache.layers.shared
        before = self.prompt_length(params) if shared is None else shared.keys.shape[2]
        positions = positions + before
        return self._remember(params, tokens, positions=positions, mask=mask, cache=cache)

    def answer(
        self,
        params: PyTree,
        prompts: Int[Array, "B L"],
        prompt_mask: Bool[Array, "B L"],
        *,
        max_new_tokens: int,
        eos_id: int | tuple[int, ...],
        pad_id: int,
        prefix: Int[Array, " F"] | None = None,
    ) -> Int[Array, "B T"]:
        """Returns the greedy continuations of left-padded prompts; all that TEXT grants.

        Args:
          params: merged over the frozen variables.
          prompts: int32, padded on the left.
          prompt_mask: False for padding.
          max_new_tokens: T, the longest continuation.
          eos_id: the tokens that end a continuation.
          pad_id: fills the rest of a row.
          prefix: as for `prefill`.
        """
        check_call("answer", Access.TEXT, self.access, params)
        decoding = dataclasses.replace(self, access=self.access | Access.SCORES)
        return generate(
            decoding,
            params,
            prompts,
            prompt_mask,
            max_new_tokens=max_new_tokens,
            eos_id=eos_id,
            pad_id=pad_id,
            prefix=prefix,
        )

    def next_scores(
        self,
        params: PyTree,
        prompts: Int[Array, "B L"],
        prompt_mask: Bool[Array, "B L"],
        candidates: Int[Array, " A"],
        *,
        prefix: Int[Array, " F"] | None = None,
    ) -> Float[Array, "B A"]:
        """Returns the log-probability of each candidate as the next token, nats, float32.

        Args:
          params: what is merged over the frozen variables.
          prompts: int32, padded on the left.
          prompt_mask: False for padding.
          candidates: int32. Their probabilities are those in the whole vocabulary.
          prefix: as for `prefill`.
        """
        check_call("next_scores", Access.LOGITS, self.access, params)
        slots = prompts.shape[1]
        logits, _ = self.prefill(params, prompts, mask=prompt_mask, num_slots=slots, prefix=prefix)
        return jnp.take(jax.nn.log_softmax(logits, axis=-1), candidates, axis=1)

    def prompt_length(self, params: PyTree) -> int:
        """Returns P, the number of places in the context that the prompt of `params` takes."""
        return prompt_length({**self.variables, **params})

    def _remember(self, params, tokens, *, positions, mask, cache: Cache, at=None):
        """Returns the logits after new tokens and the new cache; a prompt is put at place `at`."""
        length, slots = mask.shape[1], cache.positions.shape[1]
        here = (0, cache.slots)
        is_real = jax.lax.dynamic_update_slice(cache.is_real, mask.astype(bool), here)
        key_positions = jax.lax.dynamic_update_slice(cache.positions, positions, here)
        row = cache.slots + jnp.arange(length)
        column = jnp.arange(slots)
        causal = column[None, :] <= row[:, None]
        # a padding token sees itself, so that its softmax is not over nothing
        visible = is_real[:, None, :] | (column[None, :] == row[:, None])[None]
        logits, new = self._apply(
            params,
            tokens,
            cache.layers,
            method=Decoder.cached_logits,
            positions=positions,
            mask=causal[None] & visible,
            key_positions=key_positions,
            slot=cache.slots,
            at=at,
        )
        own = jax.tree.map(
            lambda old, fresh: jax.lax.dynamic_update_slice(old, fresh, (0, 0, cache.slots, 0, 0)),
            cache.layers.own,
            new,
        )
        layers = cache.layers._replace(own=own)
        if Access.DIFFERENTIATE not in self.access:
            logits, layers = opaque(logits), jax.tree.map(opaque, layers)
        return logits, Cache(layers, key_positions, is_real, cache.slots + length)

    def _apply(self, params, *args, method, key=None, **kwargs):
        decoder = Decoder(self.config, self.lora_dropout, self.lora_layers)
        return _run(decoder, self.variables, params, key, *args, method=method, **kwargs)


def init_model(config: DecoderConfig, key: Array, *, dtype: Any = jnp.float32) -> LanguageModel:
    """Returns a model with random weights, for pretraining and tests.

    Embeddings are normal with deviation 0.02, matrices normal with deviation
    1/sqrt(in), those that write to the residual stream less by sqrt(2 layers).

    Args:
      config: the architecture; its dtype is replaced.
      key: a PRNG key.
      dtype: of weights and matrix products, or "mixed".
    """
    config = dataclasses.replace(config, dtype=dtype_name(dtype))
    return LanguageModel(_init(Decoder(config), key), config)


@functools.partial(jax.jit, static_argnames="decoder")
def _init(decoder, key):
    variables = decoder.init(key, jnp.zeros((1, 1), jnp.int32))
    stored = lambda path, leaf: leaf.astype(decoder.config.stored_dtype(path[-1].key))
    return jax.tree_util.tree_map_with_path(stored, dict(variables))


@functools.partial(jax.jit, static_argnames=("decoder", "method"))
def _run(decoder, frozen, params, key, *args, method, **kwargs):
    """Runs a method in one program, so that a call outside of jit is not run op by op."""
    variables = merge_collections(decoder.for_loop(frozen), params)
    rngs = {"dropout": key} if key is not None and decoder.dropout > 0 else None
    return decoder.apply(variables, *args, rngs=rngs, method=method, **kwargs)


def merge_collections(frozen: PyTree, params: PyTree) -> PyTree:
    """Returns the nested dict `frozen` with the leaves of `params` put over it."""
    if not isinstance(frozen, dict) or not isinstance(params, dict):
        return params
    merged = dict(frozen)
    for name, value in params.items():
        merged[name] = merge_collections(frozen[name], value) if name in frozen else value
    return merged
