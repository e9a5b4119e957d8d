"""Whole runs at a provider: the meter's record against the provider's own log, to the token."""

import re
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import pytest
from hosted_runs import spec_of, told

import fedjax_post as fp
from fedjax_post import study
from fedjax_post.disclosure.ledger import asks, carried_in
from fedjax_post.disclosure.meter import Carried, DisclosureError, Meter, Purpose
from fedjax_post.provider.journal import JournalError
from fedjax_post.provider.line import Line
from fedjax_post.provider.served import load_served
from fedjax_post.provider.service import Provider, Settings
from fedjax_post.provider.serving import serve
from fedjax_post.study import build, metering
from fedjax_post.study.factories import declared_access
from fedjax_post.study.reconciled import ASKING, counted_in, reconcile


def test_every_method_that_asks_is_held_against_the_meter():
    assert set(ASKING) == {name for name, access in declared_access().items() if asks(access)}


@pytest.fixture(scope="module")
def shown():
    """The rows of the page's table: both accounts of each method, and what was refused."""
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    section = text.partition("\n## The meter against a provider's log\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| (\w+) \| (.*\d) \|$", section, re.M))


def test_the_page_has_both_accounts_of_every_method_that_asks(shown):
    assert list(shown) == list(ASKING)


# One method of each form of a question; the others take minutes
OVER_ROUNDS = [
    pytest.param(
        name, marks=[] if name in {"bdpl", "fed_bbpt", "manual_prompt"} else [pytest.mark.slow]
    )
    for name in ASKING
]


@pytest.mark.heavy
@pytest.mark.parametrize("name", OVER_ROUNDS)
def test_an_algorithm_s_counts_are_the_meter_s_over_several_rounds(name, tiny_folder, tiny_rows):
    """On the host, with clients of unlike size: padded rows and steps are not sent."""
    spec = spec_of(name, tiny_folder, tiny_rows).put({"training.local_steps": None})
    parts = study.prepare(spec.put({"training.local_epochs": 1, "training.batch_size": 4})).parts
    meter = Meter(parts.form, parts.meter.examples)
    model = metering.counted(parts.model, meter, pad_id=parts.data.heldout.pad_id)
    given = {"params": parts.params, "plan": parts.plan._replace(sampler=fp.full())}
    sent = []
    for _, record in fp.run(parts.algorithm, model, parts.data.clients, rounds=3, **given):
        told, seen = carried_in(record, parts.form), meter.take().get(Purpose.TRAINING, Carried())
        assert told[:5] == seen[:5]
        sent.append(seen.queries > 0)
    nothing = [False] * 3  # of these rows no two can be crossed
    once = [True, False, False]  # rows are uploaded at a client's first visit
    other = {"manual_prompt": nothing, "synthetic_tuning": nothing, "host_tuning": once}
    assert sent == other.get(name, [True] * 3)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ASKING)
def test_meter_and_log_agree_to_the_token(name, tiny_folder, tiny_rows, tmp_path, shown):
    """With evaluation, a refused client, requests beyond the rate, and dropped clients."""
    found = reconcile(spec_of(name, tiny_folder, tiny_rows), tmp_path / "run")
    assert found.meter == found.log
    assert found.log.queries > 0
    assert found.log.private_tokens > 0
    assert (found.log.labels > 0) == (name in ("in_context", "host_tuning"))
    assert found.num_retried > 0
    # these two send nothing in training: of these rows no two can be crossed
    assert (found.num_refused > 0) == (name not in ("manual_prompt", "synthetic_tuning"))
    assert found.summary["disclosure"]["counted_by"] == "the journal of calls"
    assert found.told == shown[name]


class Killed(BaseException):
    """The end of a process after a request was sent."""


