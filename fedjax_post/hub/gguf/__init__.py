"""Models of one file in GGUF, the format of llama.cpp: config, tokenizer and weights."""

from fedjax_post.hub.gguf.architectures import config_json, family_entries
from fedjax_post.hub.gguf.container import Gguf, is_gguf, read_gguf
from fedjax_post.hub.gguf.header import header_facts
from fedjax_post.hub.gguf.tokenizer import make_tokenizer
