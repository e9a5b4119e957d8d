"""The meter: what a call carries, whatever an algorithm says of itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post.core.access import Access, AccessError
from fedjax_post.core.view import View
from fedjax_post.disclosure.examples import Examples, Shown
from fedjax_post.disclosure.ledger import Hosting, Price, account
from fedjax_post.disclosure.meter import (
    Carried,
    DisclosureError,
    Form,
    Meter,
    Purpose,
    add,
    digest,
)
from fedjax_post.disclosure.metered import Metered, real_rows
from fedjax_post.testing.models import tiny_model

PAD = 0
TOKENS = np.array([[0, 0, 4, 5], [0, 6, 7, 8], [0, 0, 0, 0]], np.int32)  # the last is padding
MASK = TOKENS != PAD
FORM = Form(template=1)
ENDS = {"max_new_tokens": 3, "eos_id": 1, "pad_id": PAD}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def metered(model, tier=Access.EMBEDDINGS, form=FORM, **given):
    meter = Meter(form)
    return Metered(model, meter, pad_id=PAD, **given).restrict(tier).at(2, 5), meter


def taken(meter):
    return meter.take().get(Purpose.TRAINING, Carried())


CALLS = {
    "answer": lambda view: view.answer({}, TOKENS, MASK, **ENDS),
    "next_scores": lambda view: view.next_scores({}, TOKENS, MASK, jnp.array([1, 2])),
    "prefill": lambda view: view.prefill({}, TOKENS, mask=MASK, num_slots=4),
    "logits": lambda view: view.logits({}, TOKENS[:, ::-1]),
    "scores": lambda view: view.scores({}, TOKENS[:, ::-1]),
    "total_loss": lambda view: view.total_loss({}, TOKENS[:, ::-1], MASK[:, ::-1]),
    "embed": lambda view: view.embed({}, TOKENS[:, ::-1]),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_that_carries_text_is_counted_without_its_padding(model, name):
    view, meter = metered(model)
    CALLS[name](view)
    found = taken(meter)
    assert (found.queries, found.tokens, found.private_tokens) == (2, 5, 3)
    assert found.answers == 2 * (3 if name == "answer" else 1)
    assert sorted(found.distinct.values()) == [1, 2]


@pytest.mark.parametrize("name", CALLS)
def test_a_silent_model_has_the_shapes_of_the_model_and_counts_each_run_of_a_program(model, name):
    plain = CALLS[name](model)
    view, meter = metered(model, silent=True)
    run = jax.jit(lambda: jax.lax.map(lambda _: CALLS[name](view), jnp.zeros(3))).lower().compile()
    assert (meter.num_traced, taken(meter)) == (1, Carried())
    for one, none in zip(jax.tree.leaves(plain), jax.tree.leaves(run()), strict=True):
        assert (none.shape, none.dtype) == ((3, *one.shape), one.dtype)
        assert not np.asarray(none).any()
    jax.effects_barrier()
    found = taken(meter)
    assert (found.queries, found.tokens, found.private_tokens) == (3 * 2, 3 * 5, 3 * 3)


def test_every_method_of_a_view_is_counted():
    """A method that is added to the protocol, and not to the meter, refuses."""
    declared = {name for name in vars(View) if not name.startswith("_")}
    others = {"access", "restrict", "step", "embed_logits", "upload", "tuned"}
    assert declared == {*CALLS, *others}
    assert declared <= set(vars(Metered))


@pytest.mark.parametrize("silent", [False, True])
def test_an_upload_carries_questions_and_answers_and_is_billed_as_trained_alone(silent):
    """Rows without a question or without an answer are padding, and are not sent."""

    class Host(View):
        access = Access.TEXT | Access.FINETUNE

        def upload(self, *given):
            pass

    meter = Meter(FORM)
    view = Metered(Host(), meter, pad_id=PAD, silent=silent).at(2, 5)
    question, answer = np.zeros((2, *TOKENS.shape), bool)
    question[0, 2], question[1, 1:3], answer[:, 3] = True, True, True
    upload = lambda *given: view.upload({}, *given)
    (jax.jit(upload) if silent else upload)(TOKENS, question, answer)
    jax.effects_barrier()
    found = taken(meter)
    assert found._replace(distinct={}) == Carried(2, 5, 3, 2, filed=5)
    price = Price(read=1e6, written=1e6, trained=2e6)
    sent = [(0, Purpose.TRAINING, add([found, Carried(trained=10)]))]
    (entry,) = account([], sent, hosting=Hosting.PROVIDER, price=price)
    assert (entry.cost, entry.labels) == (20.0, 2)


def test_steps_and_embeddings_are_private_in_full(model):
    view, meter = metered(model)
    embedded = view.embed({}, TOKENS)
    taken(meter)
    view.embed_logits({}, embedded)
    found = taken(meter)
    assert (found.queries, found.private_tokens) == (3, 12)
    _, cache = view.prefill({}, TOKENS, mask=MASK, num_slots=5)
    taken(meter)
    here = np.array([[True], [True], [False]])
    view.step({}, TOKENS[:, :1], positions=TOKENS[:, :1], mask=here, cache=cache)
    found = taken(meter)
    assert (found.queries, found.private_tokens) == (0, 2)


def test_traced_calls_are_not_counted_and_mapped_ones_are_refused(model):
    view, meter = metered(model)
    ask = lambda tokens: view.answer({}, tokens, MASK, **ENDS)
    jax.eval_shape(ask, TOKENS)
    assert meter.num_traced == 1
    assert taken(meter) == Carried()
    with pytest.raises(AccessError, match="cannot be mapped by jax.vmap"):
        jax.vmap(ask)(TOKENS[None])


def test_a_prefix_belongs_to_every_question():
    assert real_rows(TOKENS, MASK, prefix=[9]) == [[9, 4, 5], [9, 6, 7, 8]]


def test_purposes_follow_from_the_place_of_a_call():
    meter, one = Meter(), Carried(queries=1)
    for place in ((3, 0), (3, 7), (3, -1), (-1, -1)):
        meter.note(one, round=place[0], client_id=place[1])
    taken = {purpose: carried.queries for purpose, carried in meter.take().items()}
    assert taken == {Purpose.TRAINING: 2, Purpose.EVALUATION: 1, Purpose.USE: 1}
    assert meter.take() == {}


def test_the_sum_counts_a_question_once():
    one = Carried(queries=1, private_tokens=2, distinct={digest([1, 2]): 2})
    assert add([one, one]) == Carried(queries=2, private_tokens=4, distinct=one.distinct)
    assert add([]) == Carried()


def test_a_meter_that_refuses_lets_public_calls_pass_and_quotes_nothing(model):
    meter = Meter(Form(template=2), refuses=True)
    view = Metered(model, meter, pad_id=PAD)
    view.answer({}, TOKENS[:1], MASK[:1], **ENDS)
    with pytest.raises(DisclosureError, match="1 queries carries 1 private tokens"):
        view.answer({}, TOKENS[1:], MASK[1:], **ENDS)


ROWS = [((4, 5), (6,)), ((4, 5, 7), (8,)), ((4, 5, 6, 7, 9), (8, 8))]


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ([4, 5, 6], Shown(1, 3, 1)),
        ([3, 4, 5, 6, 3, 4, 5, 7, 8, 3], Shown(2, 7, 2)),
        ([4, 5, 6] * 2, Shown(2, 6, 2)),  # each time
        ([4, 5, 9], Shown()),  # a short question without its answer
        ([4, 5, 6, 7, 9], Shown(1, 3, 1)),  # an answer is preferred to a longer question
        ([4, 5, 6, 7, 9, 8, 8], Shown(1, 7, 1)),  # the longest with an answer
        ([5, 6], Shown()),  # cut
        ([], Shown()),
    ],
)
def test_examples_in_prompts_are_found(prompt, shown):
    assert Examples(ROWS).find(prompt) == shown
    assert Examples(lambda: iter(ROWS)).find(prompt) == shown


def test_a_long_question_in_a_prompt_is_private_without_its_answer():
    assert Examples([((4, 5, 6, 7), (8,))]).find([3, 4, 5, 6, 7, 3]) == Shown(1, 4, 0)


def test_examples_in_a_prompt_go_with_every_row():
    """Two rows after a prompt of one example of 3 tokens, 1 of them template, and 2 others."""
    meter = Meter(Form(template=1, shot=1), Examples(ROWS))
    params = {"prompt": {"tokens": np.array([3, 4, 5, 6, 3])}}
    found = add(meter.read(params, [[7, 8], [7, 8, 9]]))
    assert (found.tokens, found.labels, found.places) == (5 + 2 * 3, 2, 2 * 2)
    assert found.private_tokens == (1 + 2) + 2 * (3 - 1)
    soft = {"prompt": {"embeddings": np.zeros((4, 2))}}
    assert add(meter.read(soft, [[7, 8]]))[:5] == (1, 2, 1, 0, 4)
