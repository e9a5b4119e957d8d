"""The second corpus: instructions in words with their answers, and examples without instructions.

It contains what `corpus` lacks by design. A document asks a question about a list of nouns, and
the answer follows a line break, as in the chat template and in the rows of `kinds`:

| documents | share | contents | the rule |
| --- | --- | --- | --- |
| old | 17 % | formulas and prose of `corpus` | |
| clear | 43 % | "name the kind of the last word:" | stated |
| vague | 14 % | "name the kind of these words:" | mostly the most frequent kind |
| hinted | 16 % | "only the last word. name the kind of these words:" | stated, then vague words |
| examples | 10 % | pairs of list and answer, some after a vague wording or none | shown |

In a tenth of the documents with examples, the answers are renamed, consistently within the
document. In a sixth of the wordings, some random words are inserted. Every word is in the
vocabulary of the first corpus. No document asks about a list of the held-out split of a built-in
task; a short one may occur as part of a longer list.
"""

import random
from collections.abc import Sequence

import numpy as np

from fedjax_post.data import kinds
from fedjax_post.data.builtin import corpus, lexicon

Piece = tuple[str, bool]  # a text, and whether it is an answer

# rule -> phrases for what is asked about
_TARGETS = {
    "last": "the last word;the last one;the last of these words;what stands last;"
    "the one which comes last;the end of this list;the last thing;the last of them;last",
    "first": "the first word;the first one;the first of these words;what stands first;"
    "the one which comes first;the start of this list;the first thing;the first of them;first",
    "middle": "the middle word;the one in the middle;the middle of this list;the middle one;"
    "what stands in the middle;the middle thing;middle",
    "commonest": "many of these words;many of them;lots of these;more than one of them;"
    "the common ones;lots of these words;lots of them;common",
}
_PLACES: dict[str, int | None] = {"last": -1, "first": 0, "middle": None}
_KIND_FRAMES = (
    "name the kind of {t}:;the kind of {t}:;kind of {t}:;which kind is {t}?;which group is {t}?;"
    "what sort of thing is {t}?;tell me the group of {t}:;label {t} with its class:;label {t}:;"
    "say the kind of {t}:;could you please tell me the kind of {t}:;find the class of {t}:;"
    "give the group of {t}:;write the class of {t}:;what is {t}?;the group of {t}, please:;"
    "hey, i need the kind of {t}:;exercise: name the class of {t}.;{t}: which kind?;{t}:"
)
_WORD_FRAMES = (
    "say {t}:;write {t}:;repeat {t}:;keep only {t}:;give me {t}:;find {t}:;just {t}, please:"
)
_PLURAL_FRAMES = "the plural of {t}:;say {t} for more than one:;give the plural of {t}:"
_VAGUE = (
    "name the kind of these words:;which kind is this list?;what sort of thing is this?;"
    "tell me the group of these words:;label this list with its class:;label this list:;"
    "the kind:;kind:;group:;say what these are:;what is this?;give the class:;which kind?;"
    "name the kind:;could you please name the kind:;find the group of these words:"
)
_HINTS = (
    "only {t}.;just {t}.;{t} stays.;keep {t}.;it is {t}.;{t}.;{t}:;i need {t}.;"
    "all but {t} go away.;say {t}.;only {t},"
)

# for the model card: what is checked -> how it is asked, and the correct rule
CHECKS = {
    "the last word, said": ("said", "last"),
    "the first word, said": ("said", "first"),
    "the middle word, said": ("said", "middle"),
    "the commonest kind, said": ("said", "commonest"),
    "the last word, said beside vague words": ("hinted", "last"),
    "the commonest kind, vague words": ("vague", "commonest"),
    "the last word, the same vague words": ("vague", "last"),
    "the last word, six examples": ("shown", "last"),
    "the first word, six examples": ("shown", "first"),
}
_RULES = ("last", "first", "middle", "commonest")
_VAGUE_RULES = ("commonest", "commonest", "commonest", "last", "first")


def wording(rng: random.Random, rule: str) -> str:
    """Returns a clear instruction to name the kind according to a rule."""
    return _insert_words(rng, _one(rng, _KIND_FRAMES).format(t=_target(rng, rule)))


def vague_wording(rng: random.Random) -> str:
    """Returns an instruction that does not state the rule by which a kind is chosen."""
    return _insert_words(rng, rng.choice((kinds.MANUAL_PROMPT, *_VAGUE.split(";"))))


def hinted_wording(rng: random.Random, rule: str) -> str:
    """Returns a vague instruction after words that state the rule."""
    return f"{_one(rng, _HINTS).format(t=_target(rng, rule))} {vague_wording(rng)}"


def problem(rng: random.Random, rule: str, *, held_out: bool = False) -> tuple[str, str]:
    """Returns a list of nouns as text, and the kind according to the rule.

    Args:
      rng: the source of randomness.
      rule: "last", "first", "middle" or "commonest".
      held_out: whether the list must belong to the held-out split.
    """
    place = _PLACES[rule] if rule in _PLACES else rng.choice((-1, 0, 1))
    nouns = kinds.draw_list(rng, rng.choice(lexicon.KINDS), held_out=held_out, place=place)
    return " ".join(nouns), _kind(nouns, rule)


