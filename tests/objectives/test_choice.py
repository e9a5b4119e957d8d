"""Laws of objectives for closed models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_post import Access, AccessError
from fedjax_post.adapters.prompt import add_soft_prompt, text_prompt
from fedjax_post.evaluate.generation import matches
from fedjax_post.objectives.choice import answer_loss, choice_loss, questions
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.testing.models import tiny_model

BOS, EOS, PAD = 1, 2, 0
TOKENS = jnp.array(
    [[BOS, 5, 9, 20, EOS, PAD], [BOS, 8, 4, 30, 21, EOS], [BOS, 7, 21, EOS, PAD, PAD],
     [PAD, PAD, PAD, PAD, PAD, PAD]]
)  # fmt: skip
STARTS = [3, 4, 2]
MASK = jnp.array(
    [[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]], bool
)
BATCH = {"tokens": TOKENS, "loss_mask": MASK}
CANDIDATES = [20, 21, 13]
LIMITS = {"eos_id": EOS, "pad_id": PAD, "max_new_tokens": 3}


@pytest.fixture(scope="module")
def model():
    return tiny_model(bos_id=BOS)


def test_questions_are_all_before_the_response_padded_on_the_left():
    prompts, mask = questions(BATCH)
    np.testing.assert_array_equal(
        prompts, [[0, 0, BOS, 5, 9], [0, BOS, 8, 4, 30], [0, 0, 0, BOS, 7], [0] * 5]
    )
    np.testing.assert_array_equal(mask.sum(axis=1), [*STARTS, 0])
    np.testing.assert_array_equal(mask, np.sort(mask, axis=1))


@pytest.mark.heavy
@pytest.mark.parametrize("params", [{}, text_prompt([6, 11])])
def test_the_loss_of_choosing_is_a_softmax_over_the_candidates(model, params):
    loss, metrics = choice_loss(CANDIDATES)(params, model.restrict(Access.LOGITS), BATCH, None)
    losses, right = [], []
    for row, start in zip(TOKENS, STARTS, strict=False):
        logits = np.asarray(model.logits(params, row[None, :start]))[0, -1, CANDIDATES]
        label = CANDIDATES.index(int(row[start]))
        losses.append(np.log(np.exp(logits).sum()) - logits[label])
        right.append(int(np.argmax(logits)) == label)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    expected = {"loss": float(loss), "accuracy": np.mean(right), "queries": 3, "tokens_sent": 9}
    assert {k: float(v) for k, v in metrics.items()} == pytest.approx(expected)


@pytest.mark.heavy
@pytest.mark.parametrize("make", [
    lambda **given: choice_loss(CANDIDATES, **given), lambda **given: answer_loss(**LIMITS, **given)
])  # fmt: skip
def test_what_all_questions_begin_with_may_be_read_once(model, make):
    params = text_prompt([6, 11])
    plain, _ = found = make()(params, model, BATCH, None)
    assert np.isfinite(plain)
    changed = BATCH | {"tokens": TOKENS.at[:3, 0].set(30)}  # as where tokens are replaced
    for batch in (BATCH, changed):
        shared = make(prefix=[BOS])(params, model, batch, None)
        jax.tree.map(lambda *x: np.testing.assert_allclose(*x, rtol=1e-5), shared, found)


def test_among_all_tokens_it_is_the_fine_tuning_loss_of_the_first_one(model):
    first = MASK & (jnp.cumsum(MASK, axis=1) == 1)
    expected, _ = sft_loss({}, model, BATCH | {"loss_mask": first}, None)
    loss, _ = choice_loss([20, 21], among_all=True)({}, model, BATCH, None)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_response_that_is_no_candidate_is_infinitely_wrong(model):
    loss, metrics = choice_loss([20, 13])({}, model, BATCH, None)
    assert np.isinf(loss)
    assert metrics["accuracy"] <= 1 / 3


def answered(model, params):
    """The batch, with what the model answers for responses, but for the last row."""
    prompts, mask = questions(BATCH)
    given = model.answer(params, prompts, mask, **LIMITS)
    tokens, loss_mask = np.asarray(TOKENS).copy(), np.zeros((4, 6), bool)
    tokens = np.pad(tokens, ((0, 0), (0, 3)))
    loss_mask = np.pad(loss_mask, ((0, 0), (0, 3)))
    for i, start in enumerate(STARTS):
        answer = np.asarray(given[i])
        length = int(np.argmax(answer == EOS)) + 1 if EOS in answer else 3
        tokens[i, start:] = PAD
        tokens[i, start : start + length] = answer[:length]
        loss_mask[i, start : start + length] = True
    return tokens, loss_mask, given


def as_text(ids):
    ids = ids.tolist()
    return " ".join(map(str, ids[: ids.index(EOS)] if EOS in ids else ids))


@pytest.mark.heavy
@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_the_loss_of_answers_is_one_minus_the_exact_match_of_evaluation(model, wrong):
    params = text_prompt([6, 11])
    tokens, loss_mask, given = answered(model, params)
    for i in range(wrong):
        tokens[i, STARTS[i]] = (tokens[i, STARTS[i]] + 1) % 20 + 3
    batch = {"tokens": jnp.asarray(tokens), "loss_mask": jnp.asarray(loss_mask)}
    view = model.restrict(Access.TEXT)
    loss, metrics = answer_loss(**LIMITS)(params, view, batch, None)
    references = [as_text(row[there]) for row, there in zip(tokens[:3], loss_mask, strict=False)]
    exact = matches([as_text(row) for row in np.asarray(given[:3])], references).mean()
    assert exact == pytest.approx(1 - wrong / 3)
    assert float(loss) == pytest.approx(1 - exact)
    expected = {"loss": float(loss), "accuracy": exact, "queries": 3, "tokens_sent": 9}
    assert {k: float(v) for k, v in metrics.items()} == pytest.approx(expected)


def test_an_answer_that_stops_early_or_late_is_wrong(model):
    """Row 0 is asked for more than was answered, row 1 for less."""
    tokens, loss_mask, given = answered(model, {})
    assert EOS not in np.asarray(given)[:2]
    tokens[0, STARTS[0] + 3] = 7
    loss_mask[0, STARTS[0] + 3] = True
    tokens[1, STARTS[1] + 1] = EOS
    batch = {"tokens": jnp.asarray(tokens), "loss_mask": jnp.asarray(loss_mask)}
    assert float(answer_loss(**LIMITS)({}, model, batch, None)[0]) == pytest.approx(2 / 3)


def test_an_answer_may_go_on_after_a_label_but_not_stop_before_its_end(model):
    tokens, loss_mask, given = answered(model, {})
    assert EOS not in np.asarray(given)[:2]
    loss_mask[0, STARTS[0] + 1 :] = False  # row 0 asks for the first token of its answer
    tokens[1, STARTS[1] + 1] = EOS  # row 1 for one token and the end
    batch = {"tokens": jnp.asarray(tokens), "loss_mask": jnp.asarray(loss_mask)}
    whole, begun = (
        float(answer_loss(**LIMITS, begins=begins)({}, model, batch, None)[0])
        for begins in (False, True)
    )
    assert (whole, begun) == (pytest.approx(2 / 3), 0.0)
    tokens[0, STARTS[0]] = (tokens[0, STARTS[0]] + 1) % 20 + 3
    batch = {"tokens": jnp.asarray(tokens), "loss_mask": jnp.asarray(loss_mask)}
    assert float(answer_loss(**LIMITS, begins=True)({}, model, batch, None)[0]) > 0.3


@pytest.mark.parametrize("loss_fn", [choice_loss(CANDIDATES), answer_loss(**LIMITS)])
def test_objectives_are_the_same_mapped_over_clients(model, loss_fn):
    keys = jax.random.split(jax.random.key(0), 2)
    stacked = jax.vmap(lambda key: add_soft_prompt(model, key, length=2))(keys)
    mapped = jax.jit(jax.vmap(lambda p, m: loss_fn(p, m, BATCH, None), in_axes=(0, None)))
    losses, metrics = mapped(stacked, model)
    for i in range(2):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
        loss, alone = loss_fn(own, model, BATCH, None)
        np.testing.assert_allclose(losses[i], loss, rtol=1e-5)
        for name, value in alone.items():
            np.testing.assert_allclose(metrics[name][i], value, rtol=1e-5)


@pytest.mark.parametrize("loss_fn", [choice_loss(CANDIDATES), answer_loss(**LIMITS)])
def test_a_batch_of_padding_costs_nothing(model, loss_fn):
    loss, metrics = loss_fn({}, model, {"tokens": TOKENS, "loss_mask": MASK & False}, None)
    assert float(loss) == 0
    assert {float(v) for v in metrics.values()} == {0.0}


class Recorder:
    """A model elsewhere: sees what it is asked, with concrete values."""

    def __init__(self):
        self.seen = []

    def next_scores(self, params, prompts, prompt_mask, candidates):
        self._see(prompts, prompt_mask)
        return jnp.log(jnp.full((len(prompts), len(candidates)), 0.25))

    def answer(self, params, prompts, prompt_mask, *, max_new_tokens, eos_id, pad_id):
        """The right answers to rows 0 and 2, too short a one to row 1."""
        self._see(prompts, prompt_mask)
        return jnp.array([[20, EOS, PAD], [EOS, PAD, PAD], [21, EOS, PAD], [PAD, PAD, PAD]])

    def _see(self, prompts, mask):
        for row, there in zip(np.asarray(prompts), np.asarray(mask), strict=True):
            self.seen += [row[there].tolist()] if there.any() else []


@pytest.mark.parametrize(
    ("loss_fn", "expected"),
    [(choice_loss(CANDIDATES), np.log(3)), (answer_loss(**LIMITS), 1 / 3)],
)
def test_what_leaves_is_the_questions_and_their_number_of_tokens(loss_fn, expected):
    """Eagerly, as for a model that is asked over a network."""
    model = Recorder()
    with jax.disable_jit():
        loss, metrics = loss_fn({}, model, BATCH, None)
    assert model.seen == [[BOS, 5, 9], [BOS, 8, 4, 30], [BOS, 7]]
    assert metrics["queries"] == len(model.seen)
    assert metrics["tokens_sent"] == sum(map(len, model.seen))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("candidates", [[4], [4, 5, 4]])
def test_candidates_are_different_tokens(candidates):
    with pytest.raises(ValueError, match="`labels`"):
        choice_loss(candidates)


def test_packed_rows_are_refused(model):
    batch = {**BATCH, "segments": jnp.ones((4, 6), jnp.int32)}
    with pytest.raises(ValueError, match="pack_length=0"):
        choice_loss(CANDIDATES)({}, model, batch, None)


def test_access_decides_what_may_be_asked(model):
    sealed = model.restrict(Access.TEXT)
    with pytest.raises(AccessError, match="next_scores needs LOGITS"):
        choice_loss(CANDIDATES)({}, sealed, BATCH, None)
