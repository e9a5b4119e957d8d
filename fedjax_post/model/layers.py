"""The layers of the decoder: linear layers with adapters, norms, attention and feed-forward."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from fedjax_post.model.attention import attend, attend_causal, attend_grouped
from fedjax_post.model.codes import decode
from fedjax_post.model.config import MIXED, DecoderConfig
from fedjax_post.model.product import product
from fedjax_post.model.rope import rotate

# The name of the products that `keep_products` keeps
KEPT = "product"

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


def keep_products() -> Any:
    """Returns a policy of `jax.checkpoint`: the backward pass computes all but products again.

    In a loop over layers on a CPU, where what is kept is written, read and cleared in memory,
    this takes two fifths of the memory and no more time than keeping everything.
    """
    return jax.checkpoint_policies.save_only_these_names(KEPT)


class KeyValues(NamedTuple):
    """Keys and values of one layer, `[B, S, K, H]`, or of all, `[num_layers, B, S, K, H]`."""

    keys: jax.Array
    values: jax.Array


class Memory(NamedTuple):
    """What new tokens attend to besides themselves, in one layer or, with a first axis, in all."""

    own: KeyValues  # of each row, `[B, S, K, H]`; the slots of the new tokens are among these
    shared: KeyValues | None  # of a prefix that precedes all rows, `[1, F, K, H]`


class Where(NamedTuple):
    """Masks and positions for attention; the same for all layers.

    A mask is True where a query `[L]` may attend to a key `[S]`, a shared prefix before the others;
    None is a causal mask by place, which the fused kernel applies. `sliding` and `sliding_rope` are
    None unless some layers differ from the others.
    """

    mask: Bool[Array, "B 1 L S"] | None
    sliding: Bool[Array, "B 1 L S"] | None
    rope: Float[Array, "2 B L P"] | None
    sliding_rope: Float[Array, "2 B L P"] | None
    slot: Any  # (), int32: the cache slot of the first new key; None without a cache


class LayerKind(NamedTuple):
    """The kind of one layer; a field is None if all layers are equal."""

    is_sliding: jax.Array | None  # (), bool
    has_rope: jax.Array | None  # (), bool


class Linear(nn.Module):
    """Returns `x W + b + x residual + ((drop(x) A) scale) B`; the last two terms are optional.

    Collections: "params" {kernel [in, out], bias [out]}, "residual" {kernel}, "lora"
    {a [in, R], b [R, out]}, "lora_scale" {scale [R]}, and "quantized" {codes, scales} in place
    of the kernel. The base product is independent of the low-rank factors, so that clients
    stacked by vmap share it.
    """

    features: int
    dtype: str
    use_bias: bool = False
    dropout: float = 0.0
    init_scale: float = 1.0

    @nn.compact
    def __call__(self, x):
        """Returns `[B, L, features]`."""
        y = self._dense(x)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(y.dtype)[None, None]
        if self.has_variable("lora", "a"):
            y = y + self._low_rank(x)
        return checkpoint_name(y, KEPT)

    def _dense(self, x):
        """Returns `x W + x residual`, in one product if W is float32, where the sum is precise."""
        kernel = self._kernel(x.shape[-1])
        if not self.has_variable("residual", "kernel"):
            return self._times(x, kernel)
        residual: Any = self.get_variable("residual", "kernel")
        if self.dtype == "float32":
            return x @ (kernel + residual)
        return self._times(x, kernel) + self._times(x, residual)

    def _times(self, x, kernel):
        """Returns x times a matrix, in the dtype of x."""
        if self.dtype == MIXED:
            return product(x, kernel)
        return x @ kernel.astype(self.dtype)

    def _kernel(self, size_in):
        """Returns the base weights `[in, features]`, decoded if needed."""
        if not self.has_variable("quantized", "codes"):
            init = nn.initializers.variance_scaling(self.init_scale, "fan_in", "normal")
            return self.param("kernel", init, (size_in, self.features))
        if self.has_variable("params", "kernel"):
            raise ValueError(
                f"params train the weights of {self.name}, which are quantized; "
                "train an adapter, or load the model unquantized"
            )
        codes: Any = self.get_variable("quantized", "codes")
        scales: Any = self.get_variable("quantized", "scales")
        return decode(codes, scales, "bfloat16" if self.dtype == MIXED else self.dtype)

    def _low_rank(self, x):
        """Returns the adapter's product; float32 factors are cast to the dtype of `x` here."""
        if not self.has_variable("lora_scale", "scale"):
            raise ValueError(
                f"params adapt {self.name}, but the model has no lora_scale for it; "
                "pass the model that add_lora returned"
            )
        if self.dropout > 0 and self.has_rng("dropout"):
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.dropout, x.shape)
            x = jnp.where(keep, x / (1 - self.dropout), 0).astype(x.dtype)
        a: Any = self.get_variable("lora", "a").astype(x.dtype)
        b: Any = self.get_variable("lora", "b").astype(x.dtype)
        scale: Any = self.get_variable("lora_scale", "scale").astype(x.dtype)
        # One axis of tokens, and A transposed: for the gradients of both factors XLA then need not
        # transpose a wide operand
        flat, a_t = x.reshape(-1, x.shape[-1]), jax.lax.optimization_barrier(a.T)
        inner = jax.lax.dot_general(flat, a_t, (((1,), (1,)), ((), ())))
        inner = checkpoint_name(inner, KEPT)
        return ((inner * scale[None]) @ b).reshape(*x.shape[:-1], -1)


