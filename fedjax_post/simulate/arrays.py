"""A tree's arrays in one safetensors file, bit for bit, written and read without threads.

A run that is still open when the main program ends is saved then, and Python 3.12 and later start
no threads at that time.
"""

import os
from pathlib import Path

import jax
import numpy as np

from fedjax_post.core.algorithm import PyTree
from fedjax_post.simulate import processes


def write(path: Path, tree: PyTree) -> None:
    """Writes the arrays of a tree to disk; the first process writes, and all must call this."""
    from safetensors.numpy import save_file

    arrays = [np.asarray(x, order="C") for x in jax.tree.leaves(processes.gather(tree))]
    if not processes.is_first():
        return
    save_file({f"{i:06d}": array for i, array in enumerate(arrays)}, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def read(path: Path, like: PyTree) -> PyTree:
    """Returns the tree in a file, with the structure of `like` and on the devices of its arrays.

    With several processes, each reads the file and holds every array completely.
    """
    from safetensors.numpy import load_file

    arrays = [array for _, array in sorted(load_file(path).items())]
    leaves, structure = jax.tree.flatten(processes.shared_like(like))
    placed = [_place(*both) for both in zip(arrays, leaves, strict=True)]
    return jax.tree.unflatten(structure, placed)


def _place(array: np.ndarray, like: PyTree) -> PyTree:
    if isinstance(like, np.ndarray | np.generic):
        return array
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: array[index])
