"""A GGUF file is the model that was converted to it, or is refused by name."""

import contextlib
import dataclasses
import json
import random

import jax
import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
from gguf_files import case_of, finish, folder_of, write_model  # noqa: E402

from fedjax_post import study  # noqa: E402
from fedjax_post.hub import load  # noqa: E402
from fedjax_post.hub.gguf.container import read_gguf  # noqa: E402
from fedjax_post.hub.load import load_config, load_model  # noqa: E402
from fedjax_post.hub.tokenizer import load_tokenizer  # noqa: E402
from fedjax_post.study import Model, Spec  # noqa: E402

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
MORE = [("add_name", "own"), ("add_tags", ["a"])]


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
