"""The language model: one decoder for all families, and views that restrict its use."""

from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.emulator import emulate
from fedjax_post.model.generate import Sampling, generate, sample
from fedjax_post.model.quantize import dequantize_model, quantize_model
from fedjax_post.model.views import LanguageModel, init_model
