"""A GGUF file is the model that was converted to it, or is refused by name."""

import contextlib
import dataclasses
import json
import random
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

gguf = pytest.importorskip("gguf")
from gguf_files import finish, write_model  # noqa: E402

from fedjax_post import study  # noqa: E402
from fedjax_post.adapters.lora import add_lora, lora_delta, merge_lora  # noqa: E402
from fedjax_post.adapters.prompt import text_prompt  # noqa: E402
from fedjax_post.hub import load  # noqa: E402
from fedjax_post.hub.families import FAMILIES, read_config  # noqa: E402
from fedjax_post.hub.gguf import header_facts  # noqa: E402
from fedjax_post.hub.gguf.container import read_gguf  # noqa: E402
from fedjax_post.hub.gguf.write import KINDS, save_gguf_adapter, save_gguf_model  # noqa: E402
from fedjax_post.hub.load import load_config, load_model  # noqa: E402
from fedjax_post.hub.peft import save_adapter  # noqa: E402
from fedjax_post.hub.tokenizer import load_tokenizer  # noqa: E402
from fedjax_post.hub.weights import expected_tensors  # noqa: E402
from fedjax_post.study import Model, Spec  # noqa: E402
from fedjax_post.testing.models import seeded_tensors  # noqa: E402

GOLDEN = Path(__file__).parent.parent / "model" / "golden"
CASES = [
    "llama_tied",
    "llama_linear",
    "llama_llama3",
    "qwen2_tied",
    "qwen3_tied",
    "gemma2_caps",
    "gemma2_default",
    "gemma3_text_default",
    "gemma3_text_linear",
    "phi3_plain",
    "phi3_partial",
    "olmo2_plain",
    "smollm3_default",
]


