"""Widths to which batches of rows are padded: a few, so that few shapes are compiled."""

NARROWEST = 16


def padded_width(length: int) -> int:
    """Returns the next power of two, or three quarters of it, at least `NARROWEST`.

    >>> [padded_width(length) for length in (1, 16, 17, 25, 33, 50, 100)]
    [16, 16, 24, 32, 48, 64, 128]
    """
    power = max(NARROWEST, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > NARROWEST and length <= power * 3 // 4 else power