class Norm(nn.Module):
    """Normalises the last axis in float32: root mean square or layer norm, depending on `kind`."""

    kind: str
    eps: float

    @nn.compact
    def __call__(self, x):
        """Returns `x` normalised, in the dtype of `x`."""
        wide = x.astype(jnp.float32)
        if self.kind.startswith("layer"):
            wide = wide - wide.mean(-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
        shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        if self.kind == "layer_plain":
            return wide.astype(x.dtype)
        plus_one = self.kind == "rms_plus_one"
        init = nn.initializers.zeros if plus_one else nn.initializers.ones
        scale = self.param("scale", init, x.shape[-1:]).astype(jnp.float32).reshape(shape)
        wide = wide * (1 + scale if plus_one else scale)
        if self.kind == "layer":
            bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
            wide = wide + bias.astype(jnp.float32).reshape(shape).reshape(shape)
        return wide.astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions, masks, a cache and a shared prefix."""

    config: DecoderConfig
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, memory: Memory | None, where: Where, kind: LayerKind):
        """Returns the output `[B, L, D]`, and the new keys and values, None without a cache."""
        config = self.config
        q, k, v = self._project(x)
        q, k = _rotate_both(q, k, where, kind)
        new = shared = None
        if memory is not None:
            (keys, values), shared = memory
            new = KeyValues(k.astype(keys.dtype), v.astype(values.dtype))
            at = (0, where.slot, 0, 0)
            k = jax.lax.dynamic_update_slice(keys, new.keys, at)
            v = jax.lax.dynamic_update_slice(values, new.values, at)
        mixed = self._mix(q, KeyValues(k, v), shared, where, kind)
        out = Linear(
            config.hidden_size,
            config.dtype,
            config.out_bias,
            self.dropout,
            init_scale=0.5 / config.num_layers,
            name="o_proj",
        )
        return out(mixed.reshape(*x.shape[:2], config.query_size)), new

    def _mix(self, q, own: KeyValues, shared: KeyValues | None, where: Where, kind: LayerKind):
        """Returns the attention output `[B, L, N, H]`, from the kernel that the mask allows."""
        config, mask = self.config, where.mask
        if mask is None:
            return attend_causal(q, *own, config=config, is_sliding=kind.is_sliding)
        if kind.is_sliding is not None and where.sliding is not None:
            mask = jnp.where(kind.is_sliding, where.sliding, mask)
        how: dict[str, Any] = {
            "mask": mask,
            "scale": config.softmax_scale,
            "cap": config.attention_softcap,
        }
        if shared is not None:
            return attend_grouped(q, *own, shared=shared, **how)
        return attend(q, *own, causal=where.slot is None, **how)

    def _project(self, x):
        """Returns queries `[B, L, N, H]`, keys and values `[B, L, K, H]`, after any qk-norm."""
        config = self.config
        size, kv_size = config.query_size, config.kv_size

        def linear(features, name):
            return Linear(features, config.dtype, config.qkv_bias, self.dropout, name=name)(x)

        if config.fused_qkv == "none":
            q = linear(size, "q_proj")
            k, v = linear(kv_size, "k_proj"), linear(kv_size, "v_proj")
        elif config.fused_qkv == "blocks":
            q, k, v = jnp.split(linear(size + 2 * kv_size, "qkv_proj"), [size, size + kv_size], -1)
        else:
            fused = linear(3 * size, "qkv_proj")
            fused = fused.reshape(*x.shape[:2], config.num_heads, 3, config.head_dim)
            q, k, v = fused[..., 0, :], fused[..., 1, :], fused[..., 2, :]
        if config.clip_qkv is not None:
            q, k, v = (jnp.clip(y, -config.clip_qkv, config.clip_qkv) for y in (q, k, v))
        if config.qk_norm == "flat":
            q = Norm(config.norm, config.norm_eps, name="q_norm")(q)
            k = Norm(config.norm, config.norm_eps, name="k_norm")(k)
        q = q.reshape(*x.shape[:2], config.num_heads, config.head_dim)
        k = k.reshape(*x.shape[:2], config.num_kv_heads, config.head_dim)
        v = v.reshape(*x.shape[:2], config.num_kv_heads, config.head_dim)
        if config.qk_norm == "head":
            q = Norm(config.norm, config.norm_eps, name="q_norm")(q)
            k = Norm(config.norm, config.norm_eps, name="k_norm")(k)
        return q, k, v


def _rotate_both(q, k, where: Where, kind: LayerKind):
    """Returns queries and keys rotated by their positions, as this layer's kind requires."""
    if where.rope is None:
        return q, k
    table = where.rope
    if kind.is_sliding is not None and where.sliding_rope is not None:
        table = jnp.where(kind.is_sliding, where.sliding_rope, table)
    rotated = rotate(q, table), rotate(k, table)
    if kind.has_rope is None:
        return rotated
    return tuple(
        jnp.where(kind.has_rope, new, old) for new, old in zip(rotated, (q, k), strict=True)
    )


class Mlp(nn.Module):
    """The feed-forward part of a layer, gated or plain."""

    config: DecoderConfig
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x):
        """Returns `[B, L, D]`."""
        config = self.config
        activation = ACTIVATIONS[config.activation]

        def linear(features, name, init_scale=1.0):
            return Linear(
                features, config.dtype, config.mlp_bias, self.dropout, init_scale, name=name
            )

        if config.fused_gate_up:
            fused = linear(2 * config.intermediate_size, "gate_up_proj")(x)
            gate, up = jnp.split(fused, 2, axis=-1)
            hidden = activation(gate) * up
        elif config.gated_mlp:
            gate = linear(config.intermediate_size, "gate_proj")(x)
            hidden = activation(gate) * linear(config.intermediate_size, "up_proj")(x)
        else:
            hidden = activation(linear(config.intermediate_size, "up_proj")(x))
        return linear(config.hidden_size, "down_proj", 0.5 / config.num_layers)(hidden)
