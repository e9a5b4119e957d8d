"""Drills at a provider with an address: every call is paid once, and answers its own question."""

import signal

import pytest

from fedjax_post import study
from fedjax_post.provider import journal, lines
from fedjax_post.provider.calls import BudgetError
from fedjax_post.provider.line import Line
from fedjax_post.provider.served import load_served
from fedjax_post.provider.service import Provider, Settings
from fedjax_post.provider.serving import serve
from fedjax_post.simulate import stopping
from fedjax_post.study import metered

CHOSEN = ("shutdown", "rate_limited", "refused", "excluded_price")


@pytest.fixture
def url(tiny_folder):
    served = load_served(str(tiny_folder))._replace(name="tiny")
    with serve(Provider(served, Settings())) as url:
        yield url


@pytest.fixture
def call(url, tiny_folder, tiny_rows, tmp_path):
    """Drills a prompt that is learned: the questions depend on who has taken part before."""
    spec = study.Spec(method="bdpl").put(
        {
            "model.name": str(tiny_folder),
            "data.source": str(tiny_rows),
            "data.template": "{instruction}\\n",
            "data.labels": ("cat", "dog", "hen", "pig", "cow"),
            "data.heldout_fraction": 0.25,
            "training.batch_size": 2,
            "training.rounds": 3,
            "training.cohort_size": 3,
            "training.local_steps": 1,
            "scoring.batch_size": 4,
            "execution.executor": "host",
            "adapter.kind": "text_prompt",
            "adapter.prompt_text": "name the kind of these words:",
            "adapter.candidates": ("name", "kind", "these", "words"),
            "method.params": {"num_samples": 2},
            "hosting.url": url,
            "hosting.model": "tiny",
        }
    )

    def call(*, chosen=CHOSEN, ask_again=False, **changes):
        given = {"chosen": chosen, "directory": tmp_path, "ask_again": ask_again, "show": str}
        return study.drills({"bdpl": spec.put(changes)}, **given).rows

    return call


@pytest.fixture
def sent(monkeypatch):
    """What goes over the network."""
    found, post = [], Line.post

    def note(self, path, content, *kind):
        found.append(content)
        return post(self, path, content, *kind)

    monkeypatch.setattr(Line, "post", note)
    return found


@pytest.mark.heavy
def test_drills_ask_other_questions_each_and_the_same_call_pays_for_none_again(call, sent):
    rows = call()
    assert len({row["drill"] for row in rows}) > len(CHOSEN)  # those shut out have rows too
    assert sent
    sent.clear()
    assert call() == rows
    assert sent == []


@pytest.mark.heavy
def test_ctrl_c_in_an_evaluation_breaks_no_paid_call(call, sent, monkeypatch):
    measure, post, waiting = metered.measure, Line.post, []

    def scoring(*args):
        waiting.append(True)
        return measure(*args)

    def interrupted(self, *args):
        if waiting:
            waiting.clear()
            signal.raise_signal(signal.SIGINT)
        return post(self, *args)

    with monkeypatch.context() as patch, stopping.catch_signals():
        patch.setattr(metered, "measure", scoring)
        patch.setattr(Line, "post", interrupted)
        with pytest.raises(stopping.Interrupted):
            call(chosen=("shutdown",))
    before = len(sent)
    assert call(chosen=("shutdown",))  # no call is in doubt
    assert len(sent) > before


class Killed(BaseException):
    """The end of a process after a request was sent."""


@pytest.mark.heavy
def test_drills_that_were_killed_in_a_paid_call_go_on_once_they_may_pay_again(call, monkeypatch):
    post, sent = Line.post, []

    def dying(self, *args):
        sent.append(post(self, *args))
        if len(sent) == 5:
            raise Killed
        return sent[-1]

    monkeypatch.setattr(Line, "post", dying)
    with pytest.raises(Killed):
        call(chosen=("shutdown",))
    with pytest.raises(journal.JournalError, match="`ask_again` sends them again"):
        call(chosen=("shutdown",))
    assert len(sent) == 5
    assert call(chosen=("shutdown",), ask_again=True)


@pytest.mark.heavy
def test_drills_that_a_budget_has_ended_go_on_with_a_larger_one(call):
    with pytest.raises(BudgetError, match="max_queries=5 does not cover"):
        call(chosen=("shutdown",), **{"hosting.max_queries": 5})
    larger = {"hosting.max_queries": 10_000, "hosting.timeout": 30.0}
    assert call(chosen=("shutdown",), **larger)


def test_another_version_of_a_host_is_not_told_what_the_last_one_answered(tmp_path):
    source, target = tmp_path / "journal.jsonl", tmp_path / "other.jsonl"
    one = journal.Journal(source)
    paid = {"prompt_tokens": 1, "completion_tokens": 1, "cost": None, "seconds": 0.0}
    asked = {"worst_cost": None, "carries": journal.Carried()._asdict()}
    for client in (0, journal.SERVER, journal.OUTSIDE):
        request = f"{client}"
        key = one.key(1, client, 0, request)
        one.write("asked", key, request, queries=1, **asked)
        one.write("answered", key, request, queries=1, replies=[["a", True, None]], **paid)
    journal.copy_training(source, target)
    kept = [line["client"] for line, _ in lines.read(target, check=id)]
    assert kept == [0, 0, journal.SERVER, journal.SERVER]
    assert journal.spent(target).queries == 2
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_host_that_is_not_ours_is_changed_by_no_drill_and_paid_for_none(call, sent):
    with pytest.raises(ValueError, match="the model of a host, and that one is not ours; leave"):
        call(chosen=("shutdown", "changed"))
    assert sent == []
