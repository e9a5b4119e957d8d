"""Writes the golden numbers of every family, from `transformers` and `peft` with PyTorch.

Run `python tests/model/golden/make.py [case ...]` with the extra [oracle] installed,
after a family or a case was added. Each case is a small npz: its config.json, token
ids, float32 logits, a greedy continuation of 64 tokens whose best two logits are
never closer than 1e-3, and the gradient of the mean loss with respect to the LoRA
factors. Weights are not stored: `seeded_tensors` makes them from their names.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model

from fedjax_post.testing.models import seeded_tensors

HERE = Path(__file__).parent
SEED = 7
GAP = 1e-3
SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT2 = {
    "vocab_size": 40,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": None,
    "eos_token_id": None,
}


def scaled(kind, **fields):
    """Rotary parameters in the current spelling."""
    return {"rope_type": kind, "rope_theta": 1000.0, **fields}


YARN = scaled("yarn", factor=4.0, original_max_position_embeddings=32)
LLAMA3 = scaled(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
SLIDING, GLOBAL = "sliding_attention", "full_attention"
CASES = {
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_linear": (
        "llama",
        {"num_key_value_heads": 4, "rope_parameters": scaled("linear", factor=2.0)},
    ),
    "llama_llama3": ("llama", {"head_dim": 8, "rope_parameters": LLAMA3}),
    "llama_yarn": ("llama", {"attention_bias": True, "mlp_bias": True, "rope_parameters": YARN}),
    "mistral_window": ("mistral", {"sliding_window": 5}),
    "mistral_global": ("mistral", {"sliding_window": None, "head_dim": 6}),
    "mistral_tied": ("mistral", {"sliding_window": 40, "tie_word_embeddings": True}),
    "smollm3_default": ("smollm3", {"num_hidden_layers": 5}),
    "smollm3_window": (
        "smollm3",
        {"no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 4},
    ),
    "smollm3_bias": (
        "smollm3",
        {"no_rope_layers": [1, 0], "attention_bias": True, "tie_word_embeddings": False},
    ),
    "qwen2_tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2_window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen2_yarn": ("qwen2", {"num_key_value_heads": 1, "rope_parameters": YARN}),
    "qwen3_tied": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen3_bias": ("qwen3", {"head_dim": 4, "attention_bias": True}),
    "qwen3_yarn": ("qwen3", {"head_dim": 6, "num_key_value_heads": 4, "rope_parameters": YARN}),
    "gemma2_default": ("gemma2", {"head_dim": 8, "sliding_window": 5, "num_hidden_layers": 3}),
    "gemma2_caps": (
        "gemma2",
        {
            "head_dim": 4,
            "sliding_window": 64,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 9,
        },
    ),
    "gemma2_uncapped": (
        "gemma2",
        {
            "head_dim": 4,
            "sliding_window": 3,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": [GLOBAL, SLIDING],
        },
    ),
    "gemma3_text_default": (
        "gemma3_text",
        {"head_dim": 8, "sliding_window": 5, "num_hidden_layers": 7},
    ),
    "gemma3_text_linear": (
        "gemma3_text",
        {
            "head_dim": 4,
            "sliding_window": 6,
            "layer_types": [GLOBAL, SLIDING],
            "rope_parameters": {GLOBAL: scaled("linear", factor=8.0), SLIDING: scaled("default")},
        },
    ),
    "gemma3_text_scalar": (
        "gemma3_text",
        {
            "head_dim": 4,
            "sliding_window": 3,
            "layer_types": [SLIDING, GLOBAL],
            "query_pre_attn_scalar": 7,
            "num_key_value_heads": 1,
        },
    ),
    "olmo_plain": ("olmo", {}),
    "olmo_clip": ("olmo", {"clip_qkv": 0.6, "num_key_value_heads": 4}),
    "olmo_tied": ("olmo", {"tie_word_embeddings": True, "attention_bias": True}),
    "olmo2_plain": ("olmo2", {}),
    "olmo2_heads": ("olmo2", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "olmo2_scaled": ("olmo2", {"attention_bias": True, "rope_parameters": LLAMA3}),
    "phi3_plain": ("phi3", {"num_key_value_heads": 4}),
    "phi3_window": ("phi3", {"sliding_window": 5}),
    "phi3_partial": (
        "phi3",
        {"hidden_size": 32, "rope_parameters": scaled("default", partial_rotary_factor=0.5)},
    ),
    "gpt_neox_parallel": ("gpt_neox", {"num_attention_heads": 2}),
    "gpt_neox_serial": (
        "gpt_neox",
        {
            "use_parallel_residual": False,
            "rope_parameters": scaled("default", partial_rotary_factor=0.5),
        },
    ),
    "gpt_neox_tied": (
        "gpt_neox",
        {
            "tie_word_embeddings": True,
            "attention_bias": False,
            "hidden_act": "gelu_new",
            "rope_parameters": scaled("linear", factor=2.0, partial_rotary_factor=1.0),
        },
    ),
    "gpt2_tied": ("gpt2", {}),
    "gpt2_inner": ("gpt2", {"n_inner": 20, "n_head": 2, "activation_function": "relu"}),
    "gpt2_untied": ("gpt2", {"tie_word_embeddings": False, "n_layer": 3}),
}


def build(kind, changes):
    """A seeded PyTorch model."""
    shape = dict(GPT2 if kind == "gpt2" else SHAPE)
    if kind == "gpt_neox":
        del shape["num_key_value_heads"]
    config = transformers.AutoConfig.for_model(kind, **{**shape, **changes})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    # transformers 5 calls GPT-NeoX's head lm_head in memory and embed_out in its files
    head = "embed_out.weight" if kind == "gpt_neox" else "lm_head.weight"
    shapes = {
        name.replace("lm_head.weight", head): tuple(value.shape)
        for name, value in model.named_parameters()
    }
    tensors = seeded_tensors(shapes, SEED)
    seed_parameters(model, {**tensors, "lm_head.weight": tensors.get(head)})
    return model


def seed_parameters(model, tensors):
    """Overwrites the named parameters."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in tensors:
                value.copy_(torch.from_numpy(tensors[name]))


