"""What all prompts begin with: never a response, and never a whole prompt."""

import numpy as np
import pytest

from fedjax_post.data.table import TokenTable, common_start


def table_of(*rows):
    """A table of (prompt tokens, response tokens) in two chunks."""
    parts = [np.array([*prompt, *(~t for t in answer)], np.int32) for prompt, answer in rows]
    half, length = len(parts) // 2, np.array([len(part) for part in parts], np.int32)
    begin = lambda sizes: np.cumsum([0, *sizes])[:-1].astype(np.int64)
    return TokenTable(
        values=(np.concatenate([*parts[:half], [0]]), np.concatenate(parts[half:])),
        chunk=np.array([0] * half + [1] * (len(parts) - half), np.int32),
        start=np.concatenate([begin(length[:half]), begin(length[half:])]),
        length=length,
        prompt_length=np.array([len(prompt) for prompt, _ in rows], np.int32),
        max_length=16,
        pad_id=0,
    )


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ([[1, 2, 3, 4], [1, 2, 5]], [1, 2]),
        ([[1, 2, 3], [1, 2]], [1]),  # the second prompt keeps a token
        ([[1, 2, 3], [1, 2, 3]], [1, 2]),
        ([[1, 2, 3], [2, 2, 3]], []),
        ([[1], [1, 2]], []),
        ([[], [1, 2]], []),
        ([[1, 2, 9], [1, 2, 8], [1, 2, 7], [1, 3, 7]], [1]),
    ],
)
def test_every_prompt_goes_on_after_the_common_start(prompts, expected):
    table = table_of(*[(prompt, [9, 6]) for prompt in prompts])
    assert common_start([table]).tolist() == expected


def test_it_is_that_of_all_tables():
    tables = [table_of(*[([1, 2, 3, i], [9])] * 2) for i in (4, 5)]
    assert [common_start(tables[:1]).tolist(), common_start(tables).tolist()] == [[1, 2, 3]] * 2
    other = table_of(*[([1, 2, 7, 7], [9])] * 2)
    assert common_start([*tables, other]).tolist() == [1, 2]


def test_a_chat_is_compared_up_to_its_first_response():
    row = np.array([1, 2, ~5, 3, 4, ~6], np.int32)
    one = np.zeros(1, np.int32)
    chat = TokenTable((row,), one, one, one + 6, one + 5, 8, 0)
    assert common_start([chat]).tolist() == [1]
