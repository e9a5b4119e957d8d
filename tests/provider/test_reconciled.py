"""The ledger against a provider's own log: equal token by token, under either count."""

import json

import jax
import jax.numpy as jnp
import pytest

import fedjax_post as fp
from fedjax_post.adapters.prompt import text_prompt
from fedjax_post.core import aggregates, algorithm, local
from fedjax_post.core.access import Access
from fedjax_post.data.builtin.corpus import build_tokenizer
from fedjax_post.data.load import Text, load_clients
from fedjax_post.disclosure.arrivals import Private, arrivals, index_of, offsets_of
from fedjax_post.disclosure.ledger import (
    Hosting,
    Price,
    account,
    carried_in,
    distinct_questions,
    public_tokens,
    totals,
)
from fedjax_post.disclosure.meter import DisclosureError, Form, Meter, Purpose, purpose_of
from fedjax_post.model.views import init_model
from fedjax_post.objectives.choice import answer_loss, choice_loss
from fedjax_post.provider.hosted import connect
from fedjax_post.provider.journal import carried
from fedjax_post.provider.log import read_texts
from fedjax_post.provider.served import make_served
from fedjax_post.provider.service import Provider, Settings
from fedjax_post.provider.serving import serve
from fedjax_post.provider.terms import Terms
from fedjax_post.simulate.visits import steps
from fedjax_post.testing.models import tiny_config

WORDS = ("cat", "dog", "cat dog", "dog cat hen", "hen", "hen pig", "pig", "cow pig hen")
PRICE = Price(read=3.0, written=5.0)
TEMPLATE = "say : {instruction}\n"
PROMPT = "name the kind of these words:"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def served(tokenizer):
    config = tiny_config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        max_positions=128,
        bos_id=tokenizer.bos_token_id,
    )
    return make_served("tiny", init_model(config, jax.random.key(0)), tokenizer)


def rows():
    """Four clients; texts that begin like others, and one that two clients hold."""
    return [
        {"instruction": text, "response": ("animal", "food")[i % 2], "client": i % 4}
        for i, text in enumerate([*WORDS, "cat", "hen pig", "dog dog"])
    ]


@pytest.fixture(scope="module")
def clients(tokenizer, tmp_path_factory):
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        loaded = load_clients(
            rows(), tokenizer, batch_size=2, local_epochs=1, text=Text(template=TEMPLATE)
        )
    return loaded.clients


def asking(loss_fn, tier):
    """Asks once about every row of a visit and learns nothing."""

    def update(model, replica, state, data, ctx):
        step = lambda carry, batch, key: (carry, loss_fn(replica, model, batch, key)[1])
        _, told = local.over_steps(step, (), data, ctx)
        return algorithm.Upload((), jnp.float32(1)), state, told

    return algorithm.Algorithm(
        client=algorithm.Client(algorithm.stateless, update),
        server=algorithm.Server(lambda shared: (), lambda value, state, shared: (shared, state)),
        aggregate=aggregates.weighted_mean(),
        access={"target": tier},
    )


def logits_method(tokenizer):
    labels = [tokenizer.encode(w, add_special_tokens=False)[0] for w in ("animal", "food")]
    return asking(choice_loss(labels), Access.LOGITS)


