"""A run with a hosted model: the results of the local run, and no call is paid for twice."""

import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_post as fp
from fedjax_post import core
from fedjax_post.core.access import AccessError
from fedjax_post.core.algorithm import stateless
from fedjax_post.objectives.choice import answer_loss, choice_loss
from fedjax_post.provider.calls import BudgetError, ProviderError
from fedjax_post.provider.hosted import connect
from fedjax_post.provider.journal import JournalError, spent
from fedjax_post.provider.served import load_served
from fedjax_post.provider.service import Provider, Settings
from fedjax_post.provider.serving import serve
from fedjax_post.provider.terms import Terms

TEXT = answer_loss(eos_id=1, pad_id=2, max_new_tokens=4)
QUESTIONS = ["sort: pear fig\n", "reverse: cat dog\n", "sort: dog cat\n", "reverse: fig pear\n"]
ROUNDS, CLIENTS, ROWS, PROMPTS = 2, 3, 2, 2


@pytest.fixture(scope="module")
def served():
    return load_served("builtin")


@pytest.fixture(scope="module")
def prompts(served):
    """Two prompts of one length."""
    texts = ["pear", "dog"]
    ids = [served.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return jnp.array(ids, jnp.int32)


def poll(loss_fn, prompts, *, access=core.Access.TEXT, loop=jax.lax.map):
    """Asks every client how it likes each prompt, and shares the sum of the mean losses."""

    def update(model, replica, state, data, ctx):
        batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), data.batches)
        ask = lambda tokens: loss_fn({"prompt": {"tokens": tokens}}, model, batch, ctx.key)
        losses, metrics = loop(ask, prompts)
        return core.Upload(losses, jnp.float32(1)), state, jax.tree.map(jnp.sum, metrics)

    return core.Algorithm(
        core.Client(stateless, update),
        core.Server(lambda shared: (), lambda value, state, shared: (shared + value, state)),
        core.weighted_mean(),
        access={"target": access},
    )


def clients_of(tokenizer, num_clients=CLIENTS):
    """Rows that the model answers rightly for a few questions and prompts, wrongly for others."""
    arrays = []
    for k in range(num_clients):
        tokens, mask = np.full((4, 16), 2, np.int32), np.zeros((4, 16), bool)
        for i, text in enumerate(QUESTIONS):
            ids = tokenizer(text)["input_ids"]
            ids += tokenizer(["pear", "dog", "fig"][k], add_special_tokens=False)["input_ids"]
            tokens[i, : len(ids)], mask[i, len(ids) - 1] = ids, True
        arrays.append({"tokens": tokens, "loss_mask": mask})
    return fp.ArrayClients(arrays, batch_size=ROWS, local_steps=1)


def play(algorithm, model, served, *, rounds=ROUNDS, executor=fp.host, **plan):
    run = fp.run(
        algorithm, model, clients_of(served.tokenizer), params=jnp.zeros(PROMPTS), rounds=rounds,
        plan=fp.Plan(**{"executor": executor, "chunk_size": 2, "checkpoint_every": 100} | plan),
    )  # fmt: skip
    return list(run)


