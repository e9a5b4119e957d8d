"""A tree of parameters in two parts, by the paths of its leaves."""

from collections.abc import Callable

import jax

from fedjax_post.core.algorithm import PyTree


def split(params: PyTree, is_taken: Callable[[str], bool]) -> tuple[PyTree, PyTree]:
    """The parameters that are left and those that are taken, None in the gaps of each.

    Both trees have the form of the whole; None counts as no leaf, so that gaps are
    neither trained nor sent.

    Args:
      params: the whole.
      is_taken: path of a leaf, such as "lora/layers/q/b", to whether it is taken.

    Raises:
      ValueError: if either part would be empty, with the paths that there are.
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
    """The whole again, of two parts that fill each other's gaps."""
    return jax.tree.map(lambda a, b: b if a is None else a, one, other, is_leaf=lambda x: x is None)
