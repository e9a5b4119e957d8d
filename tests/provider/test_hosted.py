"""A model over HTTP gives the results of the local one; no call is paid for twice."""

import json
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hosts import host, http, saying, seen_by

from fedjax_post.adapters.prompt import text_prompt
from fedjax_post.core.access import Access, AccessError
from fedjax_post.provider import journal
from fedjax_post.provider.calls import BudgetError, ProviderError
from fedjax_post.provider.hosted import connect, given_score, most_left, show_queries
from fedjax_post.provider.journal import JournalError
from fedjax_post.provider.service import Provider, Settings
from fedjax_post.provider.serving import serve
from fedjax_post.provider.terms import Terms

TEXTS = ["sort: pear fig apple\n", "reverse: cat dog\n", "a longer question about pear fig\n"]
LIMITS = {"max_new_tokens": 8, "eos_id": 1, "pad_id": 2}  # of the built-in tokenizer


@pytest.fixture
def log(tmp_path):
    return tmp_path / "provider.jsonl"


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def batch_of(tokenizer, texts=TEXTS, num_padding=1):
    """Left-padded prompts, and rows of nothing but padding behind them."""
    rows = [tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, rows)) + 1
    prompts = np.zeros((len(rows) + num_padding, width), np.int32)
    mask = np.zeros(prompts.shape, bool)
    for i, row in enumerate(rows):
        prompts[i, width - len(row) :], mask[i, width - len(row) :] = row, True
    return jnp.asarray(prompts), jnp.asarray(mask)


def ask(model, tokenizer, texts=TEXTS, **limits):
    return model.answer({}, *batch_of(tokenizer, texts), **{**LIMITS, **limits})


@pytest.mark.heavy
@pytest.mark.parametrize("prompt", [None, "in pear"])
def test_answers_over_http_are_those_of_the_local_model(served, log, prompt):
    tokenizer = served.tokenizer
    ids = prompt and tokenizer(prompt, add_special_tokens=False)["input_ids"]
    params = text_prompt(ids) if prompt else {}
    prompts, mask = batch_of(tokenizer)
    local = served.model.restrict(Access.TEXT).answer(params, prompts, mask, **LIMITS)
    with serve(Provider(served, Settings(log=log))) as url:
        model = connect(url, "builtin", tokenizer).restrict(Access.TEXT)
        found = model.answer(params, prompts, mask, **LIMITS)
    np.testing.assert_array_equal(found[:3], local[:3])
    assert len(set(np.asarray(local[:3]).ravel().tolist())) > 5  # they say something
    assert (found[3] == 2).all()
    sent = [line["prompt"] for line in seen_by(log)]
    assert sent == [f"in pear {text}" if prompt else text for text in TEXTS]


@pytest.mark.heavy
def test_a_prefix_is_sent_with_every_prompt(served, log):
    tokenizer = served.tokenizer
    prompts, mask = batch_of(tokenizer)
    rest = mask & (jnp.cumsum(mask, axis=1) > 1)
    front = jnp.array([tokenizer.bos_token_id])
    with serve(Provider(served, Settings(log=log))) as url:
        model = connect(url, "builtin", tokenizer)
        found = model.answer({}, prompts, rest, prefix=front, **LIMITS)
        model.next_scores({}, prompts, rest, jnp.array([271]), prefix=front)
    local = served.model.answer({}, prompts, mask, **LIMITS)
    np.testing.assert_array_equal(found[:3], local[:3])
    assert [line["prompt"] for line in seen_by(log)] == TEXTS * 2


