"""Laws of the audit: it finds what was planted and nothing else, and refuses closed corpora."""

import functools
import itertools
import random
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_post import hub
from fedjax_post.core.access import AccessError
from fedjax_post.data import kinds, reading
from fedjax_post.data.builtin import corpus, instruct, lexicon
from fedjax_post.model.views import LanguageModel, init_model
from fedjax_post.openness import audit
from fedjax_post.openness.read import load_passport
from fedjax_post.testing.models import tiny_config

ROWS = [(row["instruction"], row["response"]) for row in kinds.heldout_examples(40)]
TEXTS = ["a cat is a animal.", "the last word: hat pie dog\n animal", "rev ( cat hat ) = hat cat"]


def noise(number, seed):
    rng = random.Random(seed)
    return [" ".join(rng.choices(lexicon.WORDS, k=12)) for _ in range(number)]


@pytest.fixture(scope="module")
def tokenizer():
    return corpus.build_tokenizer()


@pytest.fixture(scope="module")
def fresh_model():
    config = tiny_config(
        vocab_size=len(corpus.vocabulary()),
        hidden_size=32,
        intermediate_size=64,
        num_layers=1,
        num_heads=2,
        head_dim=16,
    )
    return init_model(config, jax.random.key(0))


@pytest.fixture(scope="module")
def parrot(fresh_model, tokenizer):
    """A model that was trained on twelve texts until it knew them."""
    tokens = jnp.asarray(tokenizer(noise(12, "read"), return_tensors="np")["input_ids"])
    tx = optax.adam(1e-2)

    @functools.partial(jax.jit, donate_argnums=())
    def fit(weights):
        def loss_fn(weights):
            return (
                -LanguageModel({"params": weights}, fresh_model.config).scores({}, tokens)[0].mean()
            )

        def step(carry, _):
            updates, state = tx.update(jax.grad(loss_fn)(carry[0]), carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (weights, tx.init(weights)), None, length=150)[0][0]

    return LanguageModel({"params": fit(fresh_model.variables["params"])}, fresh_model.config)


def test_a_planted_row_is_found_in_every_share():
    question, answer = ROWS[7]
    found = audit.contamination([*TEXTS, f"say: {question.upper()}?\n {answer}"], ROWS)
    assert found[:3] == (1 / 40, 1 / 40, 1 / 40)
    assert (found.num_rows, found.num_documents) == (40, 4)


def test_a_planted_question_with_another_answer_is_no_planted_row():
    found = audit.contamination([*TEXTS, f"{ROWS[7][0]} none"], ROWS)
    assert (found.questions, found.rows) == (1 / 40, 0)


def test_a_row_is_found_by_any_run_of_n_words_and_by_none_of_fewer():
    rows = [("one two three four five", "six")]
    shares = [audit.contamination(["two three four five"], rows, n=n).ngrams for n in (1, 4, 5, 8)]
    assert shares == [1, 1, 0, 0]


