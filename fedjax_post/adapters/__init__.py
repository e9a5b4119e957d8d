"""Adapters: trainable parameters as plain trees, and functions of them."""

from fedjax_post.adapters.factors import Factors
from fedjax_post.adapters.lora import add_lora, merge_lora
from fedjax_post.adapters.products import aggregation_error
from fedjax_post.adapters.prompt import add_soft_prompt, text_prompt
from fedjax_post.adapters.steered import steer
from fedjax_post.adapters.telemetry import averaging_error