# what was published; a file has no place for other values
PUBLISHED = {
    "llama_llama3": {
        "rope_theta": 500000.0,
        "rope_parameters": None,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "gemma2": {"query_pre_attn_scalar": 8, "head_dim": 8},
    "gemma3_text": {
        "query_pre_attn_scalar": 8,
        "head_dim": 8,
        "rope_local_base_freq": 10000.0,
        "sliding_window_pattern": 6,
        "_sliding_window_pattern": 6,
    },
}
PUBLISHED["gemma3_text_linear"] = PUBLISHED["gemma3_text"] | {
    "num_hidden_layers": 7,
    "layer_types": None,
    "rope_parameters": {
        "full_attention": {"factor": 8.0, "rope_theta": 1000.0, "rope_type": "linear"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
}
MORE = [("add_name", "own"), ("add_tags", ["a"])]


def case_of(name, **changes):
    """A config.json as its own family has it, and seeded tensors."""
    raw = json.loads(str(np.load(GOLDEN / f"{name}.npz")["config"]))
    raw |= PUBLISHED.get(name, PUBLISHED.get(raw["model_type"], {})) | changes
    return raw, seeded_tensors(expected_tensors(FAMILIES[raw["model_type"]], read_config(raw)), 7)


def folder_of(tmp_path, raw, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return load_model(tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_the_folder_that_it_was_converted_from(name, tmp_path):
    raw, tensors = case_of(name)
    write_model(tmp_path / "model.gguf", raw, tensors)
    wanted, found = folder_of(tmp_path, raw, tensors), load_model(tmp_path / "model.gguf")
    same = lambda config: dataclasses.replace(config, source="", bos_id=None)
    assert same(found.config) == same(wanted.config)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=3e-7)  # a norm plus and minus 1
    jax.tree.map(close, found.variables, wanted.variables)


@pytest.mark.parametrize(
    ("kind", "factor", "wanted"),
    [
        (None, 4.0, 4.0),  # llama.cpp's default is linear
        (gguf.RopeScalingType.LINEAR, 4.0, 4.0),
        (gguf.RopeScalingType.NONE, 4.0, None),
        (None, 1.0, None),
        (None, 0.0, None),  # as llama.cpp reads it
        (gguf.RopeScalingType.LINEAR, None, None),
    ],
)
def test_a_factor_counts_unless_the_file_says_that_nothing_is_stretched(
    kind, factor, wanted, tmp_path
):
    raw, tensors = case_of("llama_tied")
    fields = [("add_rope_scaling_type", kind), ("add_rope_scaling_factor", factor)]
    more = [field for field in fields if field[1] is not None]
    write_model(tmp_path / "model.gguf", raw, tensors, more=more)
    stated = {} if wanted is None else {"rope_scaling": {"rope_type": "linear", "factor": wanted}}
    (tmp_path / "folder").mkdir()
    same = folder_of(tmp_path / "folder", raw | {"rope_parameters": None} | stated, tensors)
    found = load_model(tmp_path / "model.gguf")
    ids = np.arange(20).reshape(2, 10)
    np.testing.assert_array_equal(found.logits({}, ids), same.logits({}, ids))
    bare = folder_of(tmp_path / "folder", raw | {"rope_parameters": None}, tensors).logits({}, ids)
    assert np.array_equal(found.logits({}, ids), bare) == (wanted is None)


@pytest.mark.parametrize("kind", [gguf.RopeScalingType.YARN, gguf.RopeScalingType.LINEAR, None])
def test_two_stretches_of_positions_are_refused(kind, tmp_path):
    """llama.cpp would apply the tensor's and the field's, one after the other."""
    raw, tensors = case_of("llama_llama3")
    more = [("add_rope_scaling_type", kind)] if kind else []
    path = tmp_path / "model.gguf"
    write_model(path, raw, tensors, more=[*more, ("add_rope_scaling_factor", 4.0)])
    with pytest.raises(ValueError, match=r"factor=4\.0 and the tensor rope_freqs.weight is not"):
        load_model(path)


def test_headers_are_those_of_the_library(tmp_path):
    raw, tensors = case_of("llama_tied")
    write_model(tmp_path / "model.gguf", raw, tensors, more=MORE)
    found, reader = read_gguf(tmp_path / "model.gguf"), gguf.GGUFReader(tmp_path / "model.gguf")
    wanted = {name: field for name, field in reader.fields.items() if name[:5] != "GGUF."}
    assert found.fields.keys() == wanted.keys()
    for name, field in wanted.items():
        value = field.contents()
        own = found.fields[name]
        assert own == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
    for tensor in reader.tensors:
        own = found.tensors[tensor.name]
        assert own.kind == tensor.tensor_type
        assert list(own.shape[::-1]) == tensor.shape.tolist()
        assert own.offset == tensor.data_offset


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("family", ["llama_tied", "gemma2_default"])
def test_blocks_are_decoded_as_the_library_decodes_them(kind, family, tmp_path):
    """In strips that are no whole tensors, permuted rows among them."""
    raw, _ = case_of(family)
    wide = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    raw, tensors = case_of(family, **wide)
    write_model(tmp_path / "model.gguf", raw, tensors, kind=kind)
    there_and_back = {}
    for name, array in tensors.items():
        known = gguf.GGMLQuantizationType[kind]
        if array.ndim == 2:
            array = gguf.quants.dequantize(gguf.quants.quantize(array, known), known)
        there_and_back[name] = array.astype(np.float32)
    wanted, found = folder_of(tmp_path, raw, there_and_back), load_model(tmp_path / "model.gguf")
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=3e-7)
    jax.tree.map(close, found.variables, wanted.variables)


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q3_K", "Q2_K", "IQ4_XS"])
def test_blocks_of_256_are_decoded_as_the_library_decodes_them(kind, tmp_path):
    """Of random bytes, since the library does not write them."""
    known = gguf.GGMLQuantizationType[kind]
    size = gguf.GGML_QUANT_SIZES[known][1]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (8, 2 * size), np.uint8)
    halves = blocks.reshape(16, size).view(np.float16)
    halves[~np.isfinite(halves)] = 0  # scales are half floats somewhere in a block
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=known)
    for name in ("head_count", "embedding_length"):
        getattr(writer, f"add_{name}")(2)
    finish(writer)
    from fedjax_post.hub.gguf import family_entries

    entry = family_entries(read_gguf(tmp_path / "one.gguf"))["model.embed_tokens.weight"]
    assert entry.shape == (8, 512)
    wanted = gguf.quants.dequantize(blocks, known)
    np.testing.assert_array_equal(entry.read_fn(0, 8), wanted)
    np.testing.assert_array_equal(entry.read_fn(3, 5), wanted[3:5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([("add_expert_count", 8)], r"not understood: llama\.expert_count=8"),
        ([("add_rope_scaling_type", gguf.RopeScalingType.YARN)], "rope.scaling.type=yarn is not"),
        ([("add_uint16", "split.count", 3)], "is one of 3 parts; merge them"),
        ([("add_tensor", "blk.0.odd.weight", np.ones((2, 2), np.float32))], "blk.0.odd.weight has"),
    ],
)
def test_what_is_not_understood_is_refused(change, message, tmp_path):
    raw, tensors = case_of("llama_tied")
    write_model(tmp_path / "model.gguf", raw, tensors, more=change)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "model.gguf")


