"""Laws of the task for bases that can be prompted, and of the corpus that teaches prompting."""

import collections
import itertools
import random

import pytest

from fedjax_post.data import Population, kinds, load_clients
from fedjax_post.data.builtin import corpus, instruct, lexicon, tasks

CLIENTS = 128


@pytest.fixture(scope="module")
def train():
    return [
        row
        for client in range(CLIENTS)
        for row in kinds.client_examples(client, num_examples=kinds.client_size(client))
    ]


@pytest.fixture(scope="module")
def heldout():
    return kinds.heldout_examples(480)


@pytest.fixture(scope="module")
def documents():
    rng = random.Random("documents")
    return [instruct.document(rng) for _ in range(2000)]


@pytest.fixture(scope="module")
def tokenizer():
    return corpus.build_tokenizer()


def nouns_of(row):
    return row["instruction"].split()


def test_splits_share_no_list(train, heldout):
    trained = {row["instruction"] for row in train}
    assert not trained & {row["instruction"] for row in heldout}
    assert not any(tasks.is_held_out(text.split()) for text in trained)


def test_the_label_is_the_kind_of_the_last_noun_and_one_kind_is_commonest(train, heldout):
    for row in [*train, *heldout]:
        nouns = nouns_of(row)
        assert row["response"] == row["label"] == lexicon.KIND_OF[nouns[-1]]
        assert len(set(nouns)) == len(nouns) in kinds.LENGTHS
        assert kinds.commonest_kind(nouns)


def test_the_commonest_kind_is_right_in_half_of_the_rows(train, heldout):
    for rows, slack in ((train, 0.02), (heldout, 0.06)):  # 4 and 2.6 standard deviations
        right = sum(kinds.commonest_kind(nouns_of(row)) == row["label"] for row in rows)
        assert right / len(rows) == pytest.approx(0.5, abs=slack)


def test_labels_are_balanced_over_the_population_and_not_within_a_client(train, heldout):
    shares = collections.Counter(row["label"] for row in train)
    assert max(shares.values()) < 0.27 * len(train)  # Dirichlet: 0.2 +- 0.02 over 128 clients
    assert min(shares.values()) > 0.13 * len(train)
    even = collections.Counter(row["label"] for row in heldout)
    assert max(even.values()) - min(even.values()) == 0
    largest = [max(kinds.client_shares(client).values()) for client in range(CLIENTS)]
    assert sum(share > 0.5 for share in largest) > CLIENTS / 2


def test_rows_do_not_depend_on_the_process():
    row = kinds.client_examples(3, num_examples=1)[0]
    assert row == {"instruction": "pig hen coat", "response": "garment", "label": "garment"} | {
        "client": 3,
        "rejected": "animal",
    }


def test_the_other_answer_is_wrong_and_what_a_base_would_say_if_that_is(train, heldout):
    for row in [*train, *heldout]:
        assert row["rejected"] in lexicon.KINDS
        assert row["rejected"] != row["response"]
        commonest = kinds.commonest_kind(nouns_of(row))
        assert commonest in (row["response"], row["rejected"])


def test_equal_seeds_give_equal_rows_and_more_rows_begin_alike():
    few = kinds.client_examples(7, num_examples=5)
    assert few == kinds.client_examples(7, num_examples=9)[:5]
    assert few != kinds.client_examples(7, num_examples=5, seed=1)
    assert few != kinds.client_examples(8, num_examples=5)


@pytest.mark.parametrize("place", [-1, 0, 1, None])
@pytest.mark.parametrize("held_out", [True, False])
def test_a_drawn_list_has_its_kind_at_its_place_and_its_split(place, held_out):
    rng = random.Random(f"{place} {held_out}")
    for _ in range(50):
        nouns = kinds.draw_list(rng, "food", held_out=held_out, place=place)
        assert lexicon.KIND_OF[nouns[len(nouns) // 2 if place is None else place]] == "food"
        assert tasks.is_held_out(nouns) == held_out


def test_a_line_loads_it_with_a_token_for_each_word_and_label(tokenizer):
    loaded = load_clients(
        "builtin-kinds",
        tokenizer,
        batch_size=2,
        local_steps=1,
        population=Population(num_clients=3),
    )
    assert loaded.names == ("0", "1", "2")
    assert len(loaded.heldout.length) == 480
    assert loaded.heldout.length.max() == 9  # bos, five nouns, line break, kind, eos
    assert loaded.report["columns"]["label"] == "label"


def test_too_few_clients_are_refused_with_the_default():
    with pytest.raises(ValueError, match="got 0 and 480; the default is 128"):
        kinds.rows(0)


def test_the_corpus_speaks_in_known_words(documents, tokenizer):
    used = collections.Counter(
        token
        for pieces in documents
        for text, _ in pieces
        for word in text.split(" ")
        if word != "\n"
        for token in tokenizer.tokenize(word)
    )
    spelled = {token for token in used if not token.startswith("Ġ")}
    assert spelled <= {"Ċ", ":", ".", ",", "?", corpus.BOS, corpus.EOS}
    assert "Ġ" not in used


def test_the_prompts_are_in_known_words_and_only_one_is_clear(tokenizer):
    for prompt in (kinds.MANUAL_PROMPT, kinds.CLEAR_PROMPT):
        assert all(token.startswith("Ġ") or token == ":" for token in tokenizer.tokenize(prompt))
    assert "last" in kinds.CLEAR_PROMPT.split()
    assert not {"last", "first", "middle"} & set(kinds.MANUAL_PROMPT.split())


def test_no_run_of_nouns_in_a_question_of_the_corpus_is_a_held_out_list(documents):
    nouns = set(lexicon.NOUNS)
    for pieces in documents:
        for text, is_answer in pieces:
            if is_answer or not text.endswith("\n"):
                continue  # formulas are drawn from the training split of `tasks`
            words = text.strip().replace(":", " ").split()
            runs = itertools.groupby(words, key=lambda word: word in nouns)
            for listed in (tuple(run) for is_noun, run in runs if is_noun):
                assert not tasks.is_held_out(listed)


@pytest.mark.heavy
def test_a_vague_wording_is_answered_by_the_commonest_kind_most_often():
    rng = random.Random("vague")
    asked = collections.Counter()
    while asked["all"] < 300:
        pieces = instruct.document(rng)
        question = pieces[0][0]
        if len(pieces) == 2 and question.startswith(kinds.MANUAL_PROMPT):
            nouns = [word for word in question.split() if word in lexicon.KIND_OF]
            asked["all"] += 1
            asked["commonest"] += kinds.commonest_kind(nouns) == pieces[1][0]
            asked["last"] += lexicon.KIND_OF[nouns[-1]] == pieces[1][0]
    assert asked["commonest"] > 1.2 * asked["last"]


def test_packing_ends_every_document_and_marks_answers(tokenizer):
    rows = instruct.packed_rows(tokenizer, 8, length=128, seed="x")
    again = instruct.packed_rows(tokenizer, 8, length=128, seed="x")
    assert all((rows[name] == again[name]).all() for name in rows)
    tokens, is_answer = rows["tokens"].ravel(), rows["is_answer"].ravel()
    assert tokens[0] == tokenizer.bos_token_id
    ends = (tokens == tokenizer.eos_token_id).nonzero()[0]
    assert is_answer[ends].all()
    starts = ends[ends + 1 < len(tokens)] + 1
    assert (tokens[starts] == tokenizer.bos_token_id).mean() > 0.5  # the rest are chats' turns