def check(rng: random.Random, name: str) -> tuple[str, str]:
    """Returns a question with a held-out list, and its answer, for a name in `CHECKS`."""
    words, rule = CHECKS[name]
    nouns, answer = problem(rng, rule, held_out=True)
    if words == "said":
        clear = _one(rng, _KIND_FRAMES).format(t=_target(rng, rule))
        return f"{clear} {nouns}\n", answer
    if words == "hinted":
        hint = _one(rng, _HINTS).format(t=_target(rng, rule))
        return f"{hint} {kinds.MANUAL_PROMPT} {nouns}\n", answer
    if words == "vague":
        return f"{kinds.MANUAL_PROMPT} {nouns}\n", answer
    shots = [problem(rng, rule) for _ in range(6)]
    return "".join(f"{x}\n {y}\n " for x, y in shots) + f"{nouns}\n", answer


def document(rng: random.Random) -> list[Piece]:
    """Returns one document, without bos and eos, except where these separate its examples."""
    sort = rng.random()
    if sort < 0.17:
        text, answer = corpus.document(rng)
        return [(text, False), (answer, True)]
    if sort < 0.60:
        return _clear(rng)
    rule = rng.choice(_RULES)
    if sort < 0.74:
        return _question(vague_wording(rng), *problem(rng, rng.choice(_VAGUE_RULES)))
    if sort < 0.90:
        return _question(hinted_wording(rng, rule), *problem(rng, rule))
    return _examples(rng, rule)


def packed_rows(tokenizer, num_rows: int, *, length: int, seed: str) -> dict[str, np.ndarray]:
    """Returns rows cut from a sequence of documents; as `corpus.packed_rows`.

    Args:
      tokenizer: as `corpus.build_tokenizer` returns it.
      num_rows: number of rows.
      length: tokens of a row.
      seed: equal seeds give equal rows.
    """
    rng = random.Random(f"instruct corpus {seed}")
    return corpus.pack(tokenizer, lambda: document(rng), num_rows, length=length)


def _insert_words(rng: random.Random, words: str) -> str:
    """Returns a wording, in one of six cases with up to three random words inserted."""
    parts = words.split(" ")
    for _ in range(rng.randint(1, 3) if rng.random() < 1 / 6 else 0):
        parts.insert(rng.randint(0, len(parts)), rng.choice(lexicon.ADJECTIVES))
    return " ".join(parts)


def _target(rng: random.Random, rule: str) -> str:
    return _one(rng, _TARGETS[rule])


def _one(rng: random.Random, texts: str) -> str:
    """Returns one of several texts that are separated by semicolons."""
    return rng.choice(texts.split(";"))


def _kind(nouns: Sequence[str], rule: str) -> str:
    if rule == "commonest":
        kind = kinds.commonest_kind(nouns)
        assert kind is not None  # `draw_list` always has a most frequent kind
        return kind
    return lexicon.KIND_OF[_noun(nouns, rule)]


def _noun(nouns: Sequence[str], rule: str) -> str:
    place = _PLACES[rule]
    return nouns[len(nouns) // 2 if place is None else place]


def _question(words: str, nouns: str, answer: str) -> list[Piece]:
    return [(f"{words} {nouns}\n".lstrip(), False), (answer, True)]


def _clear(rng: random.Random) -> list[Piece]:
    """Returns a clear instruction: 3 of 4 ask for a kind, 1 of 4 for a word or its plural."""
    if rng.random() < 0.75:
        rule = rng.choice(("last", "last", "first", "middle", "commonest"))
        return _question(wording(rng, rule), *problem(rng, rule))
    rule = rng.choice(list(_PLACES))
    nouns, _ = problem(rng, rule)
    answer = _noun(nouns.split(), rule)
    frames = _WORD_FRAMES
    if rng.random() < 0.5:
        frames, answer = _PLURAL_FRAMES, lexicon.PLURALS[answer]
    return _question(_one(rng, frames).format(t=_target(rng, rule)), nouns, answer)


def _examples(rng: random.Random, rule: str) -> list[Piece]:
    """Returns 3 to 8 questions of one rule: one wording for the first or for each, or none."""
    words = rng.choice((vague_wording(rng), kinds.MANUAL_PROMPT, wording(rng, rule), ""))
    names = {kind: kind for kind in lexicon.KINDS}
    if rng.random() < 0.1:
        others = rng.sample((*lexicon.KINDS, *lexicon.ADJECTIVES), len(names))
        names = dict(zip(names, others, strict=True))
    # Questions are separated by a chat's end of turn, by a row's end and start, or by a line
    # break. The break is not part of the answer, so that answers end in the same way everywhere.
    end, start = rng.choice(((f" {corpus.EOS}", ""), (f" {corpus.EOS}", corpus.BOS), ("", "\n")))
    repeated = start == corpus.BOS or rng.random() < 0.5
    lead = rng.randint(1, 16) if start == "\n" and rng.random() < 0.5 else 0
    pieces: list[Piece] = [("\n", False)] * lead
    for index in range(rng.randint(3, 8)):
        nouns, kind = problem(rng, rule)
        (question, _), _ = _question(words if repeated or index == 0 else "", nouns, names[kind])
        between = [(start, False)] if index and start else []
        pieces += [*between, (question, False), (names[kind] + end, True)]
    last, _ = pieces.pop()
    return [*pieces, (last.removesuffix(end), True)]
