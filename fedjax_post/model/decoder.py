"""One decoder for all families: embedding, layers under one scan, head."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Bool, Float, Int

from fedjax_post.core.view import Scores, TotalLoss
from fedjax_post.model.attention import find_device, fuses
from fedjax_post.model.config import MIXED, DecoderConfig
from fedjax_post.model.depth import run_in_parts
from fedjax_post.model.layers import (
    Attention,
    LayerKind,
    Memory,
    Mlp,
    Norm,
    Where,
    keep_products,
)
from fedjax_post.model.product import bits
from fedjax_post.model.prompted import (
    insert,
    insert_positions,
    place_of_prompt,
    prompt_length,
    segment_positions,
    share,
)
from fedjax_post.model.rope import rope_table
from fedjax_post.model.token_loss import Form, Head, head_logits, total_loss

# Collections that are scanned over layers: their leaves are [num_layers, ...]
COLLECTIONS = ("params", "lora", "lora_scale", "residual", "quantized")

# The most layers that are unrolled on a CPU: there, stacking what the backward pass reads costs a
# tenth of a step, but compiling more layers one by one costs seconds
UNROLLED = 8

# Logits of one row that are in memory at once while tokens are scored: 16 MiB of float32
STRIP = 2**22


class Block(nn.Module):
    """One layer; `norm_place` and `parallel_residual` determine the places of norms and sums."""

    config: DecoderConfig
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, memory: Memory | None, kind: LayerKind, where: Where):
        """Returns the residual stream `[B, L, D]` and the layer's new keys and values."""
        config = self.config

        def norm(name, y, present=True):
            return Norm(config.norm, config.norm_eps, name=name)(y) if present else y

        before = config.norm_place in ("pre", "sandwich")
        after = config.norm_place in ("post", "sandwich")
        attention = Attention(config, self.dropout, name="attention")
        mlp = Mlp(config, self.dropout, name="mlp")
        mixed, new = attention(norm("input_norm", x, before), memory, where, kind)
        mixed = norm("attention_norm", mixed, after)
        if config.parallel_residual:
            return x + mixed + mlp(norm("mlp_norm", x, before)), new
        x = x + mixed
        fed = mlp(norm("mlp_norm", x, before))
        return x + norm("output_norm", fed, after), new


