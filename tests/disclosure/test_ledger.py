"""The ledger: two accounts of disclosure, and the refusal before the first private token."""

import re

import numpy as np
import pytest

from fedjax_post.core.access import Access
from fedjax_post.data.builtin.corpus import build_tokenizer
from fedjax_post.disclosure.arrivals import Arrived, Private, arrivals, find, index_of, offsets_of
from fedjax_post.disclosure.ledger import (
    DisclosureError,
    Hosting,
    Price,
    account,
    carried_in,
    check_disclosure,
    confirm,
    count_visits,
    distinct_questions,
    hosting_of,
    public_tokens,
    totals,
)
from fedjax_post.disclosure.meter import Carried, Form, Purpose, digest


def words(text):
    return [found.span() for found in re.finditer(r"\s*\S+", text)]


def arrived(texts, *rows):
    return arrivals(texts, index_of(rows), offsets_fn=words)


def spans(text, *rows):
    return [text[s.start : s.end] for s in find(text, index_of(rows))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Q: the cat sat\nA:", ["the cat sat"]),  # inside a template
        ("the cat sat", ["the cat sat"]),  # bare
        ("a dog ran the cat sat", ["a dog ran", "the cat sat"]),  # two, at the edges
        ("the cat sat the cat sat", ["the cat sat"] * 2),  # each time
        ("the cat sat on the mat", ["the cat sat on the mat"]),  # longest where several fit
        ("the cat sat on the sofa", ["the cat sat"]),
        ("the cat", []),  # cut
        ("sat cat the", []),  # shuffled
        ("", []),
    ],
)
def test_rows_are_found_whole_longest_first(text, found):
    rows = [Private("the cat sat"), Private("the cat sat on the mat"), Private("a dog ran")]
    assert spans(text, *rows) == found


def test_texts_of_any_length_are_found_among_each_other():
    """Keys are the first 12 letters: around that length, and with equal beginnings."""
    rows = [Private("abcdefghijklmnop"[:n]) for n in (1, 11, 12, 13, 16)]
    for text, _, _ in rows:
        assert spans(f"-{text}-", *rows) == [text]


def test_what_is_found_equals_a_search_for_every_row():
    rng = np.random.default_rng(0)
    draw = lambda n: " ".join(rng.choice(["cat", "dog", "hen", "owl"], n))
    rows = sorted({draw(rng.integers(2, 6)) for _ in range(30)})
    for _ in range(50):
        text, found, at = draw(20), [], 0
        while at < len(text):
            fits = [row for row in rows if text[at:].startswith(row)]
            best = max(fits, key=len, default="")
            found += [best] if best else []
            at += len(best) or 1
        assert spans(text, *map(Private, rows)) == found


def test_tokens_are_counted_with_repeats_and_without():
    texts = ["Q: the cat sat A:", "Q: the cat sat A:", "Q: a dog A:", "nothing private"]
    found = arrived(texts, Private("the cat sat"), Private("a dog"), Private("never sent"))
    assert found == Arrived(
        texts=4, queries=3, private_tokens=3 + 3 + 2, unique_tokens=3 + 2, labels=0
    )


def fours(text):
    return [(i, min(i + 4, len(text))) for i in range(0, len(text), 4)]


def test_a_token_is_private_if_any_letter_of_it_is():
    """Tokens of four letters, in which a row's edges merge with the template's."""
    found = lambda text: arrivals([text], index_of([Private("abcde")]), offsets_fn=fours)
    assert found("Q:abcde.").private_tokens == 2
    assert found("Q: :abcde...").private_tokens == 2
    assert found("Q: abcde").private_tokens == 2
    assert found("Q:::abcde").private_tokens == 2
    assert found("Q::abcde").private_tokens == 2


def test_what_is_public_is_the_rest_of_a_question():
    public = lambda text, *literals: public_tokens(text, literals, offsets_fn=words)
    assert public("Q: the cat sat\nA:", "Q:", "\nA:") == 2
    assert public("Q: the cat", "Q: ", "") == 1
    assert public("the cat", "", "") == 0
    assert public("do this: a b with: c d now", "do this: ", " with: ", " now") == 4
    with pytest.raises(ValueError, match="does not match its template"):
        public("the cat", "Q: ", "")


