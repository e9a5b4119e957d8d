"""Widths to which batches of rows are padded: few, since each is compiled for itself."""

from collections.abc import Sequence

NARROWEST = 16
# A narrower batch is worth compiling if it saves this many products of a weight and a token: what a
# processor computes in the seconds that it would take to compile the batch
WORTH, WORTH_ACCELERATOR = 3e11, 1e15


def choose_widths(longest: Sequence[int], *, size: int, worth: float) -> list[int]:
    """Returns the width of each batch: as few different ones as pay for themselves.

    Args:
      longest: tokens of the longest row of each batch.
      size: rows of a batch.
      worth: tokens that a width has to save, over all batches that are no wider, to be used.

    Example:
      >>> choose_widths([10, 30, 33, 60], size=4, worth=100)
      [32, 32, 48, 60]
    """
    widths, current = [0] * len(longest), max(longest, default=0)
    order = sorted(range(len(longest)), key=lambda i: -longest[i])
    for number, i in enumerate(order):
        narrower = min(padded_width(longest[i]), current)
        if (current - narrower) * size * (len(order) - number) >= worth:
            current = narrower
        widths[i] = current
    return widths


def padded_width(length: int) -> int:
    """Returns the next power of two, or three quarters of it, at least `NARROWEST`.

    >>> [padded_width(length) for length in (1, 16, 17, 25, 33, 50, 100)]
    [16, 16, 24, 32, 48, 64, 128]
    """
    power = max(NARROWEST, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > NARROWEST and length <= power * 3 // 4 else power
