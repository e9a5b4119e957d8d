"""The held-out rows, and how every model is scored on them."""

from typing import NamedTuple

import numpy as np

from fedjax_post.data.table import TokenTable
from fedjax_post.evaluate.choices import Choices, DecodeFn


class HeldOut(NamedTuple):
    """The held-out rows and settings with which every model is scored."""

    table: TokenTable
    rows: np.ndarray  # [n], int64, row numbers
    decode_fn: DecodeFn  # token ids without the end token -> text
    eos_id: int  # the token that ends an answer
    exact_match: bool  # whether answers are generated and compared
    batch_size: int = 32  # rows in one compiled call
    loss: bool = True  # whether the model gives the likelihood of a response
    labels: tuple[str, ...] = ()  # the possible answers; empty for any text
    rejected: TokenTable | None = None  # for preference pairs: the rows with rejected responses
    choices: Choices | None = None  # the possible answers, which are ranked; None: any text
    longest: int | None = None  # tokens; rows with longer responses are not compared; None: any
    room: int | None = None  # tokens that a prompt and its answer may take; None: any number
    prefix: tuple[int, ...] = ()  # tokens with which all prompts begin, read once for a batch
    ranked: bool = True  # whether `choices`, if there are any, are ranked


def choose_rows(num_rows: int, limit: int = 0, *, seed: int = 0) -> np.ndarray:
    """Returns up to `limit` row numbers, chosen at random, in ascending order.

    Args:
      num_rows: number of rows to choose from.
      limit: largest number of rows to choose; 0 for all.
      seed: equal seeds choose equal rows.

    Example:
      >>> choose_rows(4).tolist(), len(choose_rows(1000, 10))
      ([0, 1, 2, 3], 10)
    """
    if not 0 < limit < num_rows:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng((seed, 2)).permutation(num_rows)[:limit])


def is_ranked(heldout: HeldOut) -> bool:
    """Returns whether the possible answers are ranked by their likelihood."""
    return heldout.choices is not None and heldout.ranked


def score_names(heldout: HeldOut) -> list[str]:
    """Returns the names of the main scores that the rows allow, see `scores.score`."""
    has = {
        "loss": heldout.loss,
        "exact_match": heldout.exact_match,
        "accuracy": is_ranked(heldout),
        "preference": heldout.rejected is not None,
    }
    return [name for name, found in has.items() if found]


def answer_length(heldout: HeldOut) -> int:
    """Returns the tokens of the longest response that is compared, with its end; 0 without any."""
    return int(_response_lengths(heldout).max())


def is_compared(heldout: HeldOut) -> np.ndarray:
    """Returns which rows of the table can be compared with generated answers, bool `[num_rows]`.

    A row cannot be compared if it is cut or has no prompt, if its response is longer than
    `heldout.longest`, or if its prompt and the longest response that is compared have no room in
    the model's context.
    """
    fits = (_response_lengths(heldout) > 0) & (heldout.table.prompt_length > 0)
    if heldout.room is not None:
        fits &= heldout.table.prompt_length + answer_length(heldout) <= heldout.room
    return fits


def _response_lengths(heldout: HeldOut) -> np.ndarray:
    """Returns the tokens of all responses in the table, 0 for those that cannot be compared."""
    table = heldout.table
    sizes = table.length - table.prompt_length
    fits = np.ones(len(sizes), bool) if table.is_cut is None else ~table.is_cut
    if heldout.longest is not None:
        fits &= sizes <= heldout.longest
    return np.where(fits, sizes, 0)
