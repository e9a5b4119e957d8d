"""Access: views are limited to the declared tier; more is refused, naming the tier to open."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post import Access, AccessError
from fedjax_post.core.access import LEVELS, spoken, union, views
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


class Undeclared:
    """A model of somebody's own that says nothing of its access."""

    def logits(self, params, tokens):
        return tokens


@pytest.mark.parametrize("model", [Undeclared(), {"inner": Undeclared()}, "a name", len])
def test_what_does_not_declare_its_access_is_refused(model):
    with pytest.raises(AccessError, match="does not declare what it grants"):
        views(model, {"target": Access.TEXT})


@pytest.mark.parametrize("model", [None, (), {"w": 1.0}, [np.ones(2), (jnp.ones(3), 2)]])
def test_arrays_that_one_holds_are_open(model):
    assert views(model, {"target": Access.GRADIENTS}) is model


def test_capabilities_are_a_set():
    assert Access.TEXT | Access.SCORES == Access.LOGITS
    assert spoken(Access.TEXT | Access.READ) == "TEXT and READ"
    assert union({"target": Access.LOGITS, "proxy": Access.GRADIENTS}) == Access.GRADIENTS
    for lower, higher in itertools.pairwise(LEVELS):
        assert lower & ~higher == Access(0)
    model = toy_model().restrict(Access.TEXT | Access.SCORES)
    with pytest.raises(AccessError, match="grants LOGITS: a service that fine-tunes it would"):
        views(model, {"target": Access.TEXT | Access.FINETUNE})


def test_a_model_that_cannot_be_cut_down_is_refused():
    class Open:
        access = Access.GRADIENTS

    with pytest.raises(AccessError, match="Open declares .* cannot be cut down to LOGITS"):
        views(Open(), {"target": Access.LOGITS})
