"""Fine-tuning as a service: training, jobs, and terms, by the official library."""

import gc
import json
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import jax
import numpy as np
import openai
import optax
import pytest
from tuned import RECIPE, ROWS, lines, make_tiny

from fedjax_post.adapters.lora import add_lora
from fedjax_post.core import ClientData, Context, local_steps
from fedjax_post.core.access import Access, AccessError
from fedjax_post.objectives.sft import sft_loss
from fedjax_post.provider import job_requests, jobs, training, uploads
from fedjax_post.provider.hosted import connect
from fedjax_post.provider.log import read_texts
from fedjax_post.provider.refusals import Refusal
from fedjax_post.provider.served import load_served
from fedjax_post.provider.service import Provider, Settings
from fedjax_post.provider.serving import serve
from fedjax_post.provider.training import Schedule
from fedjax_post.provider.training_rows import Learned, learned


@pytest.fixture(scope="module")
def served():
    return make_tiny()


def test_files_have_a_room_of_their_own(monkeypatch):
    files = uploads.Files()
    monkeypatch.setattr(uploads, "_MOST_BYTES", 10)
    kept = files.add("a", [], size=6)
    with pytest.raises(Refusal, match="together") as caught:
        files.add("b", [], size=6)
    assert caught.value.status == 413
    files.delete(kept.id)
    assert files.add("b", [], size=6).id != files.add("b", [], size=0).id
    with pytest.raises(Refusal, match="no file"):
        files.get(kept.id)


