"""The span of a linear layer's inputs, read from a gradient, and how far vectors are from it.

For `y = x W` over n tokens, dL/dW = X' dL/dY: the columns of a gradient `[in, out]` are sums of the
n inputs. If their number is below `in`, nearly no other vector lies in their span.
"""

from typing import NamedTuple

import numpy as np

_EPS = float(np.finfo(np.float32).eps)
_TINY = float(np.finfo(np.float64).tiny)
_SUMS = 10  # errors of float32 sums, in last places of the largest singular value


class Space(NamedTuple):
    """A subspace of R^dim."""

    basis: np.ndarray  # [dim, rank], float64, orthonormal columns
    margin: float = np.inf  # of the smallest singular value that counts over the limit of noise

    @property
    def is_whole(self) -> bool:
        """Whether all vectors lie in it, so that it distinguishes none."""
        return self.basis.shape[0] == self.basis.shape[1]

    @property
    def rank(self) -> int:
        """Number of its dimensions."""
        return self.basis.shape[1]


def space_of(matrix: np.ndarray, *, noise: float = 0.0) -> Space:
    """Returns the space that the columns of a matrix span, above its noise.

    Singular values count from the larger of two limits: of float32 sums, and of independent errors
    of deviation `noise`, whose largest singular value is about noise (sqrt(rows) + sqrt(columns)).

    Args:
      matrix: `[dim, columns]`.
      noise: deviation of the errors of its entries.
    """
    left, values, _ = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    limit = noise * (np.sqrt(matrix.shape[0]) + np.sqrt(matrix.shape[1]))
    limit = max(limit, _SUMS * _EPS * values[0])
    counts = values > limit
    return Space(left[:, counts], float(values[counts].min(initial=np.inf) / max(limit, _TINY)))


def distances(space: Space, vectors: np.ndarray) -> np.ndarray:
    """Returns the distance of each vector from a space, over the vector's length: from 0 to 1.

    Args:
      space: of dimension `dim`.
      vectors: `[..., dim]`.

    Returns:
      `[...]`, float64.
    """
    vectors = np.asarray(vectors, np.float64)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors = vectors / np.maximum(length, _TINY)
    return np.linalg.norm(vectors - (vectors @ space.basis) @ space.basis.T, axis=-1)


def rounding_of(start: np.ndarray, num_steps: float) -> float:
    """Returns the deviation of the errors in a change of float32 weights after some steps.

    Each step rounds to a multiple of the weight's last place, at most `_EPS` times the weight.

    Args:
      start: the weights before.
      num_steps: number of steps.
    """
    size = float(np.sqrt(np.mean(np.square(np.asarray(start, np.float64)))))
    return _EPS * size * max(1.0, num_steps) ** 0.5 / 2
