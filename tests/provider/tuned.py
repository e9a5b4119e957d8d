"""What tests of fine-tuning share: rows, and a model that is trained on them."""

import json

import jax

from fedjax_post.data.builtin.corpus import build_tokenizer
from fedjax_post.model.views import init_model
from fedjax_post.provider.served import make_served
from fedjax_post.provider.training import Recipe
from fedjax_post.testing.models import tiny_config

ROWS = [
    {"prompt": f"say : {word}\n", "completion": f" {word}"} for word in ("cat", "dog", "hen", "pig")
]
CHAT = {"messages": [{"role": "user", "content": "hen"}, {"role": "assistant", "content": "egg"}]}
RECIPE = Recipe(rank=4, learning_rate=0.01)


def lines(*rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def make_tiny():
    """A provider's model that is trained in seconds."""
    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "num_kv_heads": 1}
    config = tiny_config(vocab_size=len(tokenizer), num_layers=1, max_positions=64, **sizes)
    return make_served("tiny", init_model(config, jax.random.key(0)), tokenizer)
