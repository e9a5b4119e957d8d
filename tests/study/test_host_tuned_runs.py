"""Whole runs in which the host of the target trains it, in this process."""

import json
import re

import pytest

from fedjax_post import study
from fedjax_post.core.access import Access, AccessError, check_access
from fedjax_post.provider import tuning
from fedjax_post.provider.inside import Inside
from fedjax_post.study import folder, hosting
from fedjax_post.study.faults import Settings

NOUNS = {"cat": ("hen", "pig"), "dog": ("cow", "cat")}
# Two rows of a label cross to others, which are none of these
ROWS = [
    {"instruction": f"say {one} {other}", "response": label, "client": i}
    for i in range(3)
    for label, (first, second) in NOUNS.items()
    for one, other in ((first, second), (second, first)) * 3
]


def spec_of(name, base, **changes):
    common = {
        "model.name": str(base),
        "data.source": ROWS,
        "data.template": "{instruction}\\n",
        "adapter.kind": "text_prompt",
        "adapter.prompt_text": "name the kind:",
        "training.batch_size": 4,
        "training.sampling": "full",
        "training.local_epochs": 1,
        "training.rounds": 1,
        "scoring.every": 0,
        "execution.executor": "host",
        "hosting.price": 2.0,
        "method.params": {"num_epochs": 2},
    }
    return study.Spec(method=name).put(common | changes)


def log_of(directory):
    lines = (directory / hosting.LOG).read_text().splitlines()
    return [json.loads(line) for line in lines]


def arrived(directory, endpoint):
    return [e for e in log_of(directory) if e["event"] == "arrived" and e["endpoint"] == endpoint]


def uploaded(directory):
    """The uploaded rows, by the provider's log alone."""
    bodies = "".join(entry["body"] for entry in arrived(directory, "/v1/files"))
    return [json.loads(line) for line in re.findall(r'^\{"prompt".*$', bodies, re.MULTILINE)]


def told(directory, purpose):
    lines = (directory / "disclosure.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return [e for e in entries if e["party"] == "provider" and e["purpose"] == purpose]


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["host_tuning", "synthetic_tuning"])
def test_the_ledger_is_what_the_provider_has_logged(name, tiny_folder, tmp_path):
    """Each word is one token: those of a question but for the prompt, and its label."""
    directory = tmp_path / "run"
    job = study.prepare(spec_of(name, tiny_folder), directory=directory)
    assert " at this process" in str(job)
    summary = study.carry_out(job)
    rows = uploaded(directory)
    texts = [row["prompt"].removeprefix("name the kind:").strip() for row in rows]
    own = {row["instruction"] for row in ROWS}
    assert len(rows) > 3
    assert (set(texts) <= own) == (name == "host_tuning")
    assert (set(texts) & own == set()) == (name == "synthetic_tuning")
    (training,) = told(directory, "training")
    words = sum(len(text.split()) + 1 for text in texts)
    assert (training["private_tokens"], training["labels"]) == (words, len(rows))
    (tuned,) = [entry for entry in log_of(directory) if entry["event"] == "tuned"]
    assert training["cost"] == pytest.approx(tuned["cost"])
    assert tuned["cost"] == pytest.approx(tuned["trained_tokens"] * 2e-6)
    assert summary["disclosure"]["counted_by"] == "the journal of calls"
    asked = arrived(directory, "/v1/completions")
    models = {json.loads(entry["body"])["model"] for entry in asked}
    assert models == {str(tiny_folder), tuned["made"]}
    held = list((directory / "adapter").iterdir())
    assert not [path for path in held if "adapter_model" in path.name]  # a prompt, and no weights


@pytest.mark.heavy
def test_a_long_job_shows_how_far_it_is(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuning, "_SPACING", 0.0)
    study.carry_out(study.prepare(spec_of("host_tuning", tiny_folder), directory=tmp_path / "run"))
    told = re.findall(r'^fine-tuning job: "\w+", "(.+)"$', capsys.readouterr().err, re.M)
    usual = r"The job waits for its turn\.|Training on \d+ rows begins\.|Step \d+/\d+: .+"
    ended = r"The model \S+ is served\."
    assert told
    assert all(re.fullmatch(f"{usual}|{ended}", message) for message in told)