def log_of(path):
    """What the provider answered: (user, prompt) and how often."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    bodies = {line["request"]: json.loads(line["body"]) for line in lines if "body" in line}
    answered = [bodies[line["request"]] for line in lines if line.get("status") == 200]
    return Counter((body["user"], prompt) for body in answered for prompt in body["prompt"])


@pytest.mark.heavy
@pytest.mark.parametrize("tier", [core.Access.TEXT, core.Access.LOGITS])
def test_a_run_on_a_provider_is_the_run_on_the_local_model(served, prompts, tmp_path, tier):
    log, size = tmp_path / "log", len(served.tokenizer)
    loss_fn = TEXT if tier == core.Access.TEXT else choice_loss([271, 272, 702])
    algorithm = poll(loss_fn, prompts, access=tier)
    local = play(algorithm, served.model, served, executor=fp.device)
    with serve(Provider(served, Settings(log=log, max_logprobs=size))) as url:
        model = connect(url, "builtin", served.tokenizer, terms=Terms(top_logprobs=size))
        found = play(algorithm, model, served)
    np.testing.assert_allclose(found[-1][0].shared, local[-1][0].shared, atol=1e-5)
    for (_, record), (_, wanted) in zip(found, local, strict=True):
        assert record["queries"] == wanted["queries"] == CLIENTS * ROWS * PROMPTS
        assert record["tokens_sent"] == wanted["tokens_sent"]
        assert record["loss"] == pytest.approx(wanted["loss"], abs=1e-5)
    seen = log_of(log)
    assert seen.total() == sum(record["queries"] for _, record in found) == model.spent().queries
    assert {user for user, _ in seen} == {f"client-{k}" for k in range(CLIENTS)}


class Killed(BaseException):
    """The end of a process, between two calls."""


@pytest.mark.heavy
@pytest.mark.parametrize("end", ["budget", "kill"])
def test_a_run_that_ended_within_a_round_is_resumed_without_paying_twice(
    served, prompts, tmp_path, end
):
    algorithm, kept = poll(TEXT, prompts), tmp_path / "run"
    queries = 18  # of 24: in the second round, at its second client

    def stop(so_far):
        if so_far.queries == queries:
            raise Killed

    logs = [tmp_path / name for name in ("straight", "stopped")]
    with serve(Provider(served, Settings(log=logs[0]))) as url:
        straight = play(algorithm, connect(url, "builtin", served.tokenizer), served)
    go = lambda url, **more: connect(
        url, "builtin", served.tokenizer, journal=kept / "journal.jsonl", **more
    )
    with serve(Provider(served, Settings(log=logs[1]))) as url:
        if end == "budget":
            model, error = go(url, terms=Terms(max_queries=queries)), BudgetError
        else:
            model, error = go(url, watch=stop), Killed
        with pytest.raises(error):
            play(algorithm, model, served, directory=kept)
        assert log_of(logs[1]).total() == queries
        resumed = play(algorithm, go(url), served, directory=kept, resume=True)
    assert [record["round"] for _, record in resumed] == [1]
    np.testing.assert_array_equal(resumed[-1][0].shared, straight[-1][0].shared)
    assert log_of(logs[1]) == log_of(logs[0])
    assert spent(kept / "journal.jsonl").queries == ROUNDS * CLIENTS * ROWS * PROMPTS


@pytest.mark.heavy
def test_a_client_that_is_not_answered_is_left_out_if_so_configured(served, prompts, tmp_path):
    algorithm = poll(TEXT, prompts)
    journal, log = tmp_path / "journal.jsonl", tmp_path / "log"
    among = lambda *ids: lambda population, rng: np.array(ids)
    others = play(algorithm, served.model, served, executor=fp.device, sampler=among(0, 2))
    terms = Terms(on_failure="drop")
    with serve(Provider(served, Settings(log=log, refused_clients=("client-1",)))) as url:
        model = connect(url, "builtin", served.tokenizer, terms=terms, journal=journal)
        found = play(algorithm, model, served)
        number = len(log.read_text().splitlines())
        again = connect(url, "builtin", served.tokenizer, terms=terms, journal=journal)
        replayed = play(algorithm, again, served)
        assert len(log.read_text().splitlines()) == number  # not even asked again
        alone = play(algorithm, model, served, sampler=among(1), rounds=1)
        assert (alone[-1][0].shared == 0).all()
        stopping = connect(url, "builtin", served.tokenizer)
        with pytest.raises(ProviderError, match="'client-1' is not served") as caught:
            play(algorithm, stopping, served)
    assert {"in stage client.update", "client 1, round 0"} <= set(caught.value.__notes__)
    assert [record["dropped"] for _, record in found] == [[1]] * ROUNDS
    np.testing.assert_array_equal(found[-1][0].shared, others[-1][0].shared)
    np.testing.assert_array_equal(found[-1][0].shared, replayed[-1][0].shared)
    assert alone[0][1]["dropped"] == [1]


@pytest.mark.heavy
def test_padding_is_not_asked_for(served, prompts, tmp_path):
    log = tmp_path / "log"
    with serve(Provider(served, Settings(log=log))) as url:
        model = connect(url, "builtin", served.tokenizer)
        nobody = lambda population, rng: np.zeros(0, np.int64)
        play(poll(TEXT, prompts), model, served, rounds=1, sampler=nobody)
        assert not log.exists()
        one = lambda population, rng: np.array([2])
        play(poll(TEXT, prompts), model, served, rounds=1, sampler=one)
    assert {user for user, _ in log_of(log)} == {"client-2"}


def test_a_run_that_does_not_repeat_itself_is_not_resumed(served, prompts, tmp_path):
    journal = tmp_path / "journal.jsonl"
    with serve(Provider(served)) as url:
        go = lambda: connect(url, "builtin", served.tokenizer, journal=journal)
        play(poll(TEXT, prompts), go(), served, rounds=1)
        with pytest.raises(JournalError, match="call 0 of client 0 in round 0 asks something else"):
            play(poll(TEXT, prompts[::-1]), go(), served, rounds=1)


def test_each_role_that_can_be_is_bound_to_the_visit(served, prompts):
    """Steered: a hosted target beside an open model."""
    both = poll(TEXT, prompts)
    seen = []

    def update(model, replica, state, data, ctx):
        seen.append(type(model["proxy"]).__name__)
        return both.client.update(model["target"], replica, state, data, ctx)

    algorithm = both._replace(
        client=both.client._replace(update=update),
        access={"target": core.Access.TEXT, "proxy": core.Access.GRADIENTS},
    )
    with serve(Provider(served)) as url:
        hosted = connect(url, "builtin", served.tokenizer)
        play(algorithm, {"target": hosted, "proxy": served.model}, served, rounds=1)
        assert hosted.spent().queries == CLIENTS * ROWS * PROMPTS
    assert set(seen) == {"LanguageModel"}


@pytest.mark.parametrize(
    ("executor", "loop"),
    [(fp.device, jax.lax.map), (fp.host, lambda fn, x: jax.vmap(fn)(x))],
)
def test_what_would_map_a_hosted_model_is_refused_before_anything_is_sent(
    served, prompts, executor, loop
):
    model = connect("http://127.0.0.1:9/v1", "builtin", served.tokenizer)
    with pytest.raises(AccessError, match=r"executor=host.*jax\.lax\.map"):
        play(poll(TEXT, prompts, loop=loop), model, served, rounds=1, executor=executor)
    assert model.spent().failed == 0