def test_a_tokenizer_says_where_its_tokens_are():
    tokenizer = build_tokenizer()
    offsets = offsets_of(tokenizer)("say : cat dog\n")
    assert ["say : cat dog\n"[a:b] for a, b in offsets] == ["say", " :", " cat", " dog", "\n"]
    tokenizer = type("Slow", (), {"is_fast": False, "name_or_path": "slow/one"})()
    with pytest.raises(ValueError, match=r"slow/one .* tokenizer\.json"):
        offsets_of(tokenizer)


def test_a_label_counts_where_it_stands_behind_its_row():
    rows = [Private("the cat", "animal", "\n"), Private("a hat", "cloth", "\n")]
    shots = "the cat\nanimal\n\na hat\ncloth\n\nthe cat\n"
    found = arrived([shots], *rows)
    assert found.labels == 2
    assert found.private_tokens == 3 * 2 + 2  # three questions of two words, and two labels
    assert found.unique_tokens == 2 * 2
    assert arrived(["animal or cloth? the cat\n"], *rows).labels == 0
    assert arrived(["a hat\nanimal"], *rows).labels == 0


def record(round, **counts):
    return {"round": round, "bytes_up": 100 + round, **counts}


ASKED = [
    record(0, queries=4.0, tokens_sent=44.0),
    record(1, queries=2.0, tokens_sent=25.0),
]
FORM = Form(template=3, prompt=5, answer=1)
DISTINCT = [{"a": 12, "b": 8}, {"b": 8, "c": 11}]


def sent(records=ASKED, form=FORM):
    """What the rounds have sent in training, by an algorithm's own counts."""
    pairs = zip(records, DISTINCT, strict=False)
    return [
        (record["round"], Purpose.TRAINING, carried_in(record, form)._replace(distinct=distinct))
        for record, distinct in pairs
    ]


def test_queries_are_billed_whole_and_disclose_what_is_private():
    entries = account(ASKED, sent(), hosting=Hosting.PROVIDER, price=Price(2.0, 8.0))
    provider = [entry for entry in entries if entry.outside]
    assert [entry.private_tokens for entry in provider] == [44 - 4 * 3, 25 - 2 * 3]
    assert [entry.unique_tokens for entry in provider] == [20, 31]
    cost = ((44 + 4 * 5) * 2.0 + 4 * 8.0) / 1e6
    assert provider[0].cost == pytest.approx(cost)
    both = totals(entries)
    assert both["provider"].private_tokens == 51
    assert both["provider"].unique_tokens == 31
    assert both["server"].update_bytes == 201
    assert both["server"].private_tokens == 0


def test_purposes_are_listed_apart_and_have_their_own_distinct_questions():
    tested = Carried(queries=3, tokens=30, private_tokens=21, distinct={"a": 12})
    parts = [*sent(), (0, Purpose.EVALUATION, tested), (2, Purpose.EVALUATION, tested)]
    entries = account(ASKED, parts, hosting=Hosting.PROVIDER)
    found = [(e.purpose, e.round, e.private_tokens, e.unique_tokens) for e in entries if e.outside]
    assert found == [
        ("training", 0, 32, 20),
        ("training", 1, 19, 31),
        ("evaluation", 0, 21, 12),
        ("evaluation", 2, 21, 12),
    ]


def test_examples_are_private_but_for_what_stands_around_them():
    """Two queries of three examples each, whose template has 3 tokens, 2 without bos."""
    shown = record(0, queries=2.0, tokens_sent=2 * (8 + 3 * 6), labels_sent=6.0)
    form = Form(template=3, shot=2)
    entry = totals(account([shown], sent([shown], form), hosting=Hosting.PROVIDER))["provider"]
    assert entry.labels == 6
    assert entry.private_tokens == 2 * 5 + 6 * 4


def test_the_server_sees_questions_that_it_answers_and_takes_no_price():
    entries = account(ASKED, sent(), hosting=Hosting.SERVER, price=Price(2.0, 8.0))
    assert [entry.party for entry in entries] == ["server", "server"]
    assert not any(entry.outside or entry.cost for entry in entries)
    assert totals(entries)["server"].private_tokens == 51
    assert totals(entries)["server"].update_bytes == 201


