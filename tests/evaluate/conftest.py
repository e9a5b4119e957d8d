"""A held-out table of a few rows, made without a tokenizer."""

import numpy as np
import pytest

from fedjax_post.data.table import TokenTable

PAD, EOS = 0, 1


def make_table(rows, *, labels=None, cut=()):
    """A table of (prompt tokens, response tokens) pairs; the end token is put behind each.

    Rows whose numbers are in `cut` count as cut.
    """
    parts = [np.array([*prompt, *(~np.array([*answer, EOS]))], np.int32) for prompt, answer in rows]
    length = np.array([len(part) for part in parts], np.int32)
    return TokenTable(
        values=(np.concatenate(parts),),
        chunk=np.zeros(len(rows), np.int32),
        start=np.cumsum([0, *length[:-1]]).astype(np.int64),
        length=length,
        prompt_length=np.array([len(prompt) for prompt, _ in rows], np.int32),
        max_length=12,
        pad_id=PAD,
        label=None if labels is None else np.array(labels),
        is_cut=np.isin(np.arange(len(rows)), cut),
    )


@pytest.fixture(scope="session")
def make():
    return make_table


@pytest.fixture(scope="session")
def table():
    rng = np.random.default_rng(0)
    rows = [
        (rng.integers(2, 32, size).tolist(), rng.integers(2, 32, 1 + size % 3).tolist())
        for size in (2, 5, 3, 7, 4)
    ]
    return make_table(rows, labels=["a", "b", "a", "b", "b"])
