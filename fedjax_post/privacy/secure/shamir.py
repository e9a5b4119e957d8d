"""Shamir's secret sharing: any `threshold` of the shares give the secret, fewer give nothing.

Shamir, "How to Share a Secret", Communications of the ACM 22 (11), 1979. The secret is the value at
0 of a polynomial of degree `threshold` - 1 with random coefficients, over the integers modulo
the prime 2^256 + 297, so that every secret of 32 bytes has room; a share is its value at x > 0.
"""

from collections.abc import Mapping, Sequence

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
COEFFICIENT_BYTES = 64  # so long that the remainder modulo the prime is uniform


class ThresholdError(ValueError):
    """Fewer clients than the threshold are left, so that the sum of a round stays closed."""


def split(secret: bytes, points: Sequence[int], coefficients: Sequence[bytes]) -> dict[int, bytes]:
    """Returns a share of the secret for each point.

    >>> shares = split(bytes(31) + b"s", [1, 2, 3], [bytes(64)])
    >>> join({x: shares[x] for x in (1, 3)}, 2)[-1:]
    b's'

    Args:
      secret: 32 bytes.
      points: x of the shares, distinct and from 1 to 2^32.
      coefficients: random bytes, 64 for each, one less than the threshold.

    Raises:
      ValueError: for points that are not distinct or out of range, or too few of them.
    """
    if len(set(points)) < len(points) or not all(0 < x <= 2**32 for x in points):
        raise ValueError(f"points must be distinct and from 1 to 2^32, got {list(points)}")
    if len(points) <= len(coefficients):
        raise ThresholdError(
            f"{len(points)} shares of a secret cannot reach the threshold of "
            f"{len(coefficients) + 1}"
        )
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, got {len(secret)}")
    polynomial = [int.from_bytes(part) % PRIME for part in (secret, *coefficients)]

    def share(x):
        value = 0
        for coefficient in reversed(polynomial):
            value = (value * x + coefficient) % PRIME
        return value.to_bytes(SHARE_BYTES)

    return {x: share(x) for x in points}


def join(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Returns the secret, by interpolation of the first `threshold` shares at 0.

    Args:
      shares: by point.
      threshold: number of shares that are needed.

    Raises:
      ThresholdError: for fewer shares.
      ValueError: if the shares are not those of a secret of 32 bytes.
    """
    if len(shares) < threshold:
        raise ThresholdError(f"{len(shares)} shares are fewer than the threshold of {threshold}")
    points = sorted(shares)[:threshold]
    secret = 0
    for x in points:
        numerator = denominator = 1
        for other in points:
            if other != x:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - x) % PRIME
        weight = numerator * pow(denominator, -1, PRIME)
        secret = (secret + int.from_bytes(shares[x]) * weight) % PRIME
    if secret >= 2 ** (8 * SECRET_BYTES):
        raise ValueError("these shares are not those of one secret; one of them was changed")
    return secret.to_bytes(SECRET_BYTES)