def test_other_architectures_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.ones((4, 4), np.float32))
    finish(writer)
    with pytest.raises(
        ValueError, match=r"general\.architecture=mamba is not supported; supported"
    ):
        load_config(tmp_path / "model.gguf")


class _Named(Exception):
    """A refusal that names the file."""


def load_named(path):
    try:
        return load_model(path)
    except ValueError as error:
        if str(path) in str(error):
            raise _Named from error
        raise


def test_damaged_files_are_refused_by_name(tmp_path):
    """Cut anywhere, or with bytes of the header changed: never a hang, never another error."""
    raw, tensors = case_of("llama_tied")
    path = tmp_path / "model.gguf"
    write_model(path, raw, tensors)
    whole, draw = path.read_bytes(), random.Random(0)
    header = min(stored.offset for stored in read_gguf(path).tensors.values())
    refused = 0
    for number in range(300):
        damaged = bytearray(whole)
        if number % 3:
            for _ in range(draw.choice([1, 8])):
                damaged[draw.randrange(header)] = draw.choice([0, 255, draw.randrange(256)])
        else:
            del damaged[draw.randrange(len(whole)) :]
        path.write_bytes(damaged)
        with contextlib.suppress(_Named):
            load_named(path)
            continue
        refused += 1
    assert refused > 200


TEXTS = [
    "Hello world 1234 and 5\n    67 indented",
    "it's  two  spaces\tand a tab\n\nnew",
    "\u00dcn\u00efc\u00f6de \u4e2d\u6587 \U0001f600",
]


