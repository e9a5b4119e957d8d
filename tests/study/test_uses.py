"""Uses of finished runs: what they show to the host of the target stands in the run's ledger."""

import contextlib
import io
import itertools
import json

import pytest
from hosted_runs import spec_of, told

from fedjax_post import study
from fedjax_post.disclosure.ledger import DisclosureError
from fedjax_post.experiments import generate
from fedjax_post.integrity import DamagedError
from fedjax_post.provider.calls import ProviderError
from fedjax_post.provider.line import Line
from fedjax_post.provider.served import load_served
from fedjax_post.provider.service import Provider, Settings
from fedjax_post.provider.serving import serve
from fedjax_post.study import folder, hosting, uses
from fedjax_post.study.reconciled import counted_in

LAST = {"training.rounds": 1, "scoring.every": 0, "training.local_steps": 1}
URL = "hosting.url"


def run_of(name, tiny, directory, url=None, **changes):
    spec = spec_of(name, *tiny, url).put(LAST).put(changes)
    study.carry_out(study.prepare(spec, directory=directory))
    return directory


def answer(run, text, changes):
    turns = [{"role": "user", "content": text}]
    return "".join(study.stream(study.serve(run, changes), turns, max_new_tokens=2))


def refusal(command):
    """What a program that refuses its flags prints."""
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        assert generate.main(command) == 2
    return printed.getvalue()


def lines_of(run, purpose=None):
    path = run / "disclosure.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if purpose in (None, line["purpose"])]


@pytest.fixture
def tiny(tiny_folder, tiny_rows):
    return tiny_folder, tiny_rows


@pytest.fixture
def host(tiny_folder, tmp_path):
    """A function that starts a provider, whose clock ticks at each request, and its log."""
    log, ticks = tmp_path / "provider.jsonl", itertools.count()
    served = load_served(str(tiny_folder))._replace(name="tiny")
    clock = lambda: 0.012 * next(ticks)
    start = lambda **terms: serve(Provider(served, Settings(log=log, **terms), clock_fn=clock))
    return start, log


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["manual_prompt", "fed_bbpt"])
def test_the_ledger_of_uses_is_what_the_provider_has_logged(name, tiny, host, tmp_path):
    """Of a prompt of words and of a soft one, with a question that is repeated."""
    start, log = host
    with start() as url:
        run = run_of(name, tiny, tmp_path / "run", url)
        before, files = lines_of(run), (run / "journal.jsonl").read_bytes()
        at = {URL: url}
        first = answer(run, "say cat", at)
        assert answer(run, "say cat", at) == first
        command = ["generate", str(run), "--prompt=say pig", "--max_new_tokens=2"]
        assert "names a host" in refusal(command)
        typed = [*command, f"--provider_url={url}"]
        assert "nothing was sent" in refusal([*typed, "--fail_on_disclosure"])
        assert generate.main(typed) == 0
        (used,) = lines_of(run, "use")
        named = ("round", "party", "outside", "queries", "private_tokens", "unique_tokens")
        assert [used[name] for name in named] == [-1, "provider", True, 3, 6, 4]
        found = study.evaluate(run, at)
        assert "exact_match" in found.scores
        assert "loss" not in found.scores
        sent = len(log.read_bytes())
        assert study.evaluate(run, at) == found
        assert len(log.read_bytes()) == sent  # all answers were in the journal
    assert told(run) == counted_in(log, tiny[1])._asdict()
    assert lines_of(run)[:-1] == before
    assert (run / "journal.jsonl").read_bytes() == files


@pytest.mark.heavy
def test_a_model_that_its_host_has_tuned_can_be_asked(tiny, tmp_path):
    run = run_of("host_tuning", tiny, tmp_path / "run")
    log = run / hosting.LOG
    before = len(log.read_text().splitlines())
    served = study.serve(run)
    for text in ("say cat", "say hen"):
        assert list(study.stream(served, [{"role": "user", "content": text}], max_new_tokens=2))
    study.evaluate(run)
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    (tuned,) = [entry for entry in entries if entry["event"] == "tuned"]
    asked = [json.loads(e["body"]) for e in entries[before:] if e["event"] == "arrived"]
    assert {body["model"] for body in asked} == {tuned["made"]}
    assert told(run) == counted_in(log, tiny[1])._asdict()