@pytest.mark.heavy
def test_scores_over_http_are_those_of_the_local_model(served):
    """Where all log-probabilities come back; else a candidate has at most what they leave."""
    tokenizer, size = served.tokenizer, len(served.tokenizer)
    prompts, mask = batch_of(tokenizer)
    candidates = jnp.array([271, 272, 553, 201, 702], jnp.int32)
    local = served.model.restrict(Access.LOGITS).next_scores({}, prompts, mask, candidates)
    with serve(Provider(served, Settings(max_logprobs=size))) as url:
        all_of_it = Terms(top_logprobs=size)
        model = connect(url, "builtin", tokenizer, terms=all_of_it)
        found = model.next_scores({}, prompts, mask, candidates)
        two = connect(url, "builtin", tokenizer, terms=Terms(top_logprobs=2))
        few = np.asarray(two.next_scores({}, prompts, mask, candidates))
    np.testing.assert_allclose(found[:3], local[:3], atol=1e-5)
    assert (found[3] == 0).all()
    exact = np.isclose(few[:3], local[:3], atol=1e-5)
    assert 0 < exact.sum() < exact.size
    assert (few[:3] >= local[:3] - 1e-5).all()


@pytest.mark.heavy
def test_a_chat_is_asked_a_message_at_a_time(served, log):
    """The template adds the line break; the rest is as before."""
    tokenizer, messages = served.tokenizer, [text.rstrip("\n") for text in TEXTS]
    prompts, mask = batch_of(tokenizer)
    candidates = jnp.array([702, 553], jnp.int32)
    local = served.model.answer({}, prompts, mask, **LIMITS)
    scores = served.model.next_scores({}, prompts, mask, candidates)
    with serve(Provider(served, Settings(log=log, max_logprobs=715))) as url:
        model = connect(url, "builtin", tokenizer, terms=Terms(style="chat", top_logprobs=715))
        found = ask(model, tokenizer, messages)
        rated = model.next_scores({}, *batch_of(tokenizer, messages), candidates)
        assert model.spent().calls == model.spent().queries == 6
    np.testing.assert_array_equal(found[:3], local[:3])
    np.testing.assert_allclose(rated[:3], scores[:3], atol=1e-5)
    assert {line["endpoint"] for line in seen_by(log)} == {"/v1/chat/completions"}


@pytest.mark.heavy
def test_other_end_tokens_are_stop_texts(served):
    tokenizer = served.tokenizer
    prompts, mask = batch_of(tokenizer, TEXTS[:1])
    free = np.asarray(served.model.answer({}, prompts, mask, **LIMITS))[0].tolist()
    end = free[3]
    local = served.model.answer({}, prompts, mask, **{**LIMITS, "eos_id": end})
    with serve(Provider(served)) as url:
        found = ask(connect(url, "builtin", tokenizer), tokenizer, TEXTS[:1], eos_id=end)
    np.testing.assert_array_equal(found[:1], local[:1])


def test_shapes_are_worked_out_without_sending(served):
    """No provider listens at this address."""
    model = connect("http://127.0.0.1:9/v1", "builtin", served.tokenizer)
    prompts, mask = batch_of(served.tokenizer)

    def both(prompts):
        closed = model.answer({}, batch_of(served.tokenizer)[0], mask, **LIMITS)
        scores = model.next_scores({}, prompts, mask, jnp.array([1, 2]))
        return model.answer({}, prompts, mask, **LIMITS), scores, closed

    shapes = jax.eval_shape(both, prompts)
    assert [x.shape for x in shapes] == [(4, 8), (4, 2), (4, 8)]
    with jax.disable_jit():
        assert [x.shape for x in jax.eval_shape(both, prompts)] == [(4, 8), (4, 2), (4, 8)]
    with pytest.raises(AccessError, match=r"executor=host.*jax\.lax\.map"):
        jax.vmap(lambda row: model.answer({}, row[None], mask[:1], **LIMITS))(prompts)


def test_access_is_that_of_a_closed_model(served):
    model = connect("http://127.0.0.1:9/v1", "builtin", served.tokenizer)
    prompts, mask = batch_of(served.tokenizer)
    with pytest.raises(AccessError, match="next_scores needs LOGITS"):
        model.restrict(Access.TEXT).next_scores({}, prompts, mask, jnp.array([1]))
    with pytest.raises(AccessError, match="WEIGHTS was asked of a model that grants LOGITS"):
        model.restrict(Access.WEIGHTS)
    with pytest.raises(AccessError, match="'lora', which acts inside"):
        model.answer({"lora": {}}, prompts, mask, **LIMITS)
    with pytest.raises(AccessError, match="total_loss needs the model itself"):
        model.total_loss({}, prompts, mask)


