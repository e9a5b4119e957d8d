"""The pre-training corpus of the built-in base: skills in formal notation, prose, a tokenizer.

Three quarters of the documents state a skill as a formula; one quarter are
sentences about the same small world. No document has the form of an
instruction with its answer, and no formula uses a held-out list. What the base
lacks, and a federation can teach it, is to follow instructions.
"""

import random
import re
from collections.abc import Callable, Iterable

import numpy as np

from fedjax_post.data.builtin import lexicon, tasks

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# An instruction, a line break, the answer, the end. The tokenizer puts a space before every text.
# The space before an answer makes its first word the same token as at the beginning of a text.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' }}{% endif %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
)

_NOTATIONS = ("{o} ( {x} ) = {y}", "( {x} ) {o} = {y}", "{o} : {x} -> {y}", "{x} | {o} -> {y}")

# other names of the operators, so that words that people use for the same skill occur together
_GLOSSARY = {
    "reverse": "reverse the order;turn around;backwards;from last to first;flipped;"
    "read from the end to the start",
    "swap": "swap the first and the last;exchange the two ends;ends swapped;"
    "first and last trade places;the outer two switched;the ends change seats",
    "double": "write twice;repeat every one;doubled;say two times;two of each;an echo follows",
    "replace": "replace by;put in place of;becomes;change into;instead of;takes its seat;leaves",
    "opposite": "the opposite;the contrary;opposites;antonyms;the other extreme;the other way",
    "plural": "the plural;more than one;plurals;there are many;lots of them;more of each came",
    "kind": "the kind;the group;kinds;label with its class;the types;what sort of thing",
    "keep": "keep only;pick from;only;which of these;just the;all but these go away",
    "sort": "sort;arrange;sorted;begin with the lowest;in rising order;"
    "the little ones stand in front",
    "next": "add one;what comes after;plus one;count one step further;the next ones;grows by one",
}

_SENTENCES = (
    "a {noun} is a {kind}.",
    "the {adjective} {noun} is a sort of {kind}.",
    "each {noun} in this list is one of the {kinds}.",
    "there are two {nouns} and one {other}.",
    "more than one {noun}: many {nouns}.",
    "{adjective} is the opposite of {contrary}.",
    "the {noun} was {adjective}, now it is {contrary}.",
    "after {number} comes {successor}.",
    "{number} plus one is {successor}.",
    "the number {number} stands before {larger}.",
    "{operator} means {gloss}.",
    "{gloss}, in short {operator}.",
    "{gloss} is the same as {synonym}.",
    "hey, i have a {adjective} {noun}, ok?",
    "could you please give me the {noun}?",
    "i need a {noun}, could you tell me which one?",
    "say the name of the {kind}.",
    "exercise: find a {adjective} {noun} and write its name.",
    "the {noun} was {adjective}. then the {kinds} came.",
    "let them count the {nouns}, these words stay in the middle.",
)


def formula(rng: random.Random, problem: tasks.Problem) -> tuple[str, str]:
    """Returns a problem in a formal notation, as the text up to its equals sign and after it."""
    names = lexicon.OPERATORS[problem.task], rng.choice(_GLOSSARY[problem.task].split(";"))
    operator = " ".join([rng.choice(names), *problem.arguments])
    text = rng.choice(_NOTATIONS).format(
        o=operator, x=" ".join(problem.operands), y=tasks.solve(problem)
    )
    sign = "=" if "=" in text else "->"
    question, answer = text.split(f" {sign} ")
    return f"{question} {sign}", answer


def sentence(rng: random.Random) -> str:
    """Returns a sentence of prose about the built-in world."""
    noun, adjective = rng.choice(lexicon.NOUNS), rng.choice(lexicon.ADJECTIVES)
    number = rng.randrange(99)
    task = rng.choice(list(_GLOSSARY))
    glosses = _GLOSSARY[task].split(";")
    return rng.choice(_SENTENCES).format(
        noun=noun,
        nouns=lexicon.PLURALS[noun],
        kind=lexicon.KIND_OF[noun],
        kinds=lexicon.KIND_PLURALS[lexicon.KIND_OF[noun]],
        other=rng.choice(lexicon.NOUNS),
        adjective=adjective,
        contrary=lexicon.OPPOSITES[adjective],
        number=number,
        successor=number + 1,
        larger=rng.randrange(number + 1, 100),
        operator=lexicon.OPERATORS[task],
        gloss=rng.choice(glosses),
        synonym=rng.choice(glosses),
    )


