"""Access to a language model is enforced."""

import dataclasses
import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post import Access, AccessError
from fedjax_post.adapters.lora import add_lora
from fedjax_post.algorithms import fed_avg
from fedjax_post.model.config import DecoderConfig
from fedjax_post.model.generate import Sampling, _decode, generate, sample
from fedjax_post.model.views import init_model
from fedjax_post.objectives.sft import sft_loss

CONFIG = DecoderConfig(
    vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=2, num_heads=2,
    num_kv_heads=1, head_dim=4, max_positions=16,
)  # fmt: skip
TOKENS = jnp.arange(8).reshape(2, 4)


@pytest.fixture(scope="module")
def model():
    return init_model(CONFIG, jax.random.key(0))


@pytest.mark.parametrize("tier", [Access.LOGITS, Access.EMBEDDINGS])
def test_a_view_below_weights_shows_no_weight(model, tier):
    view = model.restrict(tier)
    assert jax.tree.leaves(view) == []
    np.testing.assert_array_equal(view.logits({}, TOKENS), model.logits({}, TOKENS))


def test_weights_are_arguments_of_the_compiled_program_not_constants(model):
    program = jax.jit(lambda m, t: m.restrict(Access.LOGITS).logits({}, t))
    assert program.lower(model, TOKENS).compile().memory_analysis().argument_size_in_bytes > sum(
        x.nbytes for x in jax.tree.leaves(model)
    )


BEHIND = [Access.LOGITS, Access.EMBEDDINGS, Access.WEIGHTS]
SOFT = {"prompt": {"embeddings": jnp.ones((2, 8))}}
WORDS = {"prompt": {"tokens": jnp.array([3, 9])}}
ASKED = TOKENS, jnp.arange(4)[None] >= jnp.array([[1], [0]])


@pytest.mark.parametrize("tier", BEHIND)
def test_differentiating_a_lesser_view_raises(model, tier):
    with pytest.raises(AccessError, match="needs GRADIENTS"):
        jax.grad(lambda m: m.restrict(tier).logits({}, TOKENS).sum())(model)
    with pytest.raises(AccessError, match="needs GRADIENTS"):
        jax.grad(lambda m: m.restrict(tier).next_scores({}, *ASKED, jnp.arange(3)).sum())(model)


def test_a_prompt_at_embeddings_has_no_derivative(model):
    view = model.restrict(Access.EMBEDDINGS)
    np.testing.assert_array_equal(view.logits(SOFT, TOKENS), model.logits(SOFT, TOKENS))
    with pytest.raises(AccessError, match="needs GRADIENTS"):
        jax.grad(lambda p: view.logits(p, TOKENS).sum())(SOFT)


def use(model, params):
    """Every method that takes params at LOGITS or below, its refusal by name."""
    mask = TOKENS >= 0
    short = {"max_new_tokens": 2, "eos_id": 99, "pad_id": 0}
    methods = {
        "answer": lambda: model.answer(params, *ASKED, **short),
        "next_scores": lambda: model.next_scores(params, *ASKED, jnp.arange(3)),
        "logits": lambda: model.logits(params, TOKENS),
        "scores": lambda: model.scores(params, TOKENS),
        "total_loss": lambda: model.total_loss(params, TOKENS, mask),
        "prefill": lambda: model.prefill(params, TOKENS, mask=mask, num_slots=4),
    }
    said = {}
    for name, method in methods.items():
        try:
            method()
        except AccessError as error:
            said[name] = str(error)
    return said


@pytest.mark.heavy
@pytest.mark.parametrize("seal", [True, False])
@pytest.mark.parametrize(
    ("tier", "params", "refusal"),
    [
        (Access.LOGITS, WORDS, None),
        (Access.EMBEDDINGS, WORDS, None),
        (Access.EMBEDDINGS, SOFT, None),
        (Access.LOGITS, SOFT, "needs EMBEDDINGS; the view grants LOGITS"),
        (Access.LOGITS, {"lora": {}}, "'lora', .* needs WEIGHTS; the view grants LOGITS"),
        (Access.EMBEDDINGS, {"params": {}}, "'params', .* needs WEIGHTS; .* grants EMBEDDINGS"),
        (Access.LOGITS, {**WORDS, "lora": {}}, "'lora'.*tune a prompt"),
    ],
)
def test_what_may_be_put_over_a_model_is_part_of_the_tier(model, seal, tier, params, refusal):
    view = model.restrict(tier) if seal else dataclasses.replace(model, access=tier)
    said = use(view, params)
    if refusal is None:
        assert said == {}
    else:
        assert len(said) == 6
        assert [text for text in said.values() if not re.search(refusal, text)] == []