@pytest.mark.heavy
def test_what_was_answered_is_never_paid_again(served, log, tmp_path):
    path, tokenizer = tmp_path / "journal.jsonl", served.tokenizer
    settings = Settings(log=log, price_prompt=1e6, price_completion=2e6)
    with serve(Provider(served, settings)) as url:
        go = lambda: connect(url, "builtin", tokenizer, journal=path)
        first = [ask(go().at(0, 3), tokenizer), ask(go().at(1, -1), tokenizer, TEXTS[:2])]
        again = [ask(go().at(0, 3), tokenizer), ask(go().at(1, -1), tokenizer, TEXTS[:2])]
        assert len(seen_by(log)) == 5
        assert [line["user"] for line in seen_by(log)] == ["client-3"] * 3 + [""] * 2
        with pytest.raises(JournalError, match="client 3 in round 0 asks something else"):
            ask(go().at(0, 3), tokenizer, TEXTS[:1])
        ask(go().at(1, -1), tokenizer, TEXTS[:1])  # an evaluation may ask more, later
        ask(go(), tokenizer, TEXTS[:1])
        ask(go(), tokenizer, TEXTS[:1])  # outside of a run nothing is replayed
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    seen, spent = seen_by(log), journal.spent(path)
    assert len(seen) == spent.queries == 8
    assert spent.calls == 5
    settled = [line for line in lines_of(log) if line["event"] == "settled"]
    assert spent.cost == pytest.approx(sum(line["cost"] for line in settled))
    assert spent.prompt_tokens == sum(line["prompt_tokens"] for line in settled)
    assert spent.completion_tokens == sum(line["completion_tokens"] for line in settled)
    assert spent.seconds > 0
    text = path.read_text()
    assert "pear" not in text.split('"replies"')[0]  # prompts are not written down


def test_a_call_that_a_killed_process_had_under_way_is_told_not_repeated(served, log, tmp_path):
    path, tokenizer = tmp_path / "journal.jsonl", served.tokenizer
    with serve(Provider(served, Settings(log=log))) as url:
        model = connect(url, "builtin", tokenizer, journal=path)
        ask(model.at(2, 7), tokenizer)
        whole = path.read_bytes()
        path.write_bytes(whole[:-20])  # killed while the answer was written
        with pytest.raises(JournalError, match=r"3 queries \(call 0 of client 7 in round 2\)"):
            connect(url, "builtin", tokenizer, journal=path)
        assert path.read_bytes() == whole[: whole.index(b"\n") + 1]
        assert journal.spent(path)[:2] == (1, 3)
        assert journal.spent(path).unsettled == 3
        again = connect(url, "builtin", tokenizer, journal=path, terms=Terms(ask_again=True))
        ask(again.at(2, 7), tokenizer)
    assert len(seen_by(log)) == 6
    assert journal.spent(path).queries == 6


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"max_queries": 5}, r"^max_queries=5 .*3 queries are spent \(\d+ paid\), the call has 3;"),
        ({"max_cost": 200.0, "price_prompt": 1e6, "price_completion": 5e6}, "may cost 166"),
    ],
)  # fmt: skip
def test_a_budget_ends_before_the_call(served, log, terms, message):
    settings = Settings(log=log, price_prompt=1e6, price_completion=5e6)
    with serve(Provider(served, settings)) as url:
        model = connect(url, "builtin", served.tokenizer, terms=Terms(**terms))
        ask(model.at(0, 0), served.tokenizer)
        with pytest.raises(BudgetError, match=message):
            ask(model.at(0, 2), served.tokenizer)
    assert len(seen_by(log)) == 3


