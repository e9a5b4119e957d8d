"""The names of each family's weights in its published files."""

from typing import NamedTuple


class Tensor(NamedTuple):
    """The published tensor of one of our leaves; `{i}` is the layer."""

    name: str
    transposed: bool = False  # stored [out, in], as torch's Linear does


def _linears(ours: str, theirs: str, names: dict[str, str], transposed: bool = True):
    """Returns kernels and biases of linear layers: our name -> theirs, below two prefixes."""
    table = {}
    for name, stored in names.items():
        table[f"{ours}.{name}.kernel"] = Tensor(f"{theirs}.{stored}.weight", transposed)
        table[f"{ours}.{name}.bias"] = Tensor(f"{theirs}.{stored}.bias")
    return table


def _norms(theirs: str, names: dict[str, str]) -> dict[str, Tensor]:
    """Returns scales and biases of norms: our name below "layers" -> theirs."""
    table = {}
    for name, stored in names.items():
        table[f"layers.{name}.scale"] = Tensor(f"{theirs}.{stored}.weight")
        table[f"layers.{name}.bias"] = Tensor(f"{theirs}.{stored}.bias")
    return table


_LAYER = "model.layers.{i}"
_ENDS = {
    "embedding": Tensor("model.embed_tokens.weight"),
    "head": Tensor("lm_head.weight", True),
    "norm.scale": Tensor("model.norm.weight"),
}
_QK_NORMS = {"attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm"}
_SAME = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj")
_SAME_MLP = ("gate_proj", "up_proj", "down_proj", "gate_up_proj")
_LLAMA_LINEARS = {
    **_ENDS,
    **_linears("layers.attention", f"{_LAYER}.self_attn", {name: name for name in _SAME}),
    **_linears("layers.mlp", f"{_LAYER}.mlp", {name: name for name in _SAME_MLP}),
}
LLAMA = {
    **_LLAMA_LINEARS,
    **_norms(_LAYER, {"input_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}),
    **_norms(_LAYER, _QK_NORMS),
}
SANDWICH = {
    **_LLAMA_LINEARS,
    **_norms(
        _LAYER,
        {
            "input_norm": "input_layernorm",
            "attention_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "output_norm": "post_feedforward_layernorm",
            **_QK_NORMS,
        },
    ),
}
_NEOX_LAYER = "gpt_neox.layers.{i}"
NEOX = {
    "embedding": Tensor("gpt_neox.embed_in.weight"),
    "head": Tensor("embed_out.weight", True),
    "norm.scale": Tensor("gpt_neox.final_layer_norm.weight"),
    "norm.bias": Tensor("gpt_neox.final_layer_norm.bias"),
    **_norms(
        _NEOX_LAYER, {"input_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    ),
    **_linears(
        "layers.attention",
        f"{_NEOX_LAYER}.attention",
        {"qkv_proj": "query_key_value", "o_proj": "dense"},
    ),
    **_linears(
        "layers.mlp",
        f"{_NEOX_LAYER}.mlp",
        {"up_proj": "dense_h_to_4h", "down_proj": "dense_4h_to_h"},
    ),
}
_GPT2_LAYER = "transformer.h.{i}"
GPT2 = {
    "embedding": Tensor("transformer.wte.weight"),
    "positions": Tensor("transformer.wpe.weight"),
    "head": Tensor("lm_head.weight", True),
    "norm.scale": Tensor("transformer.ln_f.weight"),
    "norm.bias": Tensor("transformer.ln_f.bias"),
    **_norms(_GPT2_LAYER, {"input_norm": "ln_1", "mlp_norm": "ln_2"}),
    **_linears(
        "layers.attention",
        f"{_GPT2_LAYER}.attn",
        {"qkv_proj": "c_attn", "o_proj": "c_proj"},
        transposed=False,
    ),
    **_linears(
        "layers.mlp",
        f"{_GPT2_LAYER}.mlp",
        {"up_proj": "c_fc", "down_proj": "c_proj"},
        transposed=False,
    ),
}