def tokenizer_fields(tokenizer, pre):
    """What the converter writes of a byte-level tokenizer."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["id"]: token for token in state["added_tokens"]}
    tokens = [token for _, token in sorted((i, t) for t, i in tokenizer.get_vocab().items())]
    kind = lambda i: 1 if i not in added else 3 if added[i]["special"] else 4
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]]
    return [
        ("add_tokenizer_model", "gpt2"),
        ("add_tokenizer_pre", pre),
        ("add_token_list", tokens),
        ("add_token_types", [kind(i) for i in range(len(tokens))]),
        ("add_token_merges", merges),
        ("add_eos_token_id", tokenizer.eos_token_id),
        ("add_chat_template", "{{ messages[0].content }}"),
    ]


@pytest.mark.heavy
@pytest.mark.parametrize(("name", "pre"), [("gpt2", "gpt-2"), ("qwen2", "qwen2")])
def test_token_ids_are_those_of_the_converted_tokenizer(name, pre, test_data, tmp_path):
    wanted = load_tokenizer(test_data / "tokenizers" / name)
    raw, tensors = case_of("llama_tied", vocab_size=len(wanted))
    write_model(tmp_path / "m.gguf", raw, tensors, tokenizer=tokenizer_fields(wanted, pre))
    found = load_tokenizer(tmp_path / "m.gguf")
    specials = " ".join(wanted.all_special_tokens)
    for text in [*TEXTS, f"a {specials} b"]:
        ids = wanted(text)["input_ids"]
        assert found(text)["input_ids"] == ids
        assert found.decode(ids) == wanted.decode(ids)
    assert found.eos_token_id == wanted.eos_token_id
    assert found.chat_template == "{{ messages[0].content }}"


def test_pieces_are_merged_by_their_scores(test_data, tmp_path):
    """Against the tokenizer of a Llama, as transformers reads it."""
    wanted = load_tokenizer(test_data / "models" / "stories260K")
    state = json.loads(wanted.backend_tokenizer.to_str())
    rank = {tuple(m): i for i, m in enumerate(state["model"]["merges"])}
    made = {a + b: i for (a, b), i in sorted(rank.items(), key=lambda item: -item[1])}
    tokens = [token for _, token in sorted((i, t) for t, i in wanted.get_vocab().items())]
    special = set(wanted.all_special_ids)
    is_byte = lambda token: len(token) == 6 and token.startswith("<0x")
    kinds = [3 if i in special else 6 if is_byte(t) else 1 for i, t in enumerate(tokens)]
    scores = [float(-made.get(token, len(rank) + i)) for i, token in enumerate(tokens)]
    fields = [
        ("add_tokenizer_model", "llama"),
        ("add_token_list", tokens),
        ("add_token_scores", scores),
        ("add_token_types", kinds),
        ("add_eos_token_id", 2),
        ("add_unk_token_id", 0),
        ("add_add_bos_token", wanted("a")["input_ids"][0] == wanted.bos_token_id),
    ]
    raw, tensors = case_of("llama_tied", vocab_size=len(wanted))
    raw["bos_token_id"] = wanted.bos_token_id
    write_model(tmp_path / "m.gguf", raw, tensors, tokenizer=fields)
    found = load_tokenizer(tmp_path / "m.gguf")
    for text in ["Once upon a time, there was a little girl named Lily.", "a  b", TEXTS[2]]:
        ids = wanted(text)["input_ids"]
        assert found(text)["input_ids"] == ids
        assert found.decode(ids) == wanted.decode(ids)


WORDS = [
    ("add_tokenizer_model", "gpt2"),
    ("add_tokenizer_pre", "gpt-2"),
    ("add_token_list", ["a", "b", "ab", "begin", "abb", *(f"word{i}" for i in range(55))]),
    ("add_token_merges", ["a b"]),
    ("add_eos_token_id", 59),
]


def words_of(path, pre, *fields, bos=3):
    """The tokenizer of a file of `WORDS`."""
    raw, tensors = case_of("llama_tied", vocab_size=60, bos_token_id=bos)
    named = [field for field in WORDS if field[0] != "add_tokenizer_pre"]
    fields = [*named, ("add_tokenizer_pre", pre), *fields]
    write_model(path, raw, tensors, tokenizer=fields)
    return load_tokenizer(path)


@pytest.mark.parametrize(
    ("pre", "stated", "bos", "wanted"),
    [
        ("llama-bpe", None, 3, [3, 2]),
        ("llama3", None, 3, [3, 2]),
        ("llama-v3", None, 3, [3, 2]),
        ("llama-bpe", False, 3, [2]),
        ("llama-bpe", None, None, [2]),  # no token to begin with
        ("gpt-2", None, 3, [2]),
        ("qwen2", None, 3, [2]),
        ("gpt-2", True, 3, [3, 2]),
    ],
)
def test_rows_begin_with_bos_where_llama_cpp_adds_it(pre, stated, bos, wanted, tmp_path):
    """Of Llama 3's names also where the file lacks the field, as published files do."""
    fields = [] if stated is None else [("add_add_bos_token", stated)]
    found = words_of(tmp_path / "m.gguf", pre, *fields, bos=bos)
    assert found("ab")["input_ids"] == wanted
    assert found("ab", add_special_tokens=False)["input_ids"] == [2]


def test_dbrx_is_llama_3s_cut_with_merges_and_without_bos(tmp_path):
    """As phi-4's files have it; the pattern is that of the tiktoken files it came from."""
    from tokenizers import Regex, pre_tokenizers
    from transformers.convert_slow_tokenizer import TikTokenConverter

    found, llama3 = (words_of(tmp_path / f"{pre}.gguf", pre) for pre in ("dbrx", "llama-bpe"))
    split = pre_tokenizers.Split(Regex(TikTokenConverter().pattern), "isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    wanted = pre_tokenizers.Sequence([split, whole])
    for text in [*TEXTS, "IT'S 12345\r\n\r\n  a(b)!"]:
        pieces = found.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert pieces == wanted.pre_tokenize_str(text)
    # "abb" is a token that no merge makes
    assert found("abb", add_special_tokens=False)["input_ids"] == [2, 1]
    assert llama3("abb", add_special_tokens=False)["input_ids"] == [4]
    assert found("ab")["input_ids"] == [2]


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def of_mamba(path):
    path.write_bytes(path.read_bytes().replace(b"llama", b"mamba"))


def of_many_words(path):
    raw, tensors = case_of("llama_tied", vocab_size=40)
    write_model(path, raw, tensors, tokenizer=WORDS)


def of_no_merges(path):
    raw, tensors = case_of("llama_tied", vocab_size=60)
    fields = [field for field in WORDS if field[0] != "add_token_merges"]
    write_model(path, raw, tensors, tokenizer=fields)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (of_no_merges, "tokenizer.ggml.merges are missing"),
        (cut, "is truncated or damaged: .*; download it again"),
        (of_mamba, "general.architecture=mamba is not supported; .*; use the safetensors files"),
        (of_many_words, "has 60 tokens and embeddings of 40: .*; download it again, or convert"),
    ],
)
@pytest.mark.parametrize("use", [lambda name: study.prepare(Spec(model=Model(name))), study.serve])
def test_a_file_that_cannot_be_used_is_refused_before_its_weights_are_read(
    damage, message, use, tmp_path, monkeypatch
):
    raw, tensors = case_of("llama_tied", vocab_size=60)
    path = tmp_path / "model.gguf"
    write_model(path, raw, tensors, tokenizer=WORDS)
    assert study.serve(str(path)).tokenizer.vocab_size == 60
    damage(path)
    monkeypatch.setattr(load, "load_weights", None)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        use(str(path))