@pytest.mark.parametrize("on_failure", ["stop", "drop"])
@pytest.mark.parametrize(
    ("settings", "terms", "message", "may_be_paid"),
    [
        ({"latency": 0.4}, {"timeout": 0.05}, r"no whole answer .*0\.05 s.* may have been", True),
        ({"shutdown_after": 0}, {"max_retries": 0}, "answered 503 .*shut down.*wait", False),
        ({"refused_clients": ("client-0",)}, {}, "403 .*'client-0' is not served", False),
        ({"refused_pattern": "cat"}, {}, "400 .*content policy.*leave these rows out", False),
        ({"rate_limit": (0, 500)}, {}, "answered 429 .*wait and `resume`", False),
    ],
)  # fmt: skip
def test_failures_name_the_provider_and_the_remedy(
    served, tmp_path, settings, terms, message, may_be_paid, on_failure
):
    path, tokenizer = tmp_path / "journal.jsonl", served.tokenizer
    with serve(Provider(served, Settings(**settings))) as url:
        terms = Terms(**terms, on_failure=on_failure)
        model = connect(url, "builtin", tokenizer, terms=terms, journal=path)
        with pytest.raises(ProviderError, match=f"^url={url}.*{message}") as caught:
            ask(model.at(0, 0), tokenizer)
    assert caught.value.drop == (on_failure == "drop")
    assert caught.value.may_be_paid == may_be_paid
    assert journal.spent(path).unsettled == 3 * may_be_paid
    again = connect(url, "builtin", tokenizer, terms=terms._replace(max_retries=0), journal=path)
    with pytest.raises(ProviderError) as second:  # the provider is gone; a drop is replayed
        ask(again.at(0, 0), tokenizer)
    assert (str(second.value) == str(caught.value)) == (on_failure == "drop")


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ({"api_key": "right"}, "builtin", "refused the key; set OPENAI_API_KEY"),
        ({}, "other", "404 .*'other' does not exist.*correct the model's name"),
        ({"max_logprobs": 5}, "builtin", r"At most 5 .*lower `Terms\.top_logprobs`"),
    ],
)
def test_what_is_wrong_for_everybody_drops_nobody(served, settings, name, message, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    prompts, mask = batch_of(served.tokenizer)
    with serve(Provider(served, Settings(**settings))) as url:
        model = connect(url, name, served.tokenizer, terms=Terms(on_failure="drop"))
        with pytest.raises(ProviderError, match=message) as caught:
            model.at(0, 0).next_scores({}, prompts, mask, jnp.array([1, 2]))
    assert not caught.value.drop
    assert "wrong" not in str(caught.value)


def test_the_key_of_the_environment_opens_the_provider(served, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    path = tmp_path / "journal.jsonl"
    with serve(Provider(served, Settings(api_key="sesame"))) as url:
        ask(connect(url, "builtin", served.tokenizer, journal=path), served.tokenizer)
    assert "sesame" not in path.read_text()


def test_refusals_are_retried_and_lost_answers_are_not(served, log):
    with serve(Provider(served, Settings())) as url:  # compiles: both questions fall in one second
        ask(connect(url, "builtin", served.tokenizer), served.tokenizer, TEXTS[:1])
    with serve(Provider(served, Settings(log=log, rate_limit=(1, 1.0)))) as url:
        model = connect(url, "builtin", served.tokenizer)
        ask(model, served.tokenizer, TEXTS[:1])
        ask(model, served.tokenizer, TEXTS[:1])
    assert [line["status"] for line in seen_by(log)] == [200, 429, 200]
    slow = Provider(served, Settings(log=log, latency=0.3))
    with serve(slow) as url:
        model = connect(url, "builtin", served.tokenizer, terms=Terms(timeout=0.1, max_retries=5))
        with pytest.raises(ProviderError, match="no whole answer within"):
            ask(model, served.tokenizer, TEXTS[:1])
        done = threading.Event()
        while len(seen_by(log)) < 4:  # the provider finishes, and charges, what it began
            done.wait(0.02)
    assert len(seen_by(log)) == 4


GOOD = {"index": 0, "text": "x", "finish_reason": "stop", "logprobs": None}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "no choices in"),
        ({"choices": []}, r"1 prompts were sent, replies are to \[\]"),
        ({"choices": [GOOD, GOOD]}, r"replies are to \[0, 0\]"),
        ({"choices": [GOOD | {"text": None}]}, "a reply of None"),
        ({"choices": [GOOD | {"finish_reason": "content_filter"}]}, "withheld by a content filter"),
        ({"choices": [GOOD | {"finish_reason": None}]}, "ended by None"),
        ([1, 2], "no choices in"),
    ],
)
def test_malformed_answers_are_errors_that_may_have_been_paid(served, body, message):
    with host(saying(http(body))) as (url, _):
        model = connect(url, "builtin", served.tokenizer)
        with pytest.raises(ProviderError, match=message) as caught:
            ask(model.at(0, 0), served.tokenizer, TEXTS[:1])
    assert caught.value.may_be_paid
    assert model.spent().unsettled == 1