@pytest.mark.heavy
@pytest.mark.parametrize("params", [{}, WORDS])
def test_text_grants_answers_and_nothing_else(model, params):
    view = model.restrict(Access.TEXT)
    assert jax.tree.leaves(view) == []
    assert use(view, params).keys() == {"next_scores", "logits", "scores", "total_loss", "prefill"}
    answer = lambda m: m.answer(params, *ASKED, max_new_tokens=5, eos_id=99, pad_id=0)
    np.testing.assert_array_equal(answer(view), greedy(model, params, TOKENS))
    assert answer(view).dtype == jnp.int32
    compiled = jax.jit(lambda m: answer(m.restrict(Access.TEXT)))(model)
    np.testing.assert_array_equal(compiled, answer(model))


def test_text_refuses_a_soft_prompt_and_an_adapter(model):
    for params in (SOFT, {"lora": {}}):
        view, limits = model.restrict(Access.TEXT), {"max_new_tokens": 5, "eos_id": 99, "pad_id": 0}
        with pytest.raises(AccessError, match="the view grants TEXT"):
            view.answer(params, *ASKED, **limits)


@pytest.mark.parametrize("params", [{}, WORDS, SOFT])
def test_next_scores_are_the_log_probabilities_of_whole_rows(model, params):
    candidates = jnp.array([7, 2])
    found = model.next_scores(params, *ASKED, candidates)
    for row, start in ((0, 1), (1, 0)):
        logits = model.logits(params, TOKENS[row : row + 1, start:])[0, -1]
        expected = jax.nn.log_softmax(logits)[candidates]
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_embeddings_are_not_part_of_logits_access(model):
    with pytest.raises(AccessError, match="needs EMBEDDINGS"):
        model.restrict(Access.LOGITS).embed({}, TOKENS)
    assert model.restrict(Access.EMBEDDINGS).embed({}, TOKENS).shape == (2, 4, 8)


def test_a_view_cannot_be_widened(model):
    with pytest.raises(AccessError, match="GRADIENTS was asked of a model that grants WEIGHTS"):
        model.restrict(Access.WEIGHTS).restrict(Access.GRADIENTS)


@pytest.mark.heavy
def test_an_algorithm_that_lies_about_its_needs_is_caught(model):
    adapted, params = add_lora(model, jax.random.key(1), rank=2, alpha=4)
    rows = {"tokens": np.ones((3, 4), np.int32), "loss_mask": np.ones((3, 4), bool)}
    clients = fp.ArrayClients([rows, rows], batch_size=2, local_steps=1)
    honest = fed_avg(sft_loss, optax.sgd(0.1))
    next(iter(fp.run(honest, adapted, clients, params=params, rounds=1)))
    liar = honest._replace(access={"target": Access.WEIGHTS})
    with pytest.raises(AccessError, match="needs GRADIENTS"):
        next(iter(fp.run(liar, adapted, clients, params=params, rounds=1)))
    with pytest.raises(AccessError, match="which grants LOGITS"):
        fp.run(honest, adapted.restrict(Access.LOGITS), clients, params=params, rounds=1)


def greedy(model, params, prompts):
    mask = jnp.arange(4)[None] >= jnp.array([[1], [0]])
    return generate(model, params, prompts, mask, max_new_tokens=5, eos_id=99, pad_id=0)


@pytest.mark.heavy
def test_generation_behind_an_interface_is_that_of_the_open_model(model):
    view = model.restrict(Access.LOGITS)
    np.testing.assert_array_equal(greedy(view, WORDS, TOKENS), greedy(model, WORDS, TOKENS))
    rule, key = Sampling(5, eos_id=99, pad_id=0), jax.random.key(2)
    drawn = [sample(m, WORDS, TOKENS, TOKENS >= 0, rule=rule, key=key) for m in (view, model)]
    np.testing.assert_array_equal(*drawn)


def test_cached_logits_behind_an_interface_are_those_of_the_open_model(model):
    here = jnp.ones((2, 1), bool)

    def two_steps(model):
        logits, cache = model.prefill({}, TOKENS, mask=TOKENS >= 0, num_slots=6)
        new = jnp.argmax(logits, -1)[:, None]
        positions = jnp.full((2, 1), 4)
        return model.step({}, new, positions=positions, mask=here, cache=cache)[0]

    expected = two_steps(model)
    np.testing.assert_array_equal(two_steps(model.restrict(Access.LOGITS)), expected)