@pytest.mark.parametrize("name", ["llama_tied", "qwen3_tied", "gemma2_default", "phi3_plain"])
def test_a_merged_model_is_read_back_as_it_was_written(name, tmp_path):
    raw, tensors = case_of(name)
    write_model(tmp_path / "base.gguf", raw, tensors, more=MORE)
    model, params = adapted(load_model(tmp_path / "base.gguf"))
    save_gguf_model(tmp_path / "out.gguf", tmp_path / "base.gguf", model, params, kind="F32")
    wanted, found = merge_lora(model, params), load_model(tmp_path / "out.gguf")
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=3e-7)
    jax.tree.map(close, found.variables["params"], wanted.variables["params"])
    before, after = (read_gguf(tmp_path / f"{file}.gguf").fields for file in ("base", "out"))
    blocks = {"general.file_type": 0, "general.quantization_version": gguf.GGML_QUANT_VERSION}
    assert after == before | blocks
    if name == "llama_tied":
        with pytest.raises(ValueError, match="kind=Q4_K must be one of F32"):
            save_gguf_model(tmp_path / "x", tmp_path / "base.gguf", model, kind="Q4_K")


@pytest.mark.parametrize("dtype", ["mixed", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama_tied", "gemma2_default"])
def test_a_merged_model_is_of_float32_sums_whatever_the_models_dtype(name, dtype, tmp_path):
    base, out = tmp_path / "base.gguf", tmp_path / "out.gguf"
    write_model(base, *case_of(name))
    model, params = adapted(load_model(base, dtype=dtype))
    params = jax.tree.map(lambda leaf: 0.01 * leaf, params)  # below bfloat16's step of a weight
    exact = dataclasses.replace(load_model(base), lora_layers=model.lora_layers)
    scales = {"lora_scale": model.variables["lora_scale"]}
    exact = dataclasses.replace(exact, variables={**exact.variables, **scales})
    save_gguf_model(out, base, model, params, kind="F32")
    found, wanted = load_model(out), merge_lora(exact, params)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=3e-7)
    jax.tree.map(close, found.variables["params"], wanted.variables["params"])


@pytest.mark.parametrize("within", [True, False])
def test_weights_trained_in_bfloat16_are_written_as_they_are(within, tmp_path):
    """The base's numbers stand in for the model's own only where these are their roundings."""
    base, out = tmp_path / "base.gguf", tmp_path / "out.gguf"
    write_model(base, *case_of("llama_tied"))
    model = load_model(base, dtype="bfloat16")
    trained = jax.tree.map(lambda leaf: leaf + 0.125, model.variables["params"])
    changed = dataclasses.replace(model, variables={"params": trained})
    model, params = (changed, None) if within else (model, {"params": trained})
    save_gguf_model(out, base, model, params, kind="F32")
    same = lambda a, b: np.testing.assert_array_equal(a, b.astype(np.float32))
    jax.tree.map(same, load_model(out).variables["params"], trained)


@pytest.mark.parametrize("dtype", ["float32", "mixed"])
def test_codes_that_an_adapter_was_trained_on_are_merged(dtype, tmp_path):
    base, out = tmp_path / "base.gguf", tmp_path / "out.gguf"
    write_model(base, *case_of("llama_tied", hidden_size=64, intermediate_size=64, head_dim=16))
    model, params = adapted(load_model(base, dtype=dtype, quantize="nf4"))
    save_gguf_model(out, base, model, params, kind="F32")
    found, wanted = load_model(out), merge_lora(model, params, dtype="float32")
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)
    layers = found.variables["params"]["layers"], wanted.variables["params"]["layers"]
    jax.tree.map(close, layers[0]["attention"], layers[1]["attention"])