def test_at_the_client_nothing_leaves_but_updates():
    for entry in account(ASKED, sent(), hosting=Hosting.CLIENT):
        assert entry == entry._replace(queries=0, private_tokens=0, labels=0, outside=False)


def test_a_method_that_asks_nobody_has_an_account_of_bytes():
    (entry,) = account([record(0)], [], hosting=Hosting.SERVER)
    assert entry.update_bytes == 100
    assert entry.queries == entry.private_tokens == 0


@pytest.mark.parametrize("name", ["queries", "private_tokens", "labels"])
def test_counts_that_differ_from_the_meter_are_refused_by_name(name):
    metered = Carried(queries=4, tokens=44, private_tokens=32, labels=2)
    confirm(metered._replace(tokens=50), metered, method="m")
    told = metered._replace(**{name: 7})
    with pytest.raises(ValueError, match=f"m counts 7 {name.replace('_', ' ')}"):
        confirm(told, metered, method="m")


@pytest.mark.parametrize(
    ("access", "where"),
    [
        ({"target": Access.TEXT}, Hosting.PROVIDER),
        ({"target": Access.EMBEDDINGS}, Hosting.PROVIDER),
        ({"target": Access.LOGITS, "proxy": Access.GRADIENTS}, Hosting.PROVIDER),  # serves there
        ({"target": Access.WEIGHTS}, Hosting.CLIENT),
        ({"target": Access.GRADIENTS}, Hosting.CLIENT),
        ({"emulator": Access.GRADIENTS}, Hosting.PROVIDER),
    ],
)
def test_weights_level_methods_run_at_the_client(access, where):
    assert hosting_of(access, Hosting.PROVIDER) == where
    assert hosting_of(access, Hosting.CLIENT) == Hosting.CLIENT
    check_disclosure(access, Hosting.SERVER, method="m")
    if where == Hosting.CLIENT:
        check_disclosure(access, Hosting.PROVIDER, method="m")
    else:
        with pytest.raises(DisclosureError, match="m .* inference=client"):
            check_disclosure(access, Hosting.PROVIDER, method="m")


def test_the_refusal_says_what_a_visit_would_send():
    with pytest.raises(DisclosureError, match="12 questions with 345 private tokens"):
        check_disclosure({"target": Access.TEXT}, Hosting.PROVIDER, method="m", rows=12, tokens=345)


BATCHES = {
    "tokens": np.array([[[1, 5, 6, 7, 9, 2], [1, 5, 6, 9, 2, 0]], [[1, 5, 8, 9, 2, 0]] * 2]),
    "loss_mask": np.array(
        [[[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]], [[0, 0, 0, 1, 1, 0], [0] * 6]], bool
    ),
}  # [2 steps, 2 rows, 6]: questions 1 5 6 7; 1 5 6; 1 5 8; and a row of padding


def test_visits_are_counted_by_their_distinct_questions():
    taken, cut = [True, True], [True, False]
    assert count_visits(BATCHES, taken, template=2) == (3, 2 + 1 + 1)
    assert count_visits(BATCHES, cut, template=2) == (2, 3)
    visits = [(0, BATCHES, cut), (0, BATCHES, cut), (1, BATCHES, taken)]
    first = {digest([1, 5, 6, 7]): 2, digest([1, 5, 6]): 1}
    every = first | {digest([1, 5, 8]): 1}
    assert distinct_questions(visits, template=2) == {0: first, 1: every}


def test_ten_thousand_queries_are_searched_at_once():
    """As many distinct texts as a run sends, against a population's rows."""
    rng = np.random.default_rng(0)
    vocabulary = [f"word{i}" for i in range(300)]
    rows = [" ".join(rng.choice(vocabulary, 12)) for _ in range(1000)]
    texts = [f"prompt {i % 10}: {rows[i % 1000]}\nanswer:" for i in range(10_000)]
    found = arrived(texts, *map(Private, rows))
    assert found.private_tokens == 10_000 * 12
    assert found.unique_tokens == 1000 * 12
