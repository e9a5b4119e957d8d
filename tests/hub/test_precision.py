"""The dtype that is chosen for a file and a processor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.hub import precision
from fedjax_post.hub.load import load_model, save_model
from fedjax_post.testing.models import tiny_model

HAS = "processor : 0\nflags\t\t: fpu sse avx512f avx512_bf16 lahf_lm\n"
HAS_NOT = "processor : 0\nflags\t\t: fpu sse avx512f avx512_vnni\nbugs\t\t: avx512_bf16\n"
ARM = "processor : 0\nFeatures\t: fp asimd bf16\n"


@pytest.fixture
def processor(monkeypatch, tmp_path):
    """Replaces what the operating system reports of the processor; None reports nothing."""

    def replace(text):
        file = tmp_path / "cpuinfo"
        if text is not None:
            file.write_text(text)
        monkeypatch.setattr(precision, "_CPUINFO", file)
        precision._processor_flags.cache_clear()

    yield replace
    monkeypatch.undo()
    precision._processor_flags.cache_clear()


@pytest.mark.parametrize(
    ("text", "multiplies"),
    [(HAS, True), (HAS.upper().replace("FLAGS", "flags"), True), (HAS_NOT, False), (ARM, False),
     ("", False), (None, False)],
)  # fmt: skip
def test_only_reported_processors_multiply_bfloat16(processor, text, multiplies):
    processor(text)
    assert precision.multiplies_bfloat16() == multiplies


@pytest.mark.parametrize(
    ("stored", "quantize", "chosen"),
    [
        ("bfloat16", "none", "mixed"),
        ("float16", "none", "mixed"),
        ("float32", "none", "float32"),
        ("float32", "int8", "mixed"),
    ],
)
def test_files_of_at_most_16_bits_are_mixed_where_it_pays(
    processor, tmp_path, stored, quantize, chosen
):
    save_model(tmp_path, tiny_model(), dtype=stored)
    for text, expected in ((HAS, chosen), (HAS_NOT, "float32")):
        processor(text)
        assert precision.choose_dtype(tmp_path, quantize=quantize) == expected


def test_built_in_models_are_float32_everywhere(processor):
    processor(HAS)
    assert precision.is_narrow("builtin-small")
    assert precision.choose_dtype("builtin-small") == "float32"


def test_a_mixed_model_is_written_as_bfloat16_and_read_again(tmp_path):
    save_model(tmp_path / "wide", tiny_model())
    model = load_model(tmp_path / "wide", dtype="mixed")
    layers = model.variables["params"]["layers"]
    assert layers["mlp"]["up_proj"]["kernel"].dtype == jnp.bfloat16
    assert layers["input_norm"]["scale"].dtype == jnp.float32
    save_model(tmp_path / "narrow", model)
    again = load_model(tmp_path / "narrow", dtype="mixed")
    assert precision.is_narrow(tmp_path / "narrow")
    for one, other in zip(*map(jax.tree.leaves, (model.variables, again.variables)), strict=True):
        np.testing.assert_array_equal(one, other)