class Killed(BaseException):
    """The end of a process that waited for a job."""


@pytest.mark.heavy
def test_a_killed_run_goes_on_without_a_second_upload_or_job(tiny_folder, tmp_path, monkeypatch):
    spec, wait = spec_of("host_tuning", tiny_folder), tuning.wait_for
    whole = study.carry_out(study.prepare(spec, directory=tmp_path / "whole"))

    def die(caller, job):
        raise Killed

    monkeypatch.setattr(tuning, "wait_for", die)
    with pytest.raises(Killed):
        study.carry_out(study.prepare(spec, directory=tmp_path / "run"))
    monkeypatch.setattr(tuning, "wait_for", wait)
    resumed = study.carry_out(study.prepare(spec, directory=tmp_path / "run", resume=True))
    assert resumed["final"] == whole["final"]
    assert len(arrived(tmp_path / "run", "/v1/files")) == 3
    assert len(arrived(tmp_path / "run", "/v1/fine_tuning/jobs")) == 1
    names = ("private_tokens", "labels", "queries", "cost")
    both = [told(tmp_path / run, "training")[0] for run in ("run", "whole")]
    assert [both[0][name] for name in names] == [both[1][name] for name in names]


@pytest.mark.heavy
@pytest.mark.parametrize(("where", "number"), [("/files", 2), ("/fine_tuning/jobs", 1)])
def test_a_comparison_at_a_host_in_this_process_goes_on_wherever_it_was_killed(
    where, number, tiny_folder, tmp_path, monkeypatch
):
    """Nobody pays a host in this process, so that it is asked again."""
    specs, post, sent = {"tuned": spec_of("host_tuning", tiny_folder)}, Inside.post, []
    given = {"seeds": (0,), "show": str}
    whole = study.compare(specs, directory=tmp_path / "whole", **given)

    def dying(self, path, content, *kind):
        found = post(self, path, content, *kind)
        sent.append(path)
        if path == where and sent.count(path) == number:
            raise Killed
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Inside, "post", dying)
        with pytest.raises(Killed):
            study.compare(specs, directory=tmp_path / "cut", **given)
    again = study.compare(specs, directory=tmp_path / "cut", **given)
    assert again.rows() == whole.rows()


def test_what_a_run_at_a_host_needs_is_said_before_anything_is_sent(tiny_folder, tmp_path):
    spec = spec_of("host_tuning", tiny_folder)
    with pytest.raises(ValueError, match="fine-tune it.; give `executor=host`"):
        study.prepare(spec.put({"execution.executor": "device"}))
    with pytest.raises(ValueError, match="give `adapter=text_prompt or soft_prompt`"):
        study.prepare(spec.put({"adapter.kind": "lora", "adapter.prompt_text": ""}))
    with pytest.raises(Exception, match="a visit would send"):
        study.prepare(spec.put({"hosting.fail_on_disclosure": True}))


def test_a_budget_holds_for_uploads(tiny_folder, tmp_path):
    spec = spec_of("host_tuning", tiny_folder).put({"hosting.max_queries": 1})
    job = study.prepare(spec, directory=tmp_path / "run")
    with pytest.raises(OSError, match="max_queries=1 does not cover the next call"):
        list(job.run())
    assert not (tmp_path / "run" / hosting.LOG).exists()
    assert (tmp_path / "run" / folder.SPEC).exists()


def test_a_job_that_the_host_would_refuse_is_refused_before_the_upload(tiny_folder):
    spec = spec_of("host_tuning", tiny_folder)
    with pytest.raises(ValueError, match="num_epochs=70: a host takes at most 50"):
        hosting.check(spec.put({"method.params": {"num_epochs": 70}}))
    hosting.check(spec.put({"method.params": {"num_epochs": 50}}))