@pytest.mark.heavy
def test_calls_of_a_killed_run_count_each_time_that_they_were_sent(
    tiny_folder, tiny_rows, tmp_path, monkeypatch
):
    log, post, sent = tmp_path / "provider.jsonl", Line.post, []

    def dying(self, path, content):
        sent.append(post(self, path, content))
        if len(sent) == 5:
            raise Killed
        return sent[-1]

    served = load_served(str(tiny_folder))._replace(name="tiny")
    with serve(Provider(served, Settings(log=log))) as url:
        spec = spec_of("bdpl", tiny_folder, tiny_rows, url).put({"training.rounds": 1})
        compare = partial(study.compare, {"bdpl": spec}, seeds=(0,), directory=tmp_path, show=str)
        monkeypatch.setattr(Line, "post", dying)
        with pytest.raises(Killed):
            compare()
        with pytest.raises(JournalError, match="`ask_again` sends them again"):
            compare()
        assert len(sent) == 5
        compare(ask_again=True)
    run = tmp_path / "bdpl" / "seed-0"
    seen, found = counted_in(log, tiny_rows), told(run)
    assert len(sent) > 5
    assert found["queries"] == seen.queries
    assert found["private_tokens"] == seen.private_tokens


def silent_about(algorithm, name):
    """The algorithm, which does not tell one of its counts."""

    def update(*args):
        upload, state, metrics = algorithm.client.update(*args)
        return upload, state, {key: value for key, value in metrics.items() if key != name}

    return algorithm._replace(client=algorithm.client._replace(update=update))


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("bdpl", "queries", "bdpl counts 0 queries in visits in which it sends"),
        ("in_context", "labels_sent", "in_context counts .* private tokens"),
        ("in_context", "places_sent", "in_context counts .* tokens of its prompts"),
    ],
)
def test_an_algorithm_that_does_not_tell_what_it_sends_is_refused(
    name, count, message, tiny_folder, tiny_rows, monkeypatch
):
    real = build._make_algorithm

    def lying(*args, **kwargs):
        algorithm, *rest = real(*args, **kwargs)
        return silent_about(algorithm, count), *rest

    monkeypatch.setattr(build, "_make_algorithm", lying)
    with pytest.raises(ValueError, match=message):
        study.prepare(spec_of(name, tiny_folder, tiny_rows))


def muted_later(algorithm, by):
    """BDPL, which counts nothing after its first round: by the round, or by a state."""
    client, server = algorithm.client, algorithm.server

    def update(model, replica, state, data, ctx):
        upload, _, metrics = client.update(model, replica, (), data, ctx)
        later = {"round": ctx.round, "client": state, "server": replica.probs[0, 0] > 1}[by] > 0
        muted = {name: jnp.where(later, 0, value) for name, value in metrics.items()}
        return upload, state + 1, muted

    def serve(*args):
        shared, state = server.update(*args)
        return shared._replace(probs=shared.probs.at[0, 0].set(2.0)), state

    return algorithm._replace(
        client=client._replace(init=lambda *args: jnp.int32(0), update=update),
        server=server._replace(update=serve),
    )


@pytest.mark.parametrize("by", ["round", "client", "server"])
def test_an_algorithm_that_counts_its_first_round_alone_is_refused(
    by, tiny_folder, tiny_rows, monkeypatch
):
    real = build._make_algorithm

    def lying(*args, **kwargs):
        algorithm, *rest = real(*args, **kwargs)
        return muted_later(algorithm, by), *rest

    monkeypatch.setattr(build, "_make_algorithm", lying)
    with pytest.raises(ValueError, match="bdpl counts .* queries in visits in which it sends"):
        study.prepare(spec_of("bdpl", tiny_folder, tiny_rows))


@pytest.mark.heavy
def test_a_run_that_may_not_disclose_stops_before_its_first_private_question(
    tiny_folder, tiny_rows, tmp_path
):
    log = tmp_path / "provider.jsonl"
    served = load_served(str(tiny_folder))._replace(name="tiny")
    with serve(Provider(served, Settings(log=log))) as url:
        spec = spec_of("bdpl", tiny_folder, tiny_rows, url)
        with pytest.raises(DisclosureError, match="a visit would send"):
            study.prepare(spec.put({"hosting.fail_on_disclosure": True}))
        job = study.prepare(spec, directory=tmp_path / "run")
        job.parts.meter.refuses = True
        with pytest.raises(DisclosureError, match="nothing was sent"):
            study.carry_out(job)
    assert not log.exists() or "arrived" not in log.read_text()


def test_clients_that_are_played_are_spread_over_all():
    assert metering.evenly(16, 2) == [0, 15]
    assert metering.evenly(1, 8) == [0]
    assert metering.evenly(5, 8) == [0, 1, 2, 3, 4]
    found = metering.evenly(128, 8)
    assert (len(found), found[0], found[-1]) == (8, 0, 127)
