"""Hugging Face files in and out: models, tokenizers, adapters."""

from fedjax_post.hub.gguf.write import save_gguf_adapter, save_gguf_model
from fedjax_post.hub.load import load_config, load_model, save_model
from fedjax_post.hub.peft import load_adapter, save_adapter
from fedjax_post.hub.prompt import load_prompt, save_prompt
from fedjax_post.hub.tokenizer import load_tokenizer
