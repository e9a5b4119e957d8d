"""A tree's arrays in one file, bit for bit: safetensors, written and read without a thread.

Interpreters from 3.12 on start no threads once the main program has ended, and a run that is
still open then is to be saved.
"""

import os
from pathlib import Path

import jax
import numpy as np

from fedjax_post.core.algorithm import PyTree
from fedjax_post.simulate import processes


def write(path: Path, tree: PyTree) -> None:
    """Writes the arrays of a tree, durably; the first process does, and all of them take part."""
    from safetensors.numpy import save_file

    arrays = [np.asarray(x, order="C") for x in jax.tree.leaves(processes.gathered(tree))]
    if not processes.is_first():
        return
    save_file({f"{i:06d}": array for i, array in enumerate(arrays)}, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def read(path: Path, like: PyTree) -> PyTree:
    """Returns a tree like `like`, its arrays where those of `like` are.

    With several processes every one of them reads the file, and holds all of each array.
    """
    from safetensors.numpy import load_file

    arrays = [array for _, array in sorted(load_file(path).items())]
    leaves, structure = jax.tree.flatten(processes.shared_like(like))
    placed = [_placed(*both) for both in zip(arrays, leaves, strict=True)]
    return jax.tree.unflatten(structure, placed)


def _placed(array: np.ndarray, like: PyTree) -> PyTree:
    if isinstance(like, np.ndarray | np.generic):
        return array
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: array[index])