@pytest.mark.heavy
@pytest.mark.parametrize("inference", ["provider", "server"])
def test_a_use_of_a_simulated_target_is_counted_as_its_evaluation(inference, tiny, tmp_path):
    run = run_of("manual_prompt", tiny, tmp_path / "run", **{"hosting.inference": inference})
    (tested,) = [line for line in lines_of(run, "evaluation") if line["round"] == 1]
    study.evaluate(run)
    (used,) = lines_of(run, "use")
    assert used == tested | {"round": -1, "purpose": "use"} | {"crc32": used["crc32"]}
    assert used["outside"] == (inference == "provider")
    answer(run, "say cat", {})
    (again,) = lines_of(run, "use")
    assert again["private_tokens"] == used["private_tokens"] + 2
    assert again["queries"] == used["queries"] + 1


@pytest.mark.heavy
def test_a_run_whose_clients_hold_the_model_shows_nothing(tiny, tmp_path):
    run = run_of("manual_prompt", tiny, tmp_path / "run")  # inference=client
    before = (run / "disclosure.jsonl").read_bytes()
    answer(run, "say cat", {})
    study.evaluate(run)
    assert (run / "disclosure.jsonl").read_bytes() == before
    assert not (run / uses.SHOWN).exists()


def stored(directory, tiny, name, **changes):
    """The folder of a run that has ended, without what it has trained."""
    (directory / "adapter").mkdir(parents=True)
    spec = study.Spec(method=name).put({"model.name": str(tiny[0]), **changes})
    folder.write_text(directory / folder.SPEC, study.files.to_json(spec))
    return directory


def test_open_methods_and_proxies_have_no_use(tiny, tmp_path):
    for name, changes in (
        ("fed_avg", {"hosting.inference": "provider"}),
        ("fed_pt", {"hosting.inference": "provider", "model.proxy": "builtin-small"}),
        ("fed_bpt", {"method.baseline": "central", "hosting.inference": "provider"}),
    ):
        run = stored(tmp_path / name, tiny, name, **changes)
        spec = study.files.read_unsupplied(run / folder.SPEC)
        assert uses.find(run, spec, None, typed={})[1] is None
    run = stored(tmp_path / "closed", tiny, "fed_bpt", **{"hosting.inference": "provider"})
    spec = study.files.read_unsupplied(run / folder.SPEC)
    assert uses.find(run, spec, None, typed={})[1] is not None


def test_an_algorithm_of_one_s_own_is_known_by_its_summary(tiny, tmp_path):
    run = stored(tmp_path / "run", tiny, "no_such:code", **{"hosting.inference": "provider"})
    spec = study.files.read_unsupplied(run / folder.SPEC)
    with pytest.raises(ValueError, match="has no summary, which says what no_such:code asks"):
        uses.find(run, spec, None, typed={})
    folder.write_json(run / "summary.json", {"inference": None, "access": "GRADIENTS"})
    assert uses.find(run, spec, None, typed={})[1] is None
    folder.write_json(run / "summary.json", {"inference": "provider", "access": "LOGITS"})
    assert uses.find(run, spec, None, typed={})[1] is not None
    folder.write_json(run / "summary.json", {"inference": "provider", "access": "FINETUNE"})
    with pytest.raises(ValueError, match="names code, method.name=no_such:code"):
        uses.find(run, spec, None, typed={})