def greedy(model):
    """A prompt and its 64 greedy tokens, with a clear choice at each."""
    for seed in range(200):
        prompt = np.random.default_rng(seed).integers(0, 40, 4)
        ids = torch.from_numpy(prompt)[None]
        for _ in range(64):
            best = model(ids).logits[0, -1].topk(2)
            if best.values[0] - best.values[1] < GAP:
                break
            ids = torch.cat([ids, best.indices[None, :1]], dim=1)
        else:
            own = model.generate(
                torch.from_numpy(prompt)[None], max_new_tokens=64, do_sample=False, use_cache=True
            )
            if not torch.equal(own, ids):
                raise RuntimeError("transformers' cache and its own logits disagree")
            return ids[0].numpy().astype(np.int16)
    raise RuntimeError("no prompt has a clear greedy continuation")


def gradients(model, ids):
    """The gradient of the mean loss for seeded factors of rank 2 and alpha 3, by sorted name."""
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, target_modules="all-linear"))
    names = {name.replace(".default.", "."): name for name, _ in adapted.named_parameters()}
    names = {short: name for short, name in names.items() if "lora_" in short}
    parameters = dict(adapted.named_parameters())
    shapes = {short: tuple(parameters[name].shape) for short, name in names.items()}
    factors = seeded_tensors(shapes, SEED)
    seed_parameters(adapted, {names[short]: value for short, value in factors.items()})
    logits = adapted(torch.from_numpy(ids)).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), torch.from_numpy(ids)[:, 1:].flatten()
    )
    loss.backward()
    flat = [parameters[names[short]].grad.numpy().ravel() for short in sorted(shapes)]
    return np.concatenate(flat), logits.detach().numpy()


def main():
    """Writes the cases named on the command line, or all."""
    for name in sys.argv[1:] or CASES:
        model = build(*CASES[name])
        ids = np.random.default_rng(1).integers(0, 40, (2, 10))
        with torch.no_grad():
            logits = model(torch.from_numpy(ids)).logits.numpy()
            continuation = greedy(model)
        raw = model.config.to_json_string(use_diff=False)
        raw = {k: v for k, v in json.loads(raw).items() if not k.startswith("transformers_")}
        gradient, adapted = gradients(model, ids)
        np.savez_compressed(
            HERE / f"{name}.npz",
            config=json.dumps(raw),
            ids=ids.astype(np.int16),
            logits=logits,
            adapted=adapted,
            gradient=gradient,
            greedy=continuation,
        )
        print(name, (HERE / f"{name}.npz").stat().st_size, flush=True)


if __name__ == "__main__":
    main()