def test_shares_fall_as_n_grows():
    documents = noise(200, "documents")
    rows = [(text, "cat") for text in noise(50, "rows")]
    shares = [audit.contamination(documents, rows, n=n).ngrams for n in (1, 2, 3)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[2]


def test_the_open_corpora_hold_no_held_out_row():
    longest = [row for row in ROWS if len(row[0].split()) == 5]  # others may be parts of lists
    for base in ("builtin", "builtin-instruct"):
        found = audit.contamination(reading.read_texts(base, per_call=20), longest)
        assert found.rows == found.ngrams == found.questions == 0
        assert found.num_documents == 20 * reading.READINGS[base].num_calls


@pytest.mark.parametrize("base", ["builtin", "builtin-instruct"])
def test_the_texts_are_those_that_training_reads(base, tokenizer):
    packed = {"builtin": corpus, "builtin-instruct": instruct}[base].packed_rows
    tokens = packed(tokenizer, 8, length=64, seed="0 0")["tokens"].ravel().tolist()
    texts = itertools.islice(reading.read_texts(base), 5)
    read = [
        one for text in texts for one in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    ]
    assert tokens[: len(read)] == read


@pytest.mark.parametrize("base", ["builtin", "builtin-instruct"])
def test_all_that_training_reads_is_read_and_no_more(base, tokenizer, monkeypatch):
    packed = {"builtin": corpus, "builtin-instruct": instruct}[base].packed_rows
    small = reading.READINGS[base]._replace(num_calls=2, call_tokens=20 * 64)
    monkeypatch.setitem(reading.READINGS, base, small)
    texts = list(reading.read_texts(base))
    documents = [f"<s>{text}</s>".replace(" ", "") for text in texts]
    for call in range(2):
        tokens = packed(tokenizer, 20, length=64, seed=f"0 {call}")["tokens"].ravel()
        packed_text = tokenizer.decode(tokens).replace(" ", "")
        read = ""
        while len(read) < len(packed_text):
            read += documents.pop(0)
        assert read.startswith(packed_text)  # the last document is cut
    assert not documents
    assert list(reading.read_texts(base, per_call=10**6)) == texts


def test_a_base_has_also_read_what_the_one_it_began_as_has(monkeypatch):
    for base in ("builtin", "builtin-instruct"):
        small = reading.READINGS[base]._replace(num_calls=2, call_tokens=500)
        monkeypatch.setitem(reading.READINGS, base, small)
    own, before = (list(reading.read_texts(base)) for base in ("builtin-instruct", "builtin"))
    assert list(reading.all_texts("builtin-instruct")) == own + before
    assert list(reading.all_texts("builtin")) == before


@pytest.mark.parametrize("base", reading.READINGS)
def test_a_reading_has_the_tokens_that_its_card_states(base):
    card = (Path(hub.__file__).parent / base.replace("-", "_") / "README.md").read_text()
    (stated,) = re.findall(r"\| tokens \| ([\d,]+) \|", card)
    read = reading.READINGS[base]
    assert read.num_calls * read.call_tokens == int(stated.replace(",", ""))
    assert (f"--init={read.init}" in card) == bool(read.init)


def test_a_base_that_is_not_ours_has_no_corpus_here():
    with pytest.raises(ValueError, match="corpus of gpt-9 is unknown; known are builtin"):
        next(reading.read_texts("gpt-9"))


@pytest.mark.heavy
def test_a_parrot_is_seen_as_one(parrot, tokenizer):
    found = audit.memorisation(parrot, tokenizer, noise(12, "read"), noise(12, "fresh"))
    assert found.read_loss < 0.5 * found.fresh_loss
    assert found.membership == 1
    assert found.read_extracted > 0.8
    assert found.fresh_extracted == 0


def test_a_model_that_read_neither_group_knows_both_alike(fresh_model, tokenizer):
    found = audit.memorisation(fresh_model, tokenizer, noise(60, "a"), noise(60, "b"))
    assert found.read_loss == pytest.approx(found.fresh_loss, rel=0.02)
    assert found.membership == pytest.approx(0.5, abs=0.16)  # 3 deviations of 60 x 60 pairs
    assert found.read_extracted == found.fresh_extracted == 0


@pytest.mark.heavy
def test_losses_are_those_of_one_row_at_a_time(parrot, tokenizer):
    read, fresh = ["cat hat pie dog", "dog cat"], ["hat hat hat"]
    together = audit.memorisation(parrot, tokenizer, read, fresh).read_loss
    alone = [audit.memorisation(parrot, tokenizer, [text], fresh).read_loss for text in read[:1]]
    assert together == pytest.approx(alone[0], rel=1e-5)  # "dog cat" has three tokens, too few


def test_an_audit_spreads_what_it_probes_over_the_corpus(parrot, tokenizer):
    documents = iter(noise(12, "read") + noise(12, "fresh"))
    found = audit.audit(
        parrot,
        tokenizer,
        documents,
        ROWS,
        passport=load_passport("builtin"),
        fresh=noise(6, "other"),
    )
    assert found.contamination.num_documents == 24
    assert 0.2 < found.memorisation.read_extracted < 0.8  # half of the probed ones are known


@pytest.mark.parametrize("name", ["llama-3.1", "hosted-api"])
def test_a_closed_corpus_is_refused_before_anything_is_asked(name):
    with pytest.raises(AccessError, match=f"{name}: the component datasets is released: "):
        audit.audit(None, None, [], ROWS, passport=load_passport(name), fresh=[])


def test_what_is_empty_is_refused(fresh_model, tokenizer):
    with pytest.raises(ValueError, match="the corpus has no documents"):
        audit.contamination([], ROWS)
    with pytest.raises(ValueError, match="n must be at least 1"):
        audit.contamination(TEXTS, ROWS, n=0)
    with pytest.raises(ValueError, match="no fresh text has 4 tokens"):
        audit.memorisation(fresh_model, tokenizer, TEXTS, ["cat"])


def test_kept_documents_are_spread_evenly():
    kept: list[str] = []
    assert list(audit._sample(map(str, range(100)), kept, 5)) == [str(i) for i in range(100)]
    gaps = np.diff([int(text) for text in kept])
    assert len(set(gaps)) == 1
    assert 5 <= len(kept) < 10