def test_an_open_method_is_not_taken_to_a_host(tiny_folder):
    assert not hosting.is_hosted(study.Spec(method="fed_avg"))
    assert not hosting.is_hosted(
        spec_of("host_tuning", tiny_folder, **{"method.baseline": "central"})
    )
    with pytest.raises(AccessError, match="a service that fine-tunes it would have to be open"):
        check_access({"target": Access.TEXT | Access.FINETUNE}, {"target": Access.GRADIENTS})


@pytest.mark.slow
def test_drills_of_a_host_that_trains_cost_a_second_disclosure(tiny_folder, tmp_path):
    rounds = {"training.rounds": 2, "training.sampling": "uniform", "training.cohort_size": 2}
    specs = {"tuned": spec_of("host_tuning", tiny_folder).put(rounds)}
    chosen = ("tuned_withdrawn", "base_retired", "changed", "shutdown", "artefact")
    chosen += ("rate_limited", "refused")
    found = study.drills(specs, chosen=chosen, directory=tmp_path / "drills", show=str)
    rows = {row["drill"]: row for row in found.rows}
    own = uploaded(tmp_path / "drills" / "tuned" / "seed-0" / "undisturbed")
    for name in ("tuned_withdrawn", "base_retired"):
        assert rows[name]["labels_again"] == [len(own)]
        assert rows[name]["private_tokens_again"][0] > len(own)
        assert rows[name]["trained_tokens_again"][0] > 0
        assert rows[name]["can_serve"]
    assert rows["tuned_withdrawn"]["lost"] == [0.0]  # the same rows, base and seed
    assert rows["tuned_withdrawn"]["by_definition"] == [True]
    assert rows["base_retired"]["by_definition"] == [False]
    assert rows["base_retired"]["at_change"] == rows["changed"]["at_change"]
    tokens = [rows[name]["model_tokens_again"] for name in ("base_retired", "tuned_withdrawn")]
    assert tokens[0] == tokens[1]
    for name in ("rate_limited", "refused"):  # all rows had been uploaded
        assert (rows[name]["by_definition"], rows[name]["lost"]) == ([True], [0.0])
    assert not rows["shutdown"]["can_serve"]
    assert not rows["artefact"]["can_serve"]
    again = study.drills(specs, chosen=chosen, directory=tmp_path / "drills", show=str)
    same = ("before", "after", "can_train", "can_serve")
    for row, other in zip(found.rows, again.rows, strict=True):
        assert [row[name] for name in same] == [other[name] for name in same]


@pytest.mark.slow
def test_methods_without_a_tuned_model_lose_none_and_move_to_the_next_version(
    tiny_folder, tmp_path
):
    common = {"training.rounds": 2, "execution.executor": "device", "method.params": {}}
    closed = spec_of("manual_prompt", tiny_folder, **common)
    lora = {"adapter.kind": "lora", "adapter.prompt_text": "", "adapter.rank": 2}
    specs = {"closed": closed, "open": spec_of("fed_avg", tiny_folder, **common | lora)}
    chosen = ("tuned_withdrawn", "base_retired", "base_renewed")
    found = study.drills(specs, chosen=chosen, directory=tmp_path / "drills", show=str)
    told = {(row["drill"], row["method"]): row["by_definition"] for row in found.rows}
    assert told == {
        ("tuned_withdrawn", "closed"): [True],
        ("base_retired", "closed"): [False],
        ("tuned_withdrawn", "open"): [True],
        ("base_retired", "open"): [True],
        ("base_renewed", "closed"): [True],
        ("base_renewed", "open"): [False],
    }


def test_the_next_version_of_a_tuned_model_is_refused_before_anything_runs(tiny_folder, tmp_path):
    specs = {"host_tuning": spec_of("host_tuning", tiny_folder, **{"training.rounds": 2})}
    settings = Settings(next_version="builtin")
    with pytest.raises(ValueError, match="next_version=builtin: base_retired of a model that"):
        study.drills(
            specs, chosen=("base_retired",), settings=settings, directory=tmp_path, show=str
        )
