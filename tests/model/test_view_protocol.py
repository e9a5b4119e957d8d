"""All kinds of models satisfy one protocol: the same methods, the same arguments, one refusal."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from fedjax_post.adapters.steered import Steered, steer
from fedjax_post.core.access import Access, AccessError
from fedjax_post.core.view import View
from fedjax_post.model.sealed import Sealed
from fedjax_post.model.views import LanguageModel
from fedjax_post.provider.hosted import Hosted
from fedjax_post.testing.models import tiny_model

CLASSES = [LanguageModel, Sealed, Steered, Hosted]
METHODS = [name for name, _ in inspect.getmembers(View, inspect.isfunction) if name[0] != "_"]
TOKENS = jnp.ones((1, 4), jnp.int32)
CALLS = {
    "answer": lambda view: view.answer(
        {}, TOKENS, TOKENS > 0, max_new_tokens=2, eos_id=1, pad_id=0
    ),
    "next_scores": lambda view: view.next_scores({}, TOKENS, TOKENS > 0, jnp.arange(3)),
    "logits": lambda view: view.logits({}, TOKENS),
    "scores": lambda view: view.scores({}, TOKENS),
    "total_loss": lambda view: view.total_loss({}, TOKENS, TOKENS > 0),
    "embed": lambda view: view.embed({}, TOKENS),
    "embed_logits": lambda view: view.embed_logits({}, jnp.ones((1, 4, 16))),
    "prefill": lambda view: view.prefill({}, TOKENS, mask=TOKENS > 0, num_slots=4),
    "step": lambda view: view.step({}, TOKENS, positions=TOKENS, mask=TOKENS > 0, cache=None),
    "upload": lambda view: view.upload({}, TOKENS, TOKENS > 0, TOKENS > 0),
    "tuned": lambda view: view.tuned(jnp.ones(2, int), num_epochs=1, batch_rows=1, multiplier=1.0),
}
TUNING = {"upload", "tuned"}


def test_calls_cover_the_protocol():
    assert set(METHODS) == {*CALLS, "restrict"}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", CALLS)
def test_methods_take_the_arguments_of_the_protocol(kind, name):
    assert View in kind.__mro__
    wanted = inspect.signature(getattr(View, name)).parameters
    found = inspect.signature(getattr(kind, name)).parameters
    if any(p.kind is p.VAR_KEYWORD for p in found.values()):
        wanted = {n: p for n, p in wanted.items() if p.kind is not p.KEYWORD_ONLY}
        found = {n: p for n, p in found.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(found) == list(wanted)
    assert [p.kind for p in found.values()] == [p.kind for p in wanted.values()]


def steered():
    return steer(tiny_model(), tiny_model())


def hosted():
    return Hosted(None, None, access=Access.LOGITS)


REFUSALS = [
    (steered, {"embed", "embed_logits", *TUNING}),
    (
        hosted,
        {"logits", "scores", "total_loss", "embed", "embed_logits", "prefill", "step", *TUNING},
    ),
    (lambda: tiny_model().restrict(Access.TEXT), {*CALLS} - {"answer", "step"}),
]
MODELS = [make for make, _ in REFUSALS]
NAMES = ["steered", "hosted", "text alone"]


@pytest.mark.parametrize("make", MODELS, ids=NAMES)
def test_what_a_view_grants_cannot_be_assigned(make):
    view = make()
    with pytest.raises(AttributeError):
        view.access = Access.GRADIENTS
    assert view.access != Access.GRADIENTS


@pytest.mark.parametrize(("make", "refused"), REFUSALS, ids=NAMES)
def test_what_a_model_does_not_give_is_refused(make, refused):
    view = make()
    for name in refused:
        with pytest.raises(AccessError, match=rf"needs .* grants {view.access.name}"):
            jax.eval_shape(lambda name=name: CALLS[name](view))