def text_method(tokenizer):
    ends = {"eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id}
    return asking(answer_loss(**ends, max_new_tokens=2), Access.TEXT)


METHODS = {"logits": (logits_method, 1), "text": (text_method, 2)}  # and tokens of an answer


def play(method, model, clients, tokenizer, executor):
    params = text_prompt(tokenizer.encode(PROMPT, add_special_tokens=False))
    plan = fp.Plan(sampler=fp.uniform(2), chunk_size=2, executor=executor)
    run = fp.run(method, model, clients, params=params, rounds=3, plan=plan)
    return [record for _, record in run], plan, params["prompt"]["tokens"].size


def counted_by_record(records, clients, plan, hosting, form):
    every = steps(plan, len(clients), range(3))
    found = plan.feed(clients, every, widths=(1,), seed=plan.seed)
    visits = ((c.round, c.data.batches, c.data.step_mask) for _, _, c in found)
    distinct = distinct_questions(visits, template=form.template)
    sent = [
        (i, Purpose.TRAINING, carried_in(record, form)._replace(distinct=distinct[i]))
        for i, record in enumerate(records)
    ]
    return totals(account(records, sent, hosting=hosting, price=PRICE))


def counted_by_journal(records, path):
    """The meter's record, which was written before each call."""
    sent = [
        (round, purpose_of(round, client_id), found)
        for (round, client_id), found in carried(path).items()
    ]
    return totals(account(records, sent, hosting=Hosting.PROVIDER, price=PRICE))


def counted_by_content(log, tokenizer):
    private = [Private(row["instruction"], row["response"], "\n") for row in rows()]
    return arrivals(read_texts(log), index_of(private), offsets_fn=offsets_of(tokenizer))


def template_tokens(tokenizer):
    question, literals = TEMPLATE.format(instruction="cat hen"), TEMPLATE.split("{instruction}")
    return 1 + public_tokens(question, literals, offsets_fn=offsets_of(tokenizer))  # and bos


@pytest.mark.heavy
@pytest.mark.parametrize("name", METHODS)
def test_records_and_the_provider_s_log_agree_to_the_token(
    name, served, clients, tokenizer, tmp_path
):
    make, answer = METHODS[name]
    log, journal = tmp_path / "provider.jsonl", tmp_path / "journal.jsonl"
    terms, template = Terms(top_logprobs=5), template_tokens(tokenizer)
    meter = Meter(Form(template=template))
    prices = {"price_prompt": PRICE.read, "price_completion": PRICE.written}
    with serve(Provider(served, Settings(log=log, **prices))) as url:
        given = {"terms": terms, "journal": journal, "meter": meter}
        model = connect(url, "tiny", tokenizer, **given)
        records, plan, prompt = play(make(tokenizer), model, clients, tokenizer, fp.host)
        spent = model.spent()
    form = Form(template=template, prompt=prompt, answer=answer)
    told = counted_by_journal(records, journal)["provider"]
    by_record = counted_by_record(records, clients, plan, Hosting.PROVIDER, form)["provider"]
    assert told._replace(cost=0) == by_record._replace(cost=0)
    assert told.cost == pytest.approx(by_record.cost)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines = [line for line in lines if line["event"] == "settled"]
    seen = counted_by_content(log, tokenizer)
    assert told.queries == seen.queries == spent.queries == spent.sent > 10
    assert told.private_tokens == seen.private_tokens > 20
    assert told.unique_tokens == seen.unique_tokens > 10
    assert told.labels == seen.labels == 0
    read = sum(line["prompt_tokens"] for line in lines)
    written = sum(line["completion_tokens"] for line in lines)
    assert written <= told.queries * answer
    unwritten = (told.queries * answer - written) * PRICE.written / 1e6
    paid = (read * PRICE.read + written * PRICE.written) / 1e6
    assert told.cost == pytest.approx(paid + unwritten)
    assert spent.cost == pytest.approx(paid)


def test_the_same_run_at_the_client_discloses_nothing(served, clients, tokenizer):
    method = logits_method(tokenizer)
    records, plan, prompt = play(method, served.model, clients, tokenizer, fp.device)
    assert sum(record["queries"] for record in records) > 10
    form = Form(template=template_tokens(tokenizer), prompt=prompt, answer=1)
    told = counted_by_record(records, clients, plan, Hosting.CLIENT, form)
    assert list(told) == ["server"]
    assert told["server"].private_tokens == told["server"].queries == 0
    inside = counted_by_record(records, clients, plan, Hosting.SERVER, form)
    assert inside["server"].private_tokens > 20
    assert not inside["server"].outside


def test_a_guarded_run_stops_before_anything_private_leaves(served, clients, tokenizer, tmp_path):
    log, journal = tmp_path / "provider.jsonl", tmp_path / "calls.jsonl"
    meter = Meter(Form(template=template_tokens(tokenizer)), refuses=True)
    with serve(Provider(served, Settings(log=log))) as url:
        given = {"terms": Terms(top_logprobs=5), "journal": journal, "meter": meter}
        model = connect(url, "tiny", tokenizer, **given)
        with pytest.raises(DisclosureError, match="nothing was sent"):
            play(logits_method(tokenizer), model, clients, tokenizer, fp.host)
        public = tokenizer("say :", return_tensors="np")["input_ids"]
        mask = jnp.ones(public.shape, bool)
        model.next_scores({}, jnp.asarray(public), mask, jnp.array([5, 6]))
    assert [text for text in read_texts(log) if "say" in text] != []
    assert log.read_text().count('"arrived"') == 1
    states = [json.loads(line)["state"] for line in journal.read_text().splitlines()]
    assert states == ["asked", "answered"]