def test_an_answer_that_is_no_api_s_is_an_error(served):
    with serve(Provider(served)) as url:
        model = connect(url.removesuffix("/v1"), "builtin", served.tokenizer)
        with pytest.raises(ProviderError, match=r"answered 404 .*There is no POST /completions"):
            ask(model, served.tokenizer, TEXTS[:1])


def test_an_evaluation_that_fails_drops_nobody_and_is_asked_again(served, tmp_path):
    path, terms = tmp_path / "journal.jsonl", Terms(on_failure="drop", max_queries=2)
    with serve(Provider(served)) as url:
        model = connect(url, "builtin", served.tokenizer, terms=terms, journal=path)
        with pytest.raises(BudgetError) as caught:
            ask(model.at(0, -1), served.tokenizer)
        assert not caught.value.drop
        again = connect(url, "builtin", served.tokenizer, journal=path)
        ask(again.at(0, -1), served.tokenizer)
    assert again.spent().queries == 3


def test_queries_are_shown_as_they_are_sent(served, capsys):
    with serve(Provider(served, Settings(price_prompt=1e6))) as url:
        model = connect(url, "builtin", served.tokenizer, watch=show_queries(10))
        ask(model, served.tokenizer, TEXTS[:1])
        ask(model, served.tokenizer, TEXTS[:1])
    assert "2/10" in capsys.readouterr().err


def test_an_unreachable_provider_is_said_to_be(served):
    model = connect("http://127.0.0.1:9/v1", "builtin", served.tokenizer,
                    terms=Terms(max_retries=1))  # fmt: skip
    with pytest.raises(ProviderError, match=r"127\.0\.0\.1:9/v1/? cannot be reached .*2 times"):
        ask(model, served.tokenizer)
    assert model.spent() == journal.Spent(failed=1, seconds=model.spent().seconds)


def test_a_change_of_model_is_told_and_journalled(served, tmp_path):
    path, later = tmp_path / "journal.jsonl", served._replace(name="builtin-2", fingerprint="fp_2")
    provider = Provider(served, Settings(change_after=1), successor=later)
    with serve(provider) as url:
        model = connect(url, "builtin", served.tokenizer, journal=path)
        ask(model, served.tokenizer)
        with pytest.warns(UserWarning, match="the provider's model changed from .*builtin-2"):
            ask(model, served.tokenizer)
    answered = [line for line in lines_of(path) if line["state"] == "answered"]
    assert [line["model"] for line in answered] == ["builtin", "builtin-2"]


@pytest.mark.parametrize(
    ("top", "score"),
    [
        ({"a": -0.2, "b": -3.0}, -3.0),  # no more than the last of those given
        ({"a": -0.01, "b": -5.0}, np.log(1 - np.exp(-0.01) - np.exp(-5.0))),  # or what they leave
        ({"a": 0.0}, np.log(1e-10)),
        ({"a": -1.0, "c": -2.0}, -2.0),
    ],
)
def test_a_candidate_that_is_not_told_of_has_the_most_that_it_can_have(top, score):
    given = given_score("c", top)
    assert (most_left(top) if given is None else given) == pytest.approx(score)
