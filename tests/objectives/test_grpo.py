"""Laws of GRPO: its rollouts and its loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_post as fp
from fedjax_post import algorithms
from fedjax_post.adapters.lora import add_lora
from fedjax_post.core import uniformly
from fedjax_post.core.algorithm import ClientData
from fedjax_post.objectives.choice import NOTHING
from fedjax_post.objectives.grpo import grpo_loss, rollouts
from fedjax_post.objectives.rewards import REWARDS
from fedjax_post.testing import toy
from fedjax_post.testing.models import tiny_model

BOS, EOS, PAD, GOAL = 1, 2, 0, 9
LIMITS = {"max_new_tokens": 4, "eos_id": EOS, "pad_id": PAD}
TOKENS = np.array(
    [[BOS, 5, 6, GOAL, EOS, PAD], [BOS, 7, 8, 10, GOAL, EOS], [PAD] * 6,
     [BOS, 3, GOAL, 4, EOS, PAD]]
)  # fmt: skip
MASK = np.array(
    [[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1], [0] * 6, [0, 0, 1, 1, 1, 0]], bool
)  # fmt: skip
QUESTIONS = [[BOS, 5, 6], [BOS, 7, 8, 10], [], [BOS, 3]]


def visit(num_steps=2):
    """The batch above in every step, the last of them padding where there are several."""
    steps = lambda x: jnp.asarray(np.broadcast_to(x, (num_steps, *x.shape)))
    mask = jnp.arange(num_steps) < max(1, num_steps - 1)
    batches = {"tokens": steps(TOKENS).astype(jnp.int32), "loss_mask": steps(MASK)}
    return ClientData(batches, mask, jnp.float32(4), jnp.float32(9), jnp.int32(0))


def first_token_is_goal(answer, wanted):
    return (answer[0] == wanted[0]).astype(jnp.float32)


@pytest.fixture(scope="module")
def model():
    return tiny_model(bos_id=BOS)


def first_token_is_even(answer, wanted):
    return (answer[0] % 2 == 0).astype(jnp.float32)


@pytest.fixture(scope="module")
def rolled(model):
    act = rollouts(first_token_is_even, group_size=3, **LIMITS)
    return jax.jit(act)(model, {}, visit(), jax.random.key(0))


def row(*tokens, length=6):
    return jnp.array([*tokens, *[NOTHING] * (length - len(tokens))], jnp.int32)


@pytest.mark.parametrize(
    ("answer", "exact", "head"),
    [
        (row(5, 6, 7), 1, 1),
        (row(5, 6), 0, 1 / 2),
        (row(5, 6, 7, 8), 0, 3 / 4),
        (row(9, 6, 7), 0, 0),
        (row(), 0, 0),
        (row(5, 6, 7, length=3), 0, 3 / 4),  # no end in the room that it had
        (row(5, 6, 7, length=9), 1, 1),
    ],
)
def test_an_answer_is_worth_what_its_tokens_say(answer, exact, head):
    wanted = row(5, 6, 7)
    np.testing.assert_allclose(REWARDS["exact"](answer, wanted), exact)
    np.testing.assert_allclose(REWARDS["head"](answer, wanted), head, rtol=1e-6)


@pytest.mark.heavy
def test_a_row_is_its_question_and_an_answer_right_behind_it(rolled):
    data, _ = rolled
    tokens, mask = (np.asarray(data.batches[name]) for name in ("tokens", "loss_mask"))
    assert tokens.shape == (2, 12, 5 + 4)
    for number, (one, own) in enumerate(zip(tokens[0], mask[0], strict=True)):
        question = QUESTIONS[number // 3]
        np.testing.assert_array_equal(one[: len(question)], question)
        learned = np.flatnonzero(own)
        assert len(learned) <= 4 * bool(question)
        np.testing.assert_array_equal(learned, len(question) + np.arange(len(learned)))
        if question and len(learned) < 4:
            assert one[learned[-1]] == EOS
        assert EOS not in one[learned[:-1]]
        np.testing.assert_array_equal(one[len(question) + len(learned) :], PAD)


def test_what_all_questions_begin_with_may_be_read_once(model, rolled):
    act = rollouts(first_token_is_even, group_size=3, prefix=[BOS], **LIMITS)
    (shared, told), (data, metrics) = jax.jit(act)(model, {}, visit(), jax.random.key(0)), rolled
    asked = np.repeat([bool(question) for question in QUESTIONS], 3)
    for name, leaf in data.batches.items():
        np.testing.assert_allclose(shared.batches[name][:, asked], leaf[:, asked], atol=1e-5)
    jax.tree.map(np.testing.assert_allclose, told, metrics)


def test_answers_are_scored_by_the_model_that_gave_them(model, rolled):
    data, told = rolled
    batch = jax.tree.map(lambda x: x[0], data.batches)
    expected = model.scores({}, batch["tokens"]).log_probs
    np.testing.assert_allclose(batch["old_log_probs"], expected, atol=1e-6)
    firsts = [int(row[len(QUESTIONS[i // 3])]) for i, row in enumerate(batch["tokens"])]
    # an answer that ends at once is empty, and `NOTHING` is odd
    rewards = np.array([token % 2 == 0 and token != EOS for token in firsts]).reshape(4, 3)
    asked = [0, 1, 3]
    found = batch["advantages"].reshape(4, 3)
    spread = rewards.std(axis=1, keepdims=True)
    gains = (rewards - rewards.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    np.testing.assert_allclose(found[jnp.array(asked)], gains[asked], rtol=1e-5)
    assert 0 < rewards[asked].mean() < 1
    np.testing.assert_allclose(told["reward"], rewards[asked].mean())
    assert data.num_tokens == 3  # the questions of the step that is taken


@pytest.mark.heavy
def test_answers_are_drawn_from_the_models_own_distribution(model):
    one = jax.tree.map(lambda x: x[:, :1], visit(1).batches)
    act = rollouts(first_token_is_goal, group_size=4000, **{**LIMITS, "max_new_tokens": 1})
    data, told = jax.jit(act)(model, {}, visit(1)._replace(batches=one), jax.random.key(1))
    drawn = np.asarray(data.batches["tokens"])[0, :, 3]
    logits = model.logits({}, jnp.asarray(TOKENS[:1, :3]))[0, -1]
    expected = 4000 * np.asarray(jax.nn.softmax(logits))
    counts = np.bincount(drawn, minlength=32)
    frequent = expected > 5
    statistic = ((counts - expected)[frequent] ** 2 / expected[frequent]).sum()
    degrees = frequent.sum()
    assert statistic < degrees + 4 * np.sqrt(2 * degrees)
    np.testing.assert_allclose(told["reward"], counts[GOAL] / 4000, rtol=1e-5)


@pytest.mark.heavy
def test_the_first_gradient_is_the_policy_gradient(model, rolled):
    """Of the mean over answers of advantage times mean log-probability, arXiv:2402.03300 eq. 20."""
    batch = jax.tree.map(lambda x: x[0], rolled[0].batches)
    adapted, params = add_lora(model, jax.random.key(0), rank=2, alpha=4)

    def expected(params):
        log_probs = adapted.scores(params, batch["tokens"]).log_probs
        mask = batch["loss_mask"][:, 1:]
        mean = (log_probs * mask).sum(1) / jnp.maximum(mask.sum(1), 1)
        return -(mean * batch["advantages"]).sum() / mask.any(1).sum()

    loss_fn = grpo_loss()
    found, told = jax.grad(loss_fn, has_aux=True)(params, adapted, batch, None)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, jax.grad(expected)(params)
    )
    assert told["clipped"] == 0
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(found)) > 1e-3


@dataclasses.dataclass(frozen=True)
class Bandit:
    """A policy over two tokens: the logits are the parameters, the reference has none."""

    variables: dict = dataclasses.field(default_factory=dict)

    def scores(self, params, tokens, key=None):
        logits = params if isinstance(params, jax.Array) else jnp.zeros(2)
        log_probs = jax.nn.log_softmax(logits)[tokens[:, 1:]]
        return type("Scores", (), {"log_probs": log_probs})


def bandit_batch(gains, old):
    tokens = jnp.array([[0, 0], [0, 1]])
    mask = jnp.array([[False, True]] * 2)
    return {"tokens": tokens, "loss_mask": mask, "advantages": jnp.array(gains),
            "old_log_probs": jnp.log(jnp.array(old))[:, None]}  # fmt: skip


@pytest.mark.parametrize(
    ("gains", "old", "moves"),
    [
        ([1.0, -1.0], [0.5, 0.5], True),
        ([1.0, -1.0], [0.3, 0.7], False),  # 5/3 and 5/7: both beyond the clip, in their favour
        ([-1.0, 1.0], [0.3, 0.7], True),  # beyond it, but the wrong way: still pulled back
    ],
)
def test_an_answer_that_moved_far_enough_pulls_no_more(gains, old, moves):
    params, batch = jnp.zeros(2), bandit_batch(gains, old)
    grad, told = jax.grad(grpo_loss(clip=0.2), has_aux=True)(params, Bandit(), batch, None)
    assert bool(jnp.abs(grad).max() > 0) == moves
    assert told["clipped"] == (0 if moves else 1)
    ratio = 0.5 / np.array(old)
    by_hand = np.minimum(ratio * gains, np.clip(ratio, 0.8, 1.2) * gains)
    np.testing.assert_allclose(told["loss"], -by_hand.mean(), rtol=1e-6)


def test_the_pull_to_the_reference_is_the_kl_in_the_mean():
    """E over the policy of q/p - log(q/p) - 1 is KL(p, q), arXiv:2402.03300 eq. 4."""
    params = jnp.array([0.4, -0.3])
    p = np.asarray(jax.nn.softmax(params))
    batch = bandit_batch([0.0, 0.0], p)
    parts = []
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], batch)
        parts.append(float(grpo_loss(beta=1.0)(params, Bandit(), one, None)[1]["kl"]))
    expected = (p * np.log(p / 0.5)).sum()
    np.testing.assert_allclose((p * parts).sum(), expected, rtol=1e-5)
    grad = jax.grad(lambda x: grpo_loss(beta=1.0)(x, Bandit(), batch, None)[0])(jnp.zeros(2))
    np.testing.assert_allclose(grad, 0, atol=1e-6)


@pytest.mark.parametrize(
    ("beta", "loss", "slope"),
    [(0.0, 0.2578707991, 0.0364612221), (0.04, 0.2619194648, 0.0367893682)],
)
def test_loss_and_gradient_are_those_of_trl(beta, loss, slope):
    """Golden numbers of `GRPOTrainer._compute_loss` of trl, commit f2cd577, in float64.

    With loss_type "grpo", epsilon 0.2 on both sides and the same log-probabilities; `slope` is
    the largest entry of the gradient by these.
    """
    rng = np.random.default_rng(0)
    old = rng.normal(-2, 1, (12, 7))
    log_probs, reference = (old + rng.normal(0, 0.3, old.shape) for _ in range(2))
    mask = np.arange(7)[None] < rng.integers(1, 8, (12, 1))
    batch = {
        "tokens": jnp.zeros((12, 8), jnp.int32),
        "loss_mask": jnp.asarray(np.pad(mask, ((0, 0), (1, 0)))),
        "advantages": jnp.asarray(rng.normal(size=12), jnp.float32),
        "old_log_probs": jnp.asarray(old, jnp.float32),
    }

    class Given(Bandit):
        def scores(self, params, tokens, key=None):
            found = jnp.asarray(reference) if isinstance(params, dict) else params
            return type("Scores", (), {"log_probs": found})

    grad_fn = jax.value_and_grad(grpo_loss(beta=beta), has_aux=True)
    (found, _), grad = grad_fn(jnp.asarray(log_probs, jnp.float32), Given(), batch, None)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    np.testing.assert_allclose(np.abs(grad).max(), slope, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: rollouts(first_token_is_goal, group_size=1, **LIMITS), "group_size=1"),
        (lambda: grpo_loss(clip=1.5), "clip must be in .0, 1., got 1.5"),
        (lambda: grpo_loss(beta=-1.0), "beta=-1 must not be negative"),
    ],
)
def test_numbers_out_of_range_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_packed_rows_are_refused(model):
    act = rollouts(first_token_is_goal, group_size=2, **LIMITS)
    data = visit()
    packed = data.batches | {"segments": data.batches["tokens"]}
    with pytest.raises(ValueError, match="pack_length=0"):
        act(model, {}, data._replace(batches=packed), jax.random.key(0))


class Questions:
    """Clients that ask the questions above, each in an order of its own."""

    def __len__(self):
        return 4

    def visit(self, client_id, rng):
        order = rng.permutation(4)
        data = visit(1)
        batches = {name: np.asarray(x)[:, order] for name, x in data.batches.items()}
        return jax.tree.map(np.asarray, data._replace(batches=batches))

    def num_steps(self, client_id):
        return 1


def federation(name="fed_avg"):
    tx = optax.adam(0.05)
    loss_fn = grpo_loss()
    make = {
        "fed_avg": lambda: algorithms.fed_avg(loss_fn, tx, weigh_fn=uniformly),
        "scaffold": lambda: algorithms.scaffold(loss_fn, 0.3, participation=1.0),
        "flora": lambda: algorithms.flora(loss_fn, tx),
        "ditto": lambda: algorithms.ditto(
            algorithms.fed_avg(loss_fn, tx), loss_fn, client_tx=tx, mu=0.1
        ),
        "fed_mezo": lambda: algorithms.fed_mezo(loss_fn, tx),
    }
    return algorithms.on_policy(
        make[name](), rollouts(first_token_is_goal, group_size=8, **LIMITS | {"max_new_tokens": 2})
    )


@pytest.fixture(scope="module")
def adapted(model):
    return add_lora(model, jax.random.key(0), rank=2, alpha=4)


def play(algorithm, adapted, rounds, **plan):
    model, params = adapted
    plan = fp.Plan(**plan)
    return list(fp.run(algorithm, model, Questions(), params=params, rounds=rounds, plan=plan))


@pytest.mark.heavy
def test_a_federation_learns_to_earn_rewards(adapted):
    records = [record for _, record in play(federation(), adapted, 30)]
    assert np.mean([record["reward"] for record in records[:3]]) < 0.1
    # of at most 0.9 or so: 32 embeddings in 16 dimensions are not orthogonal; three rounds
    # differ by 0.3, and their mean by 0.1 between processors
    assert np.mean([record["reward"] for record in records[-5:]]) > 0.6


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["scaffold", "flora", "ditto", "fed_mezo"])
def test_it_goes_around_algorithms_of_every_kind(adapted, name):
    records = [record for _, record in play(federation(name), adapted, 2)]
    assert all(np.isfinite(record["loss"]) and record["dropped"] == [] for record in records)
    assert all(0 <= record["reward"] <= 1 for record in records)


@pytest.mark.heavy
@pytest.mark.parametrize("how", [{"chunk_size": 1}, {"chunk_size": 3}])
def test_chunks_do_not_matter(adapted, how):
    whole, parts = (play(federation(), adapted, 2, **plan)[-1] for plan in ({}, how))
    assert whole[1]["reward"] == pytest.approx(parts[1]["reward"])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), whole[0].shared, parts[0].shared
    )


def test_handing_the_data_back_is_the_algorithm_itself():
    base = algorithms.scaffold(toy.toy_loss, 0.05, participation=1.0)
    same = algorithms.on_policy(base, lambda model, params, data, key: (data, {}))
    ends = []
    for algorithm in (base, same):
        steps = fp.run(
            algorithm,
            toy.toy_model(),
            toy.toy_clients(),
            params=toy.toy_params(),
            rounds=3,
        )
        ends.append(list(steps)[-1][0].shared)
    jax.tree.map(np.testing.assert_array_equal, *ends)
