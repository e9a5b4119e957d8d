"""Two parts join to the whole tree, and their gaps are not leaves."""

import jax
import pytest

from fedjax_post.core.parts import join, split

WHOLE = {"lora": {"q": {"a": 1.0, "b": 2.0}, "v": {"a": 3.0, "b": 4.0}}}


def test_parts_make_the_whole_again():
    left, taken = split(WHOLE, lambda path: path.endswith("/b"))
    assert jax.tree.leaves(left) == [1.0, 3.0]
    assert jax.tree.leaves(taken) == [2.0, 4.0]
    assert join(left, taken) == join(taken, left) == WHOLE


@pytest.mark.parametrize("everything", [True, False])
def test_neither_part_is_empty(everything):
    with pytest.raises(ValueError, match=r"some but not all .*'lora/q/a'.* another local_pattern"):
        split(WHOLE, lambda path: everything)