def test_a_host_is_named_by_the_user(tiny, tmp_path):
    at = {URL: "http://127.0.0.1:9/v1", "adapter.kind": "text_prompt", "adapter.prompt_text": "a:"}
    at |= {"execution.executor": "host", "data.template": "{instruction}"}
    run = stored(tmp_path / "run", tiny, "manual_prompt", **at)
    with pytest.raises(ValueError, match="names a host, hosting.url=http://127.0.0.1:9/v1"):
        study.serve(run)
    served = study.serve(run, {URL: at[URL]})
    assert served.is_hosted
    with pytest.raises(ValueError, match="temperature=0.5 cannot be asked of a provider"):
        next(study.stream(served, [{"role": "user", "content": "say cat"}], temperature=0.5))
    with pytest.raises(ValueError, match="gives no log-probabilities"):
        study.membership(run, {URL: at[URL]})
    with pytest.raises(OSError, match="cannot be reached"):
        answer(run, "say cat", {URL: at[URL]})
    assert not (run / "disclosure.jsonl").exists()  # no connection was made


@pytest.mark.heavy
def test_a_use_that_may_not_disclose_is_refused_before_the_call(tiny, host, tmp_path):
    start, log = host
    here = {"hosting.inference": "provider"}
    runs = {tmp_path / "here": {}}
    run_of("manual_prompt", tiny, tmp_path / "here", **here)
    with start() as url:
        runs[run_of("manual_prompt", tiny, tmp_path / "there", url)] = {URL: url}
        sent = log.read_bytes()
        for run, at in runs.items():
            before = (run / "disclosure.jsonl").read_bytes()
            closed = at | {"hosting.fail_on_disclosure": True}
            with pytest.raises(DisclosureError, match="a call of 1 queries carries 2 private"):
                answer(run, "say cat", closed)
            with pytest.raises(DisclosureError, match="nothing was sent"):
                study.evaluate(run, closed)
            assert (run / "disclosure.jsonl").read_bytes() == before
        assert log.read_bytes() == sent


@pytest.mark.heavy
def test_what_is_refused_or_interrupted_has_been_shown(tiny, host, tmp_path, monkeypatch):
    """403 and 429 of the provider, and Ctrl-C once a request has arrived."""
    start, log = host
    post = Line.post

    def dying(self, path, content):
        post(self, path, content)
        raise KeyboardInterrupt

    with start(refused_pattern="cow", rate_limit=(1, 0.02)) as url:
        at = {URL: url}
        run = run_of("manual_prompt", tiny, tmp_path / "run", url, **{"scoring.examples": 1})
        with pytest.raises(ProviderError, match="answered"):
            answer(run, "say cow", at)
        refused = lines_of(run, "use")[0]["private_tokens"]
        assert refused > 0
        with monkeypatch.context() as patch:
            patch.setattr(Line, "post", dying)
            with pytest.raises(KeyboardInterrupt):
                answer(run, "say dog", at)
        assert lines_of(run, "use")[0]["private_tokens"] > refused
        for _ in range(3):
            answer(run, "say hen", at)
    assert "429" in (run / uses.JOURNAL).read_text()
    assert told(run) == counted_in(log, tiny[1])._asdict()


@pytest.mark.heavy
def test_a_run_that_goes_on_keeps_its_uses(tiny, tmp_path):
    changes = {"hosting.inference": "provider"}
    run = run_of("manual_prompt", tiny, tmp_path / "run", **changes)
    answer(run, "say cat", {})
    used = lines_of(run, "use")
    study.carry_out(study.read(run).resume(rounds=2))
    assert lines_of(run, "use") == used
    assert {line["round"] for line in lines_of(run, "evaluation")} == {0, 2}
    with open(run / uses.SHOWN, "a") as file:  # a process that was killed
        file.write('{"party": "prov')
    answer(run, "say cat", {})
    assert lines_of(run, "use")[0]["queries"] == 2
    path = run / "disclosure.jsonl"
    path.write_text(path.read_text().replace('"queries": 2', '"queries": 1'))
    with pytest.raises(DamagedError):
        answer(run, "say cat", {})
    assert len((run / uses.SHOWN).read_text().splitlines()) == 2