OF_BLOCKS = [
    ("add_file_type", gguf.LlamaFileType.MOSTLY_Q4_1),
    ("add_quantized_by", "someone"),
    ("add_quantization_version", 1),
    ("add_string", "quantize.imatrix.file", "someone.dat"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_says_which_blocks_it_has(kind, tmp_path):
    """And not which its base had, nor who made those."""
    raw, tensors = case_of("llama_tied", hidden_size=32, intermediate_size=32, head_dim=8)
    base, out = tmp_path / "base.gguf", tmp_path / "out.gguf"
    write_model(base, raw, tensors, kind="Q4_1", more=[*MORE, *OF_BLOCKS])
    save_gguf_model(out, base, load_model(base), kind=kind)
    found = read_gguf(out)
    named = gguf.LlamaFileType(found.fields["general.file_type"]).name
    assert named.removeprefix("ALL_").removeprefix("MOSTLY_") == kind
    assert {stored.kind.name for stored in found.tensors.values()} == {kind, "F32"}
    said = dict(header_facts(found))
    assert said["quantised by"] == "the header names nobody"
    assert said["its header"] == "own"
    assert not [name for name in found.fields if name.startswith("quantize.")]
    assert found.fields["general.quantization_version"] == gguf.GGML_QUANT_VERSION


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 32, "head_dim": 8}, r"in \d+ tensors: blk.0.attn_k.weight is \(16, 32\)"),
        ({"num_hidden_layers": 3}, r"in 9 tensors: blk.2.\S+ is \(.*\) and missing"),
        ({"num_hidden_layers": 1}, r"in 9 tensors: blk.1.\S+ is missing and \("),
        ({"vocab_size": 44}, r"in 1 tensors: token_embd.weight is \(44, 16\) and \(40, 16\)"),
        ({"tie_word_embeddings": False}, "in 1 tensors: output.weight is .* and missing"),
    ],
)
def test_a_base_of_another_size_is_refused(change, message, tmp_path):
    """Its metadata would describe other tensors than those beside them."""
    raw, tensors = case_of("llama_tied")
    model = folder_of(tmp_path, raw, tensors)
    write_model(tmp_path / "other.gguf", *case_of("llama_tied", **change))
    with pytest.raises(ValueError, match=f"other.gguf and the model differ {message}.*; give the"):
        save_gguf_model(tmp_path / "out.gguf", tmp_path / "other.gguf", model)
    write_model(tmp_path / "other.gguf", *case_of("qwen2_tied"))
    with pytest.raises(ValueError, match="is a qwen2 and the model a llama; give the"):
        save_gguf_model(tmp_path / "out.gguf", tmp_path / "other.gguf", model)


@pytest.mark.parametrize("name", ["llama_tied", "qwen2_tied", "phi3_plain"])
def test_an_adapter_is_written_as_llama_cpp_converts_one(name, tmp_path):
    """B's rows in the order of the base's, A as it is; one alpha, which scales the product."""
    raw, tensors = case_of(name)
    write_model(tmp_path / "base.gguf", raw, tensors)
    model, params = adapted(load_model(tmp_path / "base.gguf"))
    save_gguf_adapter(tmp_path / "adapter.gguf", model, params)
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    fields = {key: field.contents() for key, field in reader.fields.items()}
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 4.0
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    reader = gguf.GGUFReader(tmp_path / "base.gguf")
    base = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    save_gguf_model(tmp_path / "out.gguf", tmp_path / "base.gguf", model, params, kind="F32")
    changed = 0
    for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors:
        if f"{tensor.name}.lora_a" in found:  # what llama.cpp computes with
            a, b = found.pop(f"{tensor.name}.lora_a"), found.pop(f"{tensor.name}.lora_b")
            expected = base[tensor.name] + 4.0 / len(a) * b @ a
            np.testing.assert_allclose(tensor.data, expected, atol=1e-5)
            changed += 1
        else:
            np.testing.assert_array_equal(tensor.data, base[tensor.name])
    assert changed >= 4
    assert found == {}


