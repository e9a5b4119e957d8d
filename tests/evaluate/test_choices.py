"""Which rows are labelled, and what their labels are as tokens."""

import numpy as np
import pytest

from fedjax_post.evaluate.choices import LONGEST, find_choices, right_choices

EOS = 1
GOOD, BAD, ODD = [10], [11, 12], [13]


def decode(ids):
    return " ".join(map(str, ids))


def encode(text):
    return [int(word) for word in text.split()]


def find(*tables, labels=()):
    return find_choices(tables, eos_id=EOS, decode_fn=decode, encode_fn=encode, labels=labels)


def rows_of(*answers):
    """Rows that begin with 2 3 and end with 4, as a template would have it."""
    return [([2, 3, 20 + i, 4], answer) for i, answer in enumerate(answers)]


def test_few_responses_that_recur_are_labels(make):
    choices = find(make(rows_of(*[GOOD, BAD] * 3)))
    assert choices.texts == ("10", "11 12")
    assert choices.tokens.tolist() == [[10, 0], [11, 12]]
    assert choices.length.tolist() == [1, 2]


def test_labels_of_all_tables_count(make):
    choices = find(make(rows_of(*[GOOD] * 4)), make(rows_of(*[BAD] * 4)))
    assert choices.texts == ("10", "11 12")


@pytest.mark.parametrize("answers", [[[10 + i] for i in range(20)], [GOOD] * 20])
def test_rows_without_a_choice_have_no_labels(make, answers):
    assert find(make(rows_of(*answers[:12]))) is None


def test_long_responses_are_no_labels(make):
    long = list(range(2, 3 + LONGEST))
    assert find(make(rows_of(GOOD, BAD, *[long] * 5, GOOD, BAD, GOOD, BAD))) is None


def test_one_odd_or_cut_row_does_not_hide_the_labels(make):
    table = make([([2, 5], answer) for answer in [*[GOOD, BAD] * 10, ODD, [11]]], cut=[21])
    choices = find(table)
    assert choices.texts == ("10", "11 12")
    rows = np.array([0, 1, 20, 21])
    right = right_choices(choices, table, rows, eos_id=EOS, decode_fn=decode)
    assert right.tolist() == [0, 1, -1, -1]


def test_a_cut_row_has_no_label_even_if_it_spells_one(make):
    table = make(rows_of(*[GOOD, BAD] * 4), cut=[0])
    right = right_choices(find(table), table, np.arange(8), eos_id=EOS, decode_fn=decode)
    assert right.tolist() == [-1, 1, 0, 1, 0, 1, 0, 1]


def test_labels_keep_their_end_where_one_begins_another(make):
    choices = find(make(rows_of(*[[11], [11, 12]] * 3)))
    assert choices.tokens.tolist() == [[11, EOS, 0], [11, 12, EOS]]


def test_given_labels_are_those_of_the_rows_or_encoded(make):
    choices = find(make(rows_of(GOOD, BAD)), labels=("11 12", "10 ", "14 15 16"))
    assert choices.texts == ("11 12", "10", "14 15 16")
    assert choices.tokens.tolist() == [[11, 12, 0], [10, 0, 0], [14, 15, 16]]


def test_a_given_label_that_no_row_has_is_spelled_with_the_space_of_the_others(make):
    asked = []
    spell = {"decode_fn": lambda ids: " " + decode(ids), "encode_fn": lambda t: asked.append(t)}
    given = {"eos_id": EOS, "labels": ("10", "11 12", "14")}
    with pytest.raises(TypeError):  # what is encoded is all that matters
        find_choices([make(rows_of(GOOD, BAD))], **given, **spell)
    assert asked == [" 14"]


def test_the_null_prompt_is_the_template_without_the_row(make):
    assert find(make(rows_of(*[GOOD, BAD] * 3))).null_prompt.tolist() == [2, 3, 4]
    bare = make([([20 + i], answer) for i, answer in enumerate([GOOD, BAD] * 3)])
    assert find(bare).null_prompt.tolist() == [EOS]


def test_a_beginning_that_is_also_an_end_is_not_taken_twice(make):
    table = make([(prompt, a) for a in (GOOD, BAD) for prompt in ([2], [2, 2], [2, 5, 2])])
    assert find(table).null_prompt.tolist() == [2]
