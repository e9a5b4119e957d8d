"""The configuration of the decoder: switches that make it Llama, Qwen, Gemma, GPT-2 or others.

Families differ only in about two dozen switches, so there is one decoder and one table of
families (`hub/families.py`) instead of one file per family. Every field is static: it
determines the compiled program.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

NORMS = ("rms", "rms_plus_one", "layer", "layer_no_bias", "layer_plain")
NORM_PLACES = ("pre", "post", "sandwich")
QK_NORMS = ("none", "head", "flat")
FUSED_QKV = ("none", "blocks", "heads")
# Matrices in bfloat16; the residual stream, all sums and all else in float32
MIXED = "mixed"
MATRICES = ("kernel", "embedding", "positions", "head")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions of one kind of layer.

    `kind` is one of "default", "linear", "llama3", "yarn"; the fields after it are those of
    published configs and are used only by the kinds that need them.
    """

    theta: float = 10000.0
    fraction: float = 1.0  # share of head_dim that is rotated, from the front
    kind: str = "default"
    factor: float = 1.0  # context stretch
    original_positions: int = 0  # context length before the stretch, tokens
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn: factor on cos and sin; None is the paper's
    truncate: bool = True  # yarn: round the correction range to whole dimensions


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The configuration of one decoder-only language model; the defaults are Llama's.

    >>> from fedjax_post.model.config import DecoderConfig
    >>> config = DecoderConfig(
    ...     vocab_size=32, hidden_size=16, intermediate_size=24, num_layers=2,
    ...     num_heads=4, num_kv_heads=2, head_dim=4, max_positions=64,
    ... )
    >>> config.softmax_scale, config.kv_size
    (0.5, 8)

    Raises:
      ValueError: if fields contradict each other or name an unknown switch.
    """

    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_layers: int
    num_heads: int  # N
    num_kv_heads: int  # K, divides N
    head_dim: int  # H
    max_positions: int  # context length, tokens
    bos_id: int | None = None  # a prompt is inserted after this token; None: before the row
    model_type: str = "llama"  # row of the family table
    # Of weights and of the operands of products, or MIXED; norms, softmax and logits are float32
    dtype: str = "float32"
    activation: str = "silu"
    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_place: str = "pre"
    final_norm: bool = True
    tied_head: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    gated_mlp: bool = True
    fused_qkv: str = "none"  # one projection: [q | k | v], or [q k v] per head
    fused_gate_up: bool = False
    parallel_residual: bool = False
    qk_norm: str = "none"  # per head, or over all heads at once
    clip_qkv: float | None = None
    rope: Rope | None = Rope()  # of global layers; None: no rotary positions
    sliding_rope: Rope | None = None  # of sliding layers; None: the same as `rope`
    learned_positions: bool = False
    sliding_window: int | None = None  # tokens that a sliding layer sees, itself included
    sliding_layers: tuple[int, ...] = ()
    no_rope_layers: tuple[int, ...] = ()
    query_scale: float | None = None  # on q k'; None is head_dim ** -0.5
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float | None = None
    # Keep only the residual stream of each layer, recompute the rest in the backward pass: a
    # fifth of the memory, a fifth more time
    remat: bool = False
    source: str = dataclasses.field(default="", repr=False)  # the text of the published config.json

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}"
            )
        for name, known in (
            ("norm", NORMS),
            ("norm_place", NORM_PLACES),
            ("qk_norm", QK_NORMS),
            ("fused_qkv", FUSED_QKV),
            ("activation", ACTIVATIONS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if self.sliding_layers and not self.sliding_window:
            raise ValueError("sliding_layers need a sliding_window; set its length in tokens")

    @property
    def matrix_dtype(self) -> str:
        """The dtype of matrices, and of the operands of their products."""
        return "bfloat16" if self.dtype == MIXED else self.dtype

    @property
    def activation_dtype(self) -> str:
        """The dtype of the residual stream, and of all weights that are not matrices."""
        return "float32" if self.dtype == MIXED else self.dtype

    def stored_dtype(self, name: str) -> str:
        """Returns the dtype in which the weight of this name is held, such as "kernel"."""
        return self.matrix_dtype if name in MATRICES else self.activation_dtype

    @property
    def softmax_scale(self) -> float:
        """The factor on q k', by default 1 / sqrt(head_dim)."""
        return 1 / math.sqrt(self.head_dim) if self.query_scale is None else self.query_scale

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads (or all value heads) together."""
        return self.num_kv_heads * self.head_dim


def dtype_name(dtype: Any) -> str:
    """Returns the name of a dtype, or "mixed"."""
    return MIXED if isinstance(dtype, str) and dtype == MIXED else jnp.dtype(dtype).name