def test_what_a_file_has_no_place_for_is_refused(tmp_path):
    """Whatever was folded into the base, or is read before a row, would be lost silently."""
    raw, tensors = case_of("llama_tied")
    write_model(tmp_path / "base.gguf", raw, tensors)
    model, params = adapted(load_model(tmp_path / "base.gguf"))
    words = text_prompt([1, 2])
    holds = lambda **more: dataclasses.replace(model, variables={**model.variables, **more})
    path, base = tmp_path / "out" / "a.gguf", tmp_path / "base.gguf"
    for changed, lost in ((holds(residual=lora_delta(model, params)), "residual"),
                          (holds(**words), "prompt")):  # fmt: skip
        for save in (save_gguf_adapter, save_adapter):
            with pytest.raises(ValueError, match=f"no place for .*{lost}.*; write"):
                save(path, changed, params)
    for changed, given in ((model, params | words), (holds(**words), params)):
        with pytest.raises(ValueError, match="no place for a prompt; .*save_prompt"):
            save_gguf_model(path, base, changed, given)
    assert not path.parent.exists()


def test_what_was_added_to_the_base_is_merged(tmp_path):
    raw, tensors = case_of("llama_tied")
    write_model(tmp_path / "base.gguf", raw, tensors)
    model, params = adapted(load_model(tmp_path / "base.gguf"))
    variables = {**model.variables, "residual": lora_delta(model, params)}
    twice = dataclasses.replace(model, variables=variables)
    save_gguf_model(tmp_path / "out.gguf", tmp_path / "base.gguf", twice, params, kind="F32")
    ids = np.arange(20).reshape(2, 10)
    found = load_model(tmp_path / "out.gguf").logits({}, ids)
    np.testing.assert_allclose(found, twice.logits(params, ids), atol=1e-5)


# What transformers assumes instead of reading it from a file
ASSUMED = {
    "llama_tied": {},
    "qwen2_tied": {},
    "qwen3_tied": {"head_dim": 128},
    "phi3_plain": {},
    "gemma2_default": {"head_dim": 256, "query_pre_attn_scalar": 256},
    "gemma3_text_default": {"head_dim": 256, "query_pre_attn_scalar": 256},
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", ASSUMED)
def test_a_file_is_what_transformers_reads_in_it(name, tmp_path):
    """The base as it was converted, and the model that was merged into it here.

    The other cases cannot be compared with transformers 5.24: it refuses the architectures olmo2
    and smollm3, and reads neither rope.scaling.* (the linear ones) nor rope_freqs.weight (Llama
    3's factors), nor phi3's rope.dimension_count (phi3_partial), nor other caps than Gemma 2's
    own (gemma2_caps): it computes other logits from such files, without a word.
    """
    raw, tensors = case_of(name, **ASSUMED[name])
    # of large weights, a head of 256 makes 1e-4 from float32's rounding alone
    tensors = {key: np.float32(0.5) * array for key, array in tensors.items()}
    pad = [("add_pad_token_id", 0)]  # without it, transformers takes 32000 for phi3
    write_model(tmp_path / "base.gguf", raw, tensors, more=pad)
    model, params = adapted(load_model(tmp_path / "base.gguf"))
    save_gguf_model(tmp_path / "out.gguf", tmp_path / "base.gguf", model, params, kind="F32")
    ids = np.arange(20).reshape(2, 10)
    for file, given in (("base", {}), ("out", params)):
        wanted = transformers_logits(tmp_path / f"{file}.gguf", ids)
        np.testing.assert_allclose(model.logits(given, ids), wanted, atol=1e-4)
        assert np.abs(wanted).max() > 0.1


def transformers_logits(path, ids):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.from_numpy(ids)).logits.numpy()


def adapted(model):
    model, params = add_lora(model, jax.random.key(0), rank=2, alpha=4)
    # rows of B that differ, so that their order is seen
    draw = lambda leaf: 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    return model, jax.tree.map(lambda leaf: leaf + draw(leaf), params)
