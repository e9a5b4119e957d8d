"""The dtype that suits a model's file and this machine."""

import functools
from pathlib import Path

import jax.numpy as jnp

from fedjax_post.hub import gguf
from fedjax_post.hub.files import BUILTIN, find_folder
from fedjax_post.hub.tensors import read_folder
from fedjax_post.model.attention import find_device
from fedjax_post.model.config import MIXED

# Flags of x86 processors, as Linux reports them
_BFLOAT16 = {"avx512_bf16", "amx_bf16"}
_CPUINFO = Path("/proc/cpuinfo")


def choose_dtype(name_or_path: str | Path, *, quantize: str = "none") -> str:
    """Returns "mixed" where it takes less time and loses little, and "float32" elsewhere.

    It takes less time on a processor that multiplies bfloat16. It loses little if the weights of
    every matrix are stored, or will be held, in at most 16 bits. Built-in models are always
    float32, the dtype of the numbers that are published with them.

    Args:
      name_or_path: as for `load_model`.
      quantize: as for `load_model`.
    """
    if str(name_or_path) in BUILTIN or not multiplies_bfloat16():
        return "float32"
    return MIXED if quantize != "none" or is_narrow(name_or_path) else "float32"


def is_narrow(name_or_path: str | Path) -> bool:
    """Returns whether all matrices of a model's file have at most 16 bits a weight."""
    folder = find_folder(name_or_path)
    if gguf.is_gguf(folder):
        tensors = gguf.read_gguf(folder).tensors.values()
        return all(stored.kind.name != "F32" for stored in tensors if len(stored.shape) > 1)
    entries = read_folder(folder).values()
    return all(jnp.dtype(entry.dtype).itemsize <= 2 for entry in entries if len(entry.shape) > 1)


def multiplies_bfloat16() -> bool:
    """Returns whether programs run on a CPU with bfloat16 products; False where unknown."""
    return find_device().platform == "cpu" and bool(_BFLOAT16 & _processor_flags())


@functools.cache
def _processor_flags() -> frozenset[str]:
    """Returns the flags of the first processor, lower case; none outside of Linux on x86."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(found.lower().partition(":")[2].split())