def document(rng: random.Random, *, prose: float = 0.25) -> tuple[str, str]:
    """Returns a document: with probability `prose` a sentence without answer, else a formula."""
    if rng.random() < prose:
        return sentence(rng), ""
    task = rng.choice(list(tasks.TASKS))
    return formula(rng, tasks.draw_problem(rng, task, held_out=False))


def vocabulary() -> dict[str, int]:
    """Returns token -> id: three special tokens, the 256 bytes, then every word with its space.

    Bytes are written as in byte-level tokenizers, so the space before a word is `Ġ`.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    texts = [text for table in lexicon.PHRASES.values() for text in table.values()]
    texts += [*_SENTENCES, *_GLOSSARY.values()]
    spoken = [word for text in texts for word in re.findall("[a-z]+", re.sub("{.*?}", "", text))]
    words = [*lexicon.OPERANDS, *lexicon.KINDS, *lexicon.KIND_PLURALS.values()]
    words += [*lexicon.OPERATORS.values(), "(", ")", "=", "->", "|", ":", *spoken]
    tokens = [BOS, EOS, PAD, *sorted(ByteLevel.alphabet()), *(f"Ġ{word}" for word in words)]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def build_tokenizer():
    """Returns the tokenizer of the built-in model, as a `transformers` fast tokenizer.

    A word of the built-in world is one token, any other text is split into
    bytes, and decoding gives back exactly what was encoded. A space is put
    before every text, so that a word is the same token wherever it occurs.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    # without merges, a known word becomes one token and an unknown word its bytes
    tokenizer = Tokenizer(BPE(vocab=vocabulary(), merges=[], ignore_merges=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def packed_rows(tokenizer, num_rows: int, *, length: int, seed: str) -> dict[str, np.ndarray]:
    """Returns rows cut from a sequence of documents, each between bos and eos.

    Args:
      tokenizer: as `build_tokenizer` returns it.
      num_rows: number of rows.
      length: tokens of a row.
      seed: equal seeds give equal rows.

    Returns:
      "tokens", int32 `[num_rows, length]`, and "is_answer", bool of the same shape: True for
      tokens that follow from those before them; the others are drawn at random.
    """
    rng = random.Random(f"corpus {seed}")

    def pieces():
        return zip(document(rng), (False, True), strict=True)

    return pack(tokenizer, pieces, num_rows, length=length)


def pack(
    tokenizer,
    document_fn: Callable[[], Iterable[tuple[str, bool]]],
    num_rows: int,
    *,
    length: int,
) -> dict[str, np.ndarray]:
    """Returns documents packed as `packed_rows` does, each made of pieces of text with a flag.

    Words are separated by spaces; a line break that is not a word is part of the word before it.

    Args:
      tokenizer: as `build_tokenizer` returns it.
      document_fn: returns the pieces of the next document: (text, is_answer).
      num_rows: number of rows.
      length: tokens of a row.
    """
    word_ids: dict[str, list[int]] = {BOS: [tokenizer.bos_token_id], EOS: [tokenizer.eos_token_id]}
    word_ids["\n"] = tokenizer.encode(f"{EOS}\n", add_special_tokens=False)[-1:]
    tokens: list[int] = []
    is_answer: list[bool] = []
    while len(tokens) < num_rows * length:
        for text, flag in ((BOS, False), *document_fn(), (EOS, True)):
            for word in text.split(" ") if text else ():
                if word not in word_ids:
                    word_ids[word] = tokenizer.encode(word, add_special_tokens=False)
                tokens += word_ids[word]
            is_answer += [flag] * (len(tokens) - len(is_answer))
    size = num_rows * length
    columns = {"tokens": np.asarray(tokens, np.int32), "is_answer": np.asarray(is_answer)}
    return {name: column[:size].reshape(num_rows, length) for name, column in columns.items()}
