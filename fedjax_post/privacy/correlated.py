"""Noise that is correlated over rounds: DP-FTRL with a banded matrix factorisation.

Choquette-Choo et al., "(Amplified) Banded Matrix Factorization: A unified approach to private
training", NeurIPS 2023, arXiv:2306.08153. The noise of round t is row t of C^-1 Z, for independent
Z and a lower triangular C with `bands` bands and columns of norm 1, so that later rounds take back
some of the noise of earlier ones and the noise of their sum is small. A client must not take part
again before `bands` rounds have passed, see `simulate.cohort.cyclic`.

C is the Toeplitz matrix of least mean squared error of all partial sums, found by
`jax_privacy.matrix_factorization` (extra `[ftrl]`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax_post.core.algorithm import PyTree


class Correlation(NamedTuple):
    """How the noise of a round is made of independent numbers of this round and of earlier ones."""

    init: Callable[[PyTree], PyTree]  # (like) -> memory
    next: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]  # (drawn, memory) -> (noise, memory)


def independent() -> Correlation:
    """Returns noise that is drawn anew in every round."""
    return Correlation(lambda like: (), lambda drawn, memory: (drawn, memory))


def banded(*, rounds: int, bands: int) -> Correlation:
    """Returns noise whose sums over rounds have the least error for a number of bands.

    The server keeps `bands - 1` trees like the value. One band is `independent`.

    Args:
      rounds: number of rounds of the whole run; later rounds have no guarantee.
      bands: number of bands, from 1 to `rounds`.

    Raises:
      ValueError: if `bands` is out of range.
      ImportError: if `jax_privacy` is not installed.
    """
    if not 1 <= bands <= rounds:
        raise ValueError(f"bands={bands} must be from 1 to the number of rounds, {rounds}")
    if bands == 1:
        return independent()
    toeplitz = _library()
    coefficients = toeplitz.optimize_banded_toeplitz(rounds, bands)
    inverse = toeplitz.inverse_as_streaming_matrix(coefficients, column_normalize_for_n=rounds)
    return Correlation(inverse.init_multiply, inverse.multiply_next)


def _library() -> Any:
    try:
        from jax_privacy.matrix_factorization import toeplitz
    except ImportError as error:
        raise ImportError(
            "noise that is correlated over rounds needs jax_privacy; "
            "install the extra: pip install 'fedjax_post[ftrl]'"
        ) from error
    return toeplitz
