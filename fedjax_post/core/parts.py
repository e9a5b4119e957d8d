"""Splits a tree of parameters into two parts by the paths of its leaves."""

from collections.abc import Callable

import jax

from fedjax_post.core.algorithm import PyTree


def split(params: PyTree, is_taken: Callable[[str], bool]) -> tuple[PyTree, PyTree]:
    """Returns the remaining and the taken parameters, with None where a leaf is in the other part.

    Both trees have the form of the whole tree. None is not a leaf, so these gaps are neither
    trained nor sent.

    >>> import numpy as np
    >>> from fedjax_post.core.parts import join, split
    >>> params = {"a": np.zeros(2), "b": np.ones(2)}
    >>> rest, taken = split(params, lambda path: path.endswith("b"))
    >>> rest["b"], taken["a"]
    (None, None)
    >>> sorted(join(rest, taken))
    ['a', 'b']

    Args:
      params: the whole tree.
      is_taken: a function from the path of a leaf, such as "lora/layers/q/b", to whether the
        leaf is taken.

    Raises:
      ValueError: if either part would be empty; the message lists the paths.
    """
    path_of = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if len({is_taken(path) for path in paths}) != 2:
        raise ValueError(
            f"the local part must be some but not all of the parameters {paths}; "
            "give another local_pattern"
        )
    pick = lambda wanted: jax.tree_util.tree_map_with_path(
        lambda path, x: x if is_taken(path_of(path)) is wanted else None, params
    )
    return pick(False), pick(True)


def join(one: PyTree, other: PyTree) -> PyTree:
    """Returns the whole tree from the two parts that `split` made."""
    return jax.tree.map(lambda a, b: b if a is None else a, one, other, is_leaf=lambda x: x is None)
