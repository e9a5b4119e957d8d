"""The tokenizer of a GGUF file, built with `tokenizers` as its `tokenizer.ggml.*` fields say.

`tokenizer.ggml.pre` names how text is cut before merges apply; the patterns are those of llama.cpp
and of the tokenizers that were converted. A reading that leaves it out, such as transformers' own,
takes "smollm" for GPT-2's: numbers of several digits and indented numbers get other ids.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fedjax_post.hub.gguf.container import Gguf

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
# llama.cpp's names of Llama 3's tokenizer: a word that is a token is that token, whatever merges
# say, and a text begins with bos unless the file says otherwise
_OF_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")


def make_tokenizer(file: Gguf) -> Any:
    """Returns the `transformers` tokenizer of a file.

    Raises:
      ValueError: for a kind of tokenizer that is not supported, or damaged fields.
    """
    from transformers import PreTrainedTokenizerFast

    get = lambda name, default=None: file.fields.get(f"tokenizer.ggml.{name}", default)
    model, pre = get("model"), get("pre", "default")
    tokens = get("tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(t, str) for t in tokens):
        raise ValueError(f"{file.path} has no tokenizer; use the model's Hugging Face files")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None and len(tokens) > embedding.shape[0]:
        raise ValueError(
            f"{file.path} has {len(tokens)} tokens and embeddings of {embedding.shape[0]}: its "
            "tokenizer is that of another model; download it again, or convert the model again"
        )
    kinds = get("token_type", [_NORMAL] * len(tokens))
    if len(kinds) != len(tokens):
        raise ValueError(f"{file.path} has {len(tokens)} tokens and the kinds of {len(kinds)}")
    try:
        if model == "gpt2":
            tokenizer = _byte_level(file, tokens, pre)
        elif model == "llama":
            tokenizer = _sentence_piece(file, tokens, kinds)
        else:
            raise ValueError(
                f"tokenizer.ggml.model={model} is not supported, only gpt2 and llama; use the "
                "model's Hugging Face files"
            )
        tokenizer.add_special_tokens(_added(tokens, kinds, _CONTROL))
        tokenizer.add_tokens(_added(tokens, kinds, _USER))
    except Exception as error:  # the tokenizers library raises bare ones
        raise ValueError(f"{file.path}: {error}") from error
    special = {}
    for name in ("bos", "eos", "unknown", "padding"):
        number = get(f"{name}_token_id")
        if number is None:
            continue
        if not isinstance(number, int) or not 0 <= number < len(tokens):
            raise ValueError(f"{file.path}: {name}_token_id={number} of {len(tokens)} tokens")
        short = {"unknown": "unk", "padding": "pad"}.get(name, name)
        special[f"{short}_token"] = tokens[number]
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
    )
    made.chat_template = file.fields.get("tokenizer.chat_template")
    return made


def _byte_level(file: Gguf, tokens: list[str], pre: str) -> Any:
    """Byte-level merges, GPT-2's kind."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    if pre not in _CUTS:
        raise ValueError(
            f"tokenizer.ggml.pre={pre} is not supported; supported are {', '.join(_CUTS)}; use "
            "the model's Hugging Face files"
        )
    given = file.fields.get("tokenizer.ggml.merges")
    if not isinstance(given, list) or not all(isinstance(m, str) and " " in m for m in given):
        raise ValueError("tokenizer.ggml.merges are missing, or not all two tokens and a blank")
    merges = [tuple(merge.split(" ", 1)) for merge in given]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    is_llama3 = pre in _OF_LLAMA3
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=is_llama3))
    tokenizer.pre_tokenizer = _CUTS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    begins = is_llama3 and "tokenizer.ggml.bos_token_id" in file.fields
    return _with_ends(file, tokenizer, tokens, usual=(begins, False))


def _sentence_piece(file: Gguf, tokens: list[str], kinds: list[int]) -> Any:
    """Merges in the order of scores, with bytes for what is in no token; Llama 2's kind."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = file.fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ValueError("tokenizer.ggml.scores are missing, or not one for each token")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    learned = [t for t, kind in zip(tokens, kinds, strict=True) if kind in (_NORMAL, _USER)]
    merges = _merges_of({token: scores[vocabulary[token]] for token in learned}, vocabulary)
    unknown = file.fields.get("tokenizer.ggml.unknown_token_id", 0)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True)
    )
    space = "\u2581"
    prefix = file.fields.get("tokenizer.ggml.add_space_prefix", True)
    steps = [normalizers.Prepend(space)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", space)])
    parts = [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*parts, *([decoders.Strip(" ", 1, 0)] if prefix else [])]
    )
    return _with_ends(file, tokenizer, tokens, usual=(True, False))


def _merges_of(scores: Mapping[str, float], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """All pairs that make a token, best token first, as transformers' converter orders them."""
    merges = []
    for token, score in scores.items():
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs = [(a, b) for a, b in cuts if a in vocabulary and b in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(*pair, score) for pair in pairs]
    merges.sort(key=lambda merge: (merge[2], len(merge[0]), len(merge[1])), reverse=True)
    return [(a, b) for a, b, _ in merges]


def _with_ends(file: Gguf, tokenizer: Any, tokens: list[str], *, usual: tuple[bool, bool]) -> Any:
    """The tokenizer, with begin and end tokens around a text where the file has them added."""
    from tokenizers import processors

    get = lambda name, default=None: file.fields.get(f"tokenizer.ggml.{name}", default)
    before = ["bos"] if get("add_bos_token", usual[0]) else []
    after = ["eos"] if get("add_eos_token", usual[1]) else []
    if not before and not after:
        return tokenizer
    named = {name: get(f"{name}_token_id") for name in (*before, *after)}
    if None in named.values():
        raise ValueError(f"{' and '.join(named)} go around a text, and have no token")
    text = [tokens[number] for number in named.values()]
    single = [*text[: len(before)], "$A", *text[len(before) :]]
    pair = [*single, *text[: len(before)], "$B:1", *text[len(before) :]]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(tokens[number], number) for number in dict.fromkeys(named.values())],
    )
    return tokenizer


def _added(tokens: list[str], kinds: list[int], kind: int) -> list[Any]:
    from tokenizers import AddedToken

    special = kind == _CONTROL
    return [
        AddedToken(token, special=special, normalized=False)
        for token, own in zip(tokens, kinds, strict=True)
        if own == kind
    ]


def _gpt2() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> Any:
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, _gpt2()])


def _by_pattern(pattern: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, bytes_alone])


_CUTS: Mapping[str, Callable[[], Any]] = {
    "gpt-2": _gpt2,
    **dict.fromkeys((*_OF_LLAMA3, "dbrx"), lambda: _by_pattern(_LLAMA3)),
    "qwen2": lambda: _by_pattern(_QWEN2),
    "smollm": _smollm,
}