def test_text_access_does_not_reach_the_decoder(model):
    with pytest.raises(AccessError, match="generation needs LOGITS"):
        model.restrict(Access.TEXT).prefill({}, TOKENS, mask=TOKENS >= 0, num_slots=6)


def test_generation_takes_weights_as_arguments_and_compiles_once(model):
    program = jax.jit(lambda m, t: greedy(m.restrict(Access.LOGITS), {}, t))
    assert program.lower(model, TOKENS).compile().memory_analysis().argument_size_in_bytes > sum(
        x.nbytes for x in jax.tree.leaves(model)
    )
    greedy(model.restrict(Access.LOGITS), {}, TOKENS)
    before = _decode._cache_size()
    greedy(model.restrict(Access.LOGITS), {}, TOKENS)
    assert _decode._cache_size() == before


def test_what_a_lesser_view_remembers_cannot_be_differentiated(model):
    def remembered(model):
        view = model.restrict(Access.LOGITS)
        cache = view.prefill({}, TOKENS, mask=TOKENS >= 0, num_slots=4)[1]
        return jax.tree.leaves(cache)[0].sum()

    with pytest.raises(AccessError, match="needs GRADIENTS"):
        jax.grad(remembered)(model)


def test_what_a_lesser_view_remembers_is_handed_back_and_not_read(model):
    view = model.restrict(Access.LOGITS)
    cache = view.prefill({}, TOKENS, mask=TOKENS >= 0, num_slots=4)[1]
    for name in ("layers", "positions", "slots"):
        with pytest.raises(AccessError, match=f"a cache's {name} is inside the model"):
            getattr(cache, name)
        with pytest.raises(AccessError, match="hand it back"):
            setattr(cache, name, 0)
    assert repr(cache) == "Handle()"


def test_the_ways_around_a_view_are_those_that_the_page_lists(model):
    """A view guards against mistakes; what it does not keep from code in its process is told."""
    view = model.restrict(Access.LOGITS)
    assert view._model.access == Access.LOGITS
    program = jax.make_jaxpr(lambda tokens: view.logits({}, tokens))(TOKENS)
    shown = [np.asarray(x) for x in program.consts if np.ndim(x)]
    for weight in jax.tree.leaves(model):
        assert any(x.shape == weight.shape and (x == np.asarray(weight)).all() for x in shown)
    _, cache = view.prefill({}, TOKENS, mask=TOKENS >= 0, num_slots=5)
    assert any(x.size and np.asarray(x).any() for x in jax.tree.leaves(cache))
    edited = jax.tree.map(lambda x: x + 1 if jnp.issubdtype(x.dtype, jnp.floating) else x, cache)
    next_ = {"positions": jnp.full((2, 1), 4), "mask": jnp.ones((2, 1), bool)}
    before, _ = view.step({}, TOKENS[:, :1], **next_, cache=cache)
    after, _ = view.step({}, TOKENS[:, :1], **next_, cache=edited)
    assert not np.allclose(before, after)


def without_rules(jaxpr, consts, *args):
    """Evaluates a jaxpr as if its functions had no rules of differentiation of their own."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    read = lambda x: x.val if isinstance(x, jax.extend.core.Literal) else known[x]
    for eqn in jaxpr.eqns:
        inner = eqn.params.get("call_jaxpr", eqn.params.get("jaxpr"))
        given = [read(x) for x in eqn.invars]
        if eqn.primitive.name in ("custom_jvp_call", "pjit", "jit"):
            found = without_rules(inner.jaxpr, inner.consts, *given)
        else:
            found = eqn.primitive.bind(*given, **eqn.params)
            found = found if eqn.primitive.multiple_results else [found]
        known.update(zip(eqn.outvars, found, strict=True))
    return [read(x) for x in jaxpr.outvars]


def test_a_jaxpr_without_its_rules_has_derivatives(model):
    """The last of the ways around a view that the page lists."""
    score = lambda m: lambda soft: m.logits({"prompt": {"embeddings": soft}}, TOKENS).sum()
    soft, view = SOFT["prompt"]["embeddings"], model.restrict(Access.EMBEDDINGS)
    with pytest.raises(AccessError, match="needs GRADIENTS"):
        jax.grad(score(view))(soft)
    program = jax.make_jaxpr(score(view))(soft)
    found = jax.grad(lambda x: without_rules(program.jaxpr, program.consts, x)[0])(soft)
    np.testing.assert_allclose(found, jax.grad(score(model))(soft), atol=1e-5)
    assert np.abs(found).max() > 0