class Decoder(nn.Module):
    """A decoder-only transformer: tokens or embeddings in, float32 logits out."""

    config: DecoderConfig
    dropout: float = 0.0  # of the input of LoRA factors, where an rng "dropout" is given
    lora_layers: tuple[int, int] | None = None  # first adapted layer, and the one after the last

    def setup(self):
        """Defines the submodules; the layers are one block scanned over stacked variables."""
        config = self.config
        block: Any = Block
        if config.remat:
            block = nn.remat(Block, prevent_cse=False)
        elif find_device().platform == "cpu" and not self._unrolls():
            block = nn.remat(Block, prevent_cse=False, policy=keep_products())
        scanned = nn.scan(
            block,
            variable_axes=dict.fromkeys(COLLECTIONS, 0),
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, 0, nn.broadcast),
            out_axes=0,
            length=config.num_layers,
            unroll=config.num_layers if self._unrolls() else 1,
        )
        self.layers = scanned(config, self.dropout)
        normal = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", normal, (config.vocab_size, config.hidden_size))
        if config.learned_positions:
            shape = (config.max_positions, config.hidden_size)
            self.positions = self.param("positions", normal, shape)
        if config.final_norm:
            self.norm = Norm(config.norm, config.norm_eps)
        if not config.tied_head:
            init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
            self.head = self.param("head", init, (config.hidden_size, config.vocab_size))
        if config.head_bias:
            self.head_bias = self.param("head_bias", nn.initializers.zeros, (config.vocab_size,))

    def _unrolls(self) -> bool:
        """Returns whether layers are unrolled, so that no values are stacked for gradients."""
        config = self.config
        few = config.num_layers <= UNROLLED
        return few and not config.remat and find_device().platform == "cpu"

    def for_loop(self, frozen: dict[str, Any]) -> dict[str, Any]:
        """Returns frozen variables in the form in which the loop over layers reads them."""
        layers = frozen.get("params", {}).get("layers")
        if layers is None or self.config.dtype != MIXED or find_device().platform != "cpu":
            return frozen
        narrow = lambda leaf: bits(leaf) if leaf.dtype == jnp.bfloat16 else leaf
        layers = jax.tree.map(narrow, layers)
        return {**frozen, "params": {**frozen["params"], "layers": layers}}

    def __call__(self, tokens, *, positions=None, segments=None):
        """Returns logits `[B, L, V]` of whole sequences; see `LanguageModel.logits`."""
        return self._logits(self._read(tokens, positions, segments))

    def embed(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Returns the tokens' embeddings, in the compute dtype, without positions."""
        embedded = jnp.take(self.embedding, tokens, axis=0).astype(self.config.activation_dtype)
        if self.config.embedding_scale is not None:
            # Gemma rounds the factor to the compute dtype
            embedded = embedded * jnp.asarray(self.config.embedding_scale, embedded.dtype)
        return embedded

    def hidden(self, tokens: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Returns the normalised residual stream, which is the head's input."""
        return self._read(tokens, None, None)

    def embed_logits(self, embedded, *, positions=None, segments=None):
        """Returns logits `[B, L, V]` of embedded sequences.

        Args:
          embedded: `[B, L, D]`, in the compute dtype.
          positions: int32 `[B, L]`; None counts from the start of each sequence or segment.
          segments: int32 `[B, L]`; None is one segment per row.
        """
        return self._logits(self._hidden(embedded, positions, segments))

    def scores(self, tokens, *, positions=None, segments=None) -> "Scores":
        """Returns the scores of tokens 1 .. L - 1, with one strip of logits in memory at a time.

        A strip is recomputed in the backward pass. Short rows of small vocabularies are one
        strip, which is kept.

        Args:
          tokens: int32 `[B, L]`.
          positions: int32 `[B, L]`; None counts from the start of each sequence or segment.
          segments: int32 `[B, L]`; None is one segment per row.
        """
        x = self._read(tokens, positions, segments)[:, :-1]
        targets = tokens[:, 1:]
        batch, length, width = x.shape
        strip = max(1, STRIP // self.config.vocab_size)
        if length <= strip:
            return score_tokens(self._logits(x), targets)
        num_strips = -(-length // strip)
        pad = num_strips * strip - length
        x = jnp.pad(x, ((0, 0), (0, pad), (0, 0))).reshape(batch, num_strips, strip, width)
        targets = jnp.pad(targets, ((0, 0), (0, pad))).reshape(batch, num_strips, strip)
        scores = jax.lax.map(
            jax.checkpoint(lambda part: score_tokens(self._logits(part[0]), part[1])),
            (x.swapaxes(0, 1), targets.swapaxes(0, 1)),
        )
        return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1).reshape(batch, -1)[:, :length], scores)

    def total_loss(
        self, tokens, loss_mask, *, targets=None, positions=None, segments=None
    ) -> TotalLoss:
        """Returns the summed loss of the tokens that `loss_mask` marks, token 0 left out.

        Args:
          tokens: int32 `[B, L]`.
          loss_mask: bool `[B, L]`.
          targets: int32 `[B, L]`, what follows each token, for which `loss_mask` then holds; None
            is the next token of the row.
          positions: int32 `[B, L]`; None counts from the start of each sequence or segment.
          segments: int32 `[B, L]`; None is one segment per row.
        """
        x = self._read(tokens, positions, segments)
        if targets is None:
            x, targets, loss_mask = x[:, :-1], tokens[:, 1:], loss_mask[:, 1:]
        return total_loss(x, targets, loss_mask, *self._head())

    def _read(self, tokens, positions, segments):
        """Returns the head's input at each of the row's tokens, `[B, L, D]`; inserts the prompt."""
        embedded, prompt = self.embed(tokens), self._prompt()
        if prompt is None:
            return self._hidden(embedded, positions, segments)
        if segments is not None:
            return self._read_packed(tokens, prompt, positions, segments)
        total, limit = tokens.shape[1] + len(prompt), self.config.max_positions
        if total > limit:
            raise ValueError(
                f"rows of {tokens.shape[1]} tokens and a prompt of {len(prompt)} exceed the "
                f"model's context of {limit}; shorten `max_length` or the prompt"
            )
        at = place_of_prompt(tokens, self.config.bos_id)
        if positions is not None:
            positions = insert_positions(jnp.broadcast_to(positions, tokens.shape), at, len(prompt))
        x = self._hidden(insert(embedded, prompt, at), positions, None)
        # Token 1 follows the prompt's last token, or the row's first token after the prompt
        return x[:, len(prompt) :]

    def _read_packed(self, tokens, prompt, positions, segments):
        """Returns the same for packed rows, whose segments attend to one prompt; see `share`."""
        if positions is not None:
            raise ValueError(
                "a prompt cannot be inserted into segments with given positions; leave out "
                "'positions', which then count from the start of each segment"
            )
        shared = share(tokens, segments, num=len(prompt), bos_id=self.config.bos_id)
        front = prompt
        if self.config.bos_id is not None:
            bos = self.embed(jnp.full((1, 1), self.config.bos_id, jnp.int32))[0]
            front = jnp.concatenate([bos, prompt, prompt])
        front = jnp.broadcast_to(front[None], (len(tokens), *front.shape))
        embedded = jnp.concatenate([front, self.embed(tokens)], axis=1)
        x = self._attend(embedded, shared.positions, shared.mask)
        # The prompt follows bos, so that what follows bos is predicted at the prompt's last token
        prompt_end = x[:, len(prompt)][:, None]
        return jnp.where(shared.is_bos[..., None], prompt_end, x[:, front.shape[1] :])

    def _prompt(self):
        """Returns the prompt's embeddings `[P, D]` in the compute dtype, or None."""
        if not prompt_length(self.variables):
            return None
        if self.has_variable("prompt", "tokens"):
            return self.embed(jnp.asarray(self.get_variable("prompt", "tokens"))[None])[0]
        prompt: Any = self.get_variable("prompt", "embeddings")
        if prompt.shape[1] != self.config.hidden_size:
            raise ValueError(
                f"the prompt's embeddings have {prompt.shape[1]} numbers and this model's "
                f"{self.config.hidden_size}; make them with add_soft_prompt of this model"
            )
        return prompt.astype(self.config.activation_dtype)

    def _hidden(self, embedded, positions, segments):
        """Returns the normalised residual stream `[B, L, D]`, which is the head's input."""
        length = embedded.shape[1]
        # Windows count positions, but the fused kernel counts places; by default these are equal
        by_place = segments is None and (positions is None or not self.config.sliding_layers)
        fused = by_place and fuses(find_device(), self.config)
        mask = None if fused else jnp.tril(jnp.ones((length, length), bool))[None]
        if positions is None:
            positions = jnp.arange(length, dtype=jnp.int32)[None]
            if segments is not None:
                positions = segment_positions(segments)
        if segments is not None:
            mask = mask & (segments[:, :, None] == segments[:, None, :])
        return self._attend(embedded, positions, mask)

    def _attend(self, embedded, positions, mask):
        """Returns the same for given positions `[B, L]` and mask; None is a causal mask."""
        length = embedded.shape[1]
        if self.config.learned_positions and length > self.config.max_positions:
            raise ValueError(
                f"{length} tokens exceed the {self.config.max_positions} learned positions of this "
                "model; shorten `max_length`"
            )
        where = self._where(mask, positions, positions)
        return self._run(embedded, None, where, positions)[0]

    def cached_logits(
        self, tokens, memory: Memory, *, positions, mask, key_positions, slot, at=None
    ):
        """Returns logits of the last token `[B, V]` and the new keys and values of all layers.

        Args:
          tokens: int32 `[B, L]`, written to the cache slots from `slot` on.
          memory: of all layers; of the `S` slots of its own part, those before `slot` are filled.
          positions: int32 `[B, L]`, positions of the new tokens.
          mask: bool `[B, L, S]`, True where a new token may attend to a slot; all attend to the
            shared part.
          key_positions: int32 `[B, S]`, positions of the slots, including the new ones.
          slot: int32 scalar, the first free slot.
          at: int32 `[B]`, the place before which the prompt is inserted. Its P places are then
            included in the L of `positions` and `mask`. None inserts no prompt.
        """
        embedded, prompt = self.embed(tokens), self._prompt()
        if at is not None and prompt is not None:
            embedded = insert(embedded, prompt, at)
        if memory.shared is not None:
            num = memory.shared.keys.shape[2]
            front = jnp.broadcast_to(jnp.arange(num, dtype=jnp.int32)[None], (len(mask), num))
            mask = jnp.pad(mask, ((0, 0), (0, 0), (num, 0)), constant_values=True)
            key_positions = jnp.concatenate([front, key_positions], axis=1)
        where = self._where(mask, positions, key_positions)._replace(slot=slot)
        x, new = self._run(embedded, memory, where, positions)
        return self._logits(x[:, -1:])[:, 0], new

    def _run(self, embedded, memory: Memory | None, where: Where, positions):
        """Runs the layers; returns the normalised residual stream and the new keys and values."""
        if self.config.learned_positions:
            embedded = embedded + jnp.take(self.positions, positions, axis=0).astype(embedded.dtype)
        layers = self.layers if self.lora_layers is None else self._run_in_parts
        x, new = layers(embedded, memory, layer_kinds(self.config), where)
        return (self.norm(x) if self.config.final_norm else x), new

    def _run_in_parts(self, x, memory, kinds: LayerKind, where: Where):
        """Runs the layers of a model with an adapter on a range of layers only."""
        assert self.lora_layers is not None
        stacked = {k: tree["layers"] for k, tree in self.variables.items() if "layers" in tree}
        drops = self.dropout > 0 and self.has_rng("dropout")
        key = self.make_rng("dropout") if drops else None
        block = Block(self.config, self.dropout, parent=None)
        layers = functools.partial(run_in_parts, block, lora_layers=self.lora_layers, key=key)
        return layers(stacked, x, (memory, kinds), where, unroll=self._unrolls())

    def _where(self, mask: Bool[Array, "B L S"] | None, positions, key_positions) -> Where:
        config = self.config
        sliding = sliding_rope = rope = None
        if config.sliding_layers and mask is not None:
            distance = positions[:, :, None] - key_positions[:, None, :]
            sliding = (mask & (distance < config.sliding_window))[:, None]
        if config.rope is not None:
            rope = rope_table(config.rope, config.head_dim, positions=positions)
        if config.sliding_rope is not None:
            sliding_rope = rope_table(config.sliding_rope, config.head_dim, positions=positions)
        return Where(None if mask is None else mask[:, None], sliding, rope, sliding_rope, None)

    def _logits(self, x):
        """Returns the logits, summed in float32."""
        return head_logits(x, *self._head())

    def _head(self):
        """Returns the head's weights in the dtype of the products, and its form."""
        config = self.config
        kernel = self.embedding if config.tied_head else self.head
        bias = self.head_bias if config.head_bias else None
        form = Form(config.tied_head, config.logit_softcap, config.dtype == MIXED)
        return Head(kernel if form.mixed else kernel.astype(config.dtype), bias), form


def layer_kinds(config: DecoderConfig) -> LayerKind:
    """Returns the kind of every layer, bool `[num_layers]`, or None if all layers are equal."""
    layers = range(config.num_layers)
    is_sliding = has_rope = None
    if config.sliding_layers:
        is_sliding = jnp.array([i in config.sliding_layers for i in layers])
    if config.no_rope_layers:
        has_rope = jnp.array([i not in config.no_rope_layers for i in layers])
    return LayerKind(is_sliding, has_rope)


def score_tokens(logits: Float[Array, "B M V"], targets: Int[Array, "B M"]) -> Scores:
    """Returns the scores of targets, given their logits.

    `is_most_likely` compares with the maximum, because an argmax takes ten times as long on a CPU.
    """
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    log_probs = chosen - jax.nn.logsumexp(logits, axis=-1)
    best = jax.lax.stop_gradient(logits).max(axis=-1)
    return Scores(log_probs, jax.lax.stop_gradient(chosen) >= best)


@functools.lru_cache(maxsize=64)
def weight_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every weight by dotted path; those of layers start with num_layers."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    variables = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)
    flat = flatten_dict(dict(variables["params"]), sep=".")
    return {name: leaf.shape for name, leaf in flat.items()}