@pytest.mark.heavy
def test_training_is_local_training_on_the_same_batches(served):
    """Adam with a falling step size, by the library's own loop over one epoch in one batch."""
    rows = learned(ROWS, served.tokenizer, name="f", context=64)
    schedule, seen = Schedule(3, len(rows), 2.0, seed=5), []
    watch = lambda step, loss: seen.append(loss)
    made = training.train(served, rows, schedule, recipe=RECIPE, name="new", watch=watch)
    batches = training._batches(rows, schedule, pad_id=2, context=64)
    stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
    model, params = add_lora(served.model, jax.random.key(5), rank=4, alpha=RECIPE.alpha)
    sizes = optax.linear_schedule(0.02, 0.0, 3)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(sizes))
    data = ClientData(stacked, np.ones(3, bool), 4.0, 4.0, 0)
    expected, _, metrics = local_steps(
        sft_loss, tx, params, model, data, Context(jax.random.key(0), 0, 0)
    )
    assert np.mean(seen) == pytest.approx(float(metrics["loss"]), rel=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (made.params, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    assert seen[-1] < seen[0]


def finished(client, job):
    until = time.monotonic() + 120
    while job.status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < until
        time.sleep(0.02)
        job = client.fine_tuning.jobs.retrieve(job.id)
    return job


@pytest.mark.heavy
def test_the_official_library_tunes_a_model_and_asks_it(tmp_path):
    log, served = tmp_path / "provider.jsonl", load_served("builtin")._replace(name="tiny")
    prices = {"price_training": 5.0, "price_prompt": 2.0}
    with serve(Provider(served, Settings(log=log, recipe=RECIPE, **prices))) as url:
        client = openai.OpenAI(base_url=url, api_key="key", max_retries=0)
        file = client.files.create(file=("client-3.jsonl", lines(*ROWS)), purpose="fine-tune")
        assert (file.filename, file.status) == ("client-3.jsonl", "processed")
        assert [f.id for f in client.files.list()] == [client.files.retrieve(file.id).id]
        job = client.fine_tuning.jobs.create(
            model="tiny",
            training_file=file.id,
            suffix="words",
            hyperparameters={"n_epochs": 10, "batch_size": 4},
        )
        job = finished(client, job)
        assert (job.status, job.hyperparameters.n_epochs) == ("succeeded", 10)
        assert job.fine_tuned_model.startswith("ft:tiny:words:")
        rows = learned(ROWS, served.tokenizer, name="f", context=64)
        assert job.trained_tokens == 10 * sum(len(row.ids) for row in rows)
        assert job.model_extra[jobs.COST] == pytest.approx(job.trained_tokens * 5e-6)
        events = client.fine_tuning.jobs.list_events(job.id, limit=100)
        told = [event.message for event in events]
        assert len([text for text in told if text.startswith("Step ")]) == 10
        assert told[-1] == "The job waits for its turn."
        assert [one.id for one in client.fine_tuning.jobs.list()] == [job.id]
        assert [m.id for m in client.models.list()] == ["tiny", job.fine_tuned_model]
        for model, right in ((job.fine_tuned_model, 4), ("tiny", 0)):
            asked = client.completions.create(
                model=model, prompt=[row["prompt"] for row in ROWS], max_tokens=2
            )
            assert asked.model == model
            answers = [choice.text.strip() for choice in asked.choices]
            assert sum(map(str.__eq__, answers, ("cat", "dog", "hen", "pig"))) == right
        with pytest.raises(openai.BadRequestError, match="has succeeded"):
            client.fine_tuning.jobs.cancel(job.id)
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError, match="no file"):
            client.files.retrieve(file.id)
        with pytest.raises(openai.NotFoundError, match="'ft:other' does not exist"):
            client.completions.create(model="ft:other", prompt="a", max_tokens=1)
    texts = list(read_texts(log))
    assert texts[:4] == [row["prompt"] + row["completion"] for row in ROWS]
    settled = [json.loads(line) for line in log.read_text().splitlines()]
    assert settled[0]["event"] == "arrived"  # raw, before it is answered
    assert "say : cat" in settled[0]["body"]
    (tuned,) = [line for line in settled if line["event"] == "tuned"]
    assert tuned["trained_tokens"] == job.trained_tokens


@pytest.mark.heavy
def test_others_are_answered_while_a_job_runs_and_a_cancelled_one_ends(served, tmp_path):
    with serve(Provider(served, Settings(recipe=RECIPE))) as url:
        client = openai.OpenAI(base_url=url, api_key="key", max_retries=0)
        file = client.files.create(file=("f.jsonl", lines(*ROWS)), purpose="fine-tune")
        start = lambda seed: client.fine_tuning.jobs.create(
            model="tiny", training_file=file.id, seed=seed,
            hyperparameters={"n_epochs": 50, "batch_size": 1},
        )  # fmt: skip
        first, second = start(1), start(2)
        for _ in range(3):
            client.completions.create(model="tiny", prompt="cat", max_tokens=1)
        assert client.fine_tuning.jobs.retrieve(second.id).status == "queued"
        assert client.fine_tuning.jobs.retrieve(first.id).status in ("queued", "running")
        assert client.fine_tuning.jobs.cancel(first.id).status == "cancelled"
        assert finished(client, second).status == "succeeded"
        assert client.fine_tuning.jobs.retrieve(first.id).fine_tuned_model is None


@pytest.mark.heavy
def test_the_terms_of_queries_hold_for_files_and_jobs(served, tmp_path):
    """Refused users and patterns, a limit of requests, a key, and a provider without tuning."""
    content = ("client-1.jsonl", lines(*ROWS))
    cases = {
        403: Settings(refused_clients=("client-1",)),
        400: Settings(refused_pattern="say : dog"),
        429: Settings(rate_limit=(0, 60.0)),
        503: Settings(shutdown_after=0),
        404: Settings(recipe=None),
        413: Settings(max_bytes=20),
        401: Settings(api_key="other"),
    }
    for status, settings in cases.items():
        log = tmp_path / f"{status}.jsonl"
        with serve(Provider(served, settings._replace(log=log))) as url:
            client = openai.OpenAI(base_url=url, api_key="key", max_retries=0)
            with pytest.raises(openai.APIStatusError) as caught:
                client.files.create(file=content, purpose="fine-tune")
            assert caught.value.status_code == status
            with pytest.raises(openai.APIStatusError):
                client.fine_tuning.jobs.create(model="tiny", training_file="file-1")
        kinds = [json.loads(line)["event"] for line in log.read_text().splitlines()]
        assert kinds == ["arrived", "settled"] * 2


def test_a_failed_training_is_told_and_the_next_job_runs(served, monkeypatch):
    told = []

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(jobs, "train", fail)
    made = jobs.Jobs(RECIPE, price=0.0, note=lambda **facts: told.append(facts))
    body = {"model": "tiny", "training_file": "file-1"}
    row = Learned([1, 2], 1)
    cards = [made.create(served, job_requests.read(body, RECIPE), [row]) for _ in range(2)]
    until = time.monotonic() + 20
    while any(made.get(card["id"]).status != "failed" for card in cards):
        assert time.monotonic() < until
        time.sleep(0.01)
    made.close()
    assert made.get(cards[0]["id"]).card["error"]["code"] == "training_failed"
    assert (told, made.models) == ([], {})


def test_jobs_that_have_ended_hold_nothing(served, monkeypatch):
    monkeypatch.setattr(jobs, "train", lambda *args, **kwargs: served)
    made = jobs.Jobs(RECIPE, price=0.0, note=lambda **facts: None)
    body = {"model": "tiny", "training_file": "file-1"}
    for _ in range(2):
        made.create(served, job_requests.read(body, RECIPE), [Learned([1, 2], 1)])
        made.close()
    kept = weakref.ref(made)
    del made
    until = time.monotonic() + 60
    while kept() is not None:  # its thread may be on its way out
        assert time.monotonic() < until, "a thread that waits for more jobs holds all models"
        gc.collect()
        time.sleep(0.01)


_INTERRUPTED = """
import sys, time
sys.path.insert(0, {folder!r})
from tuned import RECIPE, ROWS, make_tiny
from fedjax_post.provider import job_requests, jobs
from fedjax_post.provider.training_rows import learned

served = make_tiny()
rows = learned(ROWS, served.tokenizer, name="f", context=64) * 50
made = jobs.Jobs(RECIPE, price=0.0, note=print)
hyper = {{"n_epochs": 50, "batch_size": 1}}
body = {{"model": "tiny", "training_file": "file-1", "hyperparameters": hyper}}
id = made.create(served, job_requests.read(body, RECIPE), rows)["id"]
while not made.get(id).events[-1]["message"].startswith("Step"):
    assert made.get(id).status in ("queued", "running")
    time.sleep(0.01)
raise KeyboardInterrupt
"""


@pytest.mark.heavy
def test_a_program_that_ends_while_a_job_is_trained_ends_as_any_other():
    script = _INTERRUPTED.format(folder=str(Path(__file__).parent))
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == -signal.SIGINT  # rather than an abort
    assert ended.stderr.splitlines()[-1] == "KeyboardInterrupt"


@pytest.mark.heavy
def test_a_provider_that_does_not_fine_tune_is_an_error_with_a_remedy(served, tmp_path):
    tokens = np.array([served.tokenizer.encode("say : cat\n cat")])
    question = np.arange(tokens.shape[1])[None] < tokens.shape[1] - 1
    with serve(Provider(served, Settings(recipe=None))) as url:
        given = {"access": Access.TEXT | Access.FINETUNE, "journal": tmp_path / "calls.jsonl"}
        model = connect(url, "tiny", served.tokenizer, **given).at(0, 1)
        with pytest.raises(OSError, match="answered 404 .*it does not fine-tune models; give"):
            model.upload({}, tokens, question, ~question)
    asked, failed = [json.loads(x) for x in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert (asked["queries"], asked["carries"]["labels"], failed["sent"]) == (1, 1, True)
    with pytest.raises(AccessError, match="needs FINETUNE"):
        model.restrict(Access.TEXT).upload({}, tokens, question, ~question)


@pytest.mark.heavy
def test_parameters_of_an_address_are_refused_and_logged(served, tmp_path):
    log = tmp_path / "provider.jsonl"
    with serve(Provider(served, Settings(log=log))) as url:
        client = openai.OpenAI(base_url=url, api_key="key", max_retries=0)
        extra = {"extra_query": {"api-version": "1"}}
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="tiny", prompt="a", max_tokens=1, **extra)
        assert caught.value.param == "api-version"
        with pytest.raises(openai.BadRequestError):
            client.models.list(**extra)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(e["event"], e.get("status")) for e in events] == [("arrived", None), ("settled", 400)]
