"""Access: views are cut to what is declared, and too much is refused with what to open."""

import pytest

from fedjax_post import Access, AccessError
from fedjax_post.core.access import views
from fedjax_post.testing import toy_model


def test_a_view_grants_what_was_declared_and_no_more():
    view = views(toy_model(), {"target": Access.WEIGHTS})
    assert view.access == Access.WEIGHTS


def test_a_plain_tree_is_open():
    assert views({"w": 1.0}, {"target": Access.GRADIENTS}) == {"w": 1.0}


def test_too_much_is_refused_with_what_to_open():
    model = toy_model().restrict(Access.LOGITS)
    with pytest.raises(
        AccessError, match="needs GRADIENTS .* grants LOGITS: its weights and archi"
    ):
        views(model, {"target": Access.GRADIENTS})


def test_roles_are_checked_each():
    models = {"target": toy_model().restrict(Access.LOGITS), "proxy": toy_model()}
    needed = {"target": Access.LOGITS, "proxy": Access.GRADIENTS}
    assert views(models, needed)["proxy"].access == Access.GRADIENTS
    with pytest.raises(AccessError, match="role 'proxy'"):
        views({"target": toy_model()}, needed)
