"""The benchmark's arithmetic, lines, tables and refusals; its measurements are not tested."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedjax_post.data.batches import TokenClients
from fedjax_post.experiments.benchmark import __main__ as benchmark
from fedjax_post.experiments.benchmark import (
    environments,
    lines,
    lm_job,
    options,
    processes,
    profile,
    table,
)
from fedjax_post.experiments.benchmark.lines import Aim, Figure
from fedjax_post.experiments.benchmark.settings import Settings, select
from fedjax_post.experiments.benchmark.shapes import TINY
from fedjax_post.experiments.benchmark.sides import logistic
from fedjax_post.simulate.cohort import data_rng

ROOT = Path(__file__).parent.parent.parent


def test_ratio_is_taken_turn_by_turn():
    """A machine that halves its speed midway changes nothing."""
    figure = lines.ratio("x", [2.0, 4.0, 1.0, 2.0], [1.0, 2.0, 0.5, 1.0])
    assert (figure.value, figure.quartiles) == (2.0, (2.0, 2.0))
    with pytest.raises(ValueError, match="3 and 2 turns"):
        lines.ratio("x", [1.0, 2.0, 3.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("value", "quartiles", "aim", "met"),
    [
        (0.9, (0.85, 0.96), Aim(0.95), True),  # the interval reaches it
        (0.9, (0.85, 0.94), Aim(0.95), False),
        (1.2, (1.05, 1.3), Aim(1.1, at_least=False), True),
        (1.2, (1.15, 1.3), Aim(1.1, at_least=False), False),
        (2.0, None, Aim(2.0), True),  # measured once
        (9.0, None, None, None),
    ],
)
def test_aim_is_met_if_the_interval_reaches_it(value, quartiles, aim, met):
    assert lines.is_met(Figure("x", value, "ratio", quartiles, aim)) is met


def test_losses_agree_within_a_share():
    assert lines.losses_agree(2.0, 2.01, tolerance=0.01)
    assert not lines.losses_agree(2.0, 2.1, tolerance=0.01)
    assert not lines.losses_agree(2.0, float("nan"), tolerance=0.01)


@pytest.fixture
def line():
    figure = Figure("speed", 1 / 3, "ratio", (0.25, 0.5), Aim(0.3), {"our_loss": 2.0, "turns": 4})
    return lines.as_line(figure, suite="peers", argv=["--suite=peers", "--only=a b"])


def test_line_says_how_to_repeat_it(line, tmp_path):
    lines.append(tmp_path / "results.jsonl", line)
    (read,) = lines.read(tmp_path / "results.jsonl")
    assert read == json.loads(json.dumps(line))
    assert read["command"] == "python -m experiments.benchmark --suite=peers '--only=a b'"
    assert read["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert read["our_loss"] == 2.0
    assert read["met"] is True
    assert {"date", "commit", "versions", "machine"} <= set(read)
    assert lines.read(tmp_path / "missing.jsonl") == []


def test_line_names_no_folder_of_the_machine():
    argv = ["--dataset=/a/b/rows", "--pythons=torch=/c/python", "--only=x"]
    named = lines.as_line(Figure("x", 1.0, "ratio"), suite="peers", argv=argv)["command"]
    assert "'--dataset=<rows>' '--pythons=<python>' --only=x" in named


def test_table_keeps_the_latest_of_each_figure(line):
    other = {**line, "figure": "size", "value": 2.5e6, "unit": "bytes", "quartiles": None}
    newer = {**line, "value": 1234.5, "met": False}
    text = table.report([line, {**other, "aim": None, "met": None}, newer])
    assert "| size | 2.5 MB |  |  |  |" in text
    assert "| speed | 1,234 | 0.25 to 0.5 | ≥ 0.3 | no |" in text
    assert "0.333" not in text
    assert text.count("`python -m experiments.benchmark --suite=peers '--only=a b'`") == 1


def test_committed_lines_make_a_table():
    """The page's block, where there is one, is what the committed lines give."""
    report = table.report(lines.read(lines.RESULTS))
    block = re.search(
        r"<!-- benchmark -->\n(.*?)\n<!-- end -->",
        (ROOT / "docs" / "costs.md").read_text(),
        re.DOTALL,
    )
    assert block is None or block[1].strip() == report.strip()


@pytest.mark.heavy
def test_peer_that_cannot_be_installed_is_skipped_with_a_remedy(tmp_path):
    missing = environments.Environment("peer", (str(tmp_path / "no-such-package"),))
    with pytest.raises(environments.Skipped, match=r"--pythons=peer=<path>"):
        environments.interpreter(missing, tmp_path / "cache")
    assert not (tmp_path / "cache" / "peer").exists()
    given = environments.interpreter(missing, tmp_path, given={"peer": "/a/python"})
    assert given == Path("/a/python")


def test_environment_is_made_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(environments, "_call", lambda *command: calls.append(command))
    wanted = environments.Environment("peer", ("a", "b"))
    (tmp_path / "peer").mkdir()
    monkeypatch.setattr(environments.shutil, "rmtree", lambda *_, **__: None)
    for _ in range(2):
        assert environments.interpreter(wanted, tmp_path).parts[-3:-2] == ("peer",)
    assert len(calls) == 2  # venv and pip
    environments.interpreter(wanted._replace(requirements=("a", "c")), tmp_path)
    assert len(calls) == 4


SIDE = """
import sys
sys.path.insert(0, {folder!r})
import channel
out = channel.open_channel()
print("noise")
count = 0
def play(request):
    global count
    count += request["by"]
    if count > 5:
        raise SystemExit("too many")
    return {{"count": count}}
channel.serve(out, play)
"""


def test_sides_take_turns_and_say_why_they_end():
    code = SIDE.format(folder=str(processes.SIDES))
    command = [sys.executable, "-c", code]
    with processes.side("one", command) as one, processes.side("two", command) as two:
        answers = processes.take_turns([one, two], 2, warm_up=1, by=1)
        assert [[a["count"] for a in side] for side in answers] == [[2, 3], [2, 3]]
        assert all(a["seconds"] >= 0 for side in answers for a in side)
        with pytest.raises(processes.SideError, match=r"(?s)one ended with code 1.*too many"):
            processes.play(one, by=9)


@pytest.mark.parametrize(
    "argv",
    [["--suite=nothing"], ["--pythons=torch"], ["--cores=1"], ["word"], ["--turns=0"]],
)
def test_bad_flags_are_refused(argv, capsys):
    assert benchmark.main(["benchmark", "--table", *argv]) == 2
    assert "error: " in capsys.readouterr().err


def test_every_flag_reaches_the_settings():
    options = benchmark.define()
    options(["benchmark", "--turns=3", "--pythons=torch=/a/b=c,x=/y", "--cores=1,0", "--tiny"])
    settings = benchmark.read_settings(options)
    assert settings.pythons == {"torch": "/a/b=c", "x": "/y"}
    assert (settings.turns, settings.cores, settings.tiny) == (3, ("1", "0"), True)
    assert set(Settings._fields) <= set(options)


def test_only_chooses_by_name():
    named = {"a b": 1, "b c": 2}
    assert dict(select(named, Settings(only="^b"))) == {"b c": 2}
    assert dict(select(named, Settings())) == named


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    model = lm_job.random_model(folder / "model", TINY)
    job = lm_job.Job(
        model, length=6, num_clients=4, cohort_size=2, local_steps=2, batch_size=3, rank=2, rounds=2
    )
    lm_job.write_job(folder, job)
    return folder, job


def test_other_side_gets_the_tokens_of_ours(job):
    """Per client and step the same rows, in one order, and the same weights."""
    folder, job = job
    clients, _ = lm_job.data_of(job, vocab_size=TINY["vocab_size"])
    examples = np.load(folder / "round-1.npz")
    ids = lm_job.draw(lm_job.sampler_of(job), 4, seed=0, round=1)
    visits = [clients.visit(i, data_rng(0, 1, i)) for i in ids.tolist()]
    whole = np.stack([visit.batches["tokens"] for visit in visits])
    assert examples["tokens"].reshape(whole.shape).tolist() == whole.tolist()
    assert examples["client"].tolist() == [0] * 6 + [1] * 6
    assert examples["step"].tolist() == [0, 0, 0, 1, 1, 1] * 2
    assert examples["weight"].tolist() == [float(visit.num_tokens) for visit in visits]
    assert {"adapter", "job.json", "heldout.npz"} <= {path.name for path in folder.iterdir()}
    assert lm_job.read_job(folder)._replace(model=job.model) == job


def test_packed_rows_come_apart_into_the_same_examples():
    """Packing changes where examples stand, not which tokens and losses a client has."""
    table_of = lambda: lm_job.random_table(
        lm_job.Job("x", length=5, num_clients=2, local_steps=2, batch_size=2), vocab_size=9
    )
    partition = lm_job.data.Partition(np.array([0, 4]), np.arange(4))
    make = lambda **options: TokenClients(
        table_of(), partition, batch_size=2, local_epochs=1, **options
    )
    found = []
    for clients in (make(), make(pack_length=10)):
        examples = lm_job.examples_of([clients.visit(0, data_rng(0, 0, 0))])
        ends = np.cumsum(examples["length"])
        split = np.split(examples["tokens"], ends[:-1])
        found.append(sorted(row.tolist() for row in split))
        assert examples["weight"] == [4 * 4]
    assert found[0] == found[1]


def test_logistic_gradient_is_the_slope_of_its_loss():
    (client,) = logistic.make_clients(1, features=3, classes=2, sizes=[7])
    w = np.random.default_rng(0).normal(size=(3, 2))
    slope = logistic.gradient(w, client["x"], client["y"])
    step = np.zeros_like(w)
    step[1, 0] = 1e-4
    rise = logistic.mean_loss(w + step, [client]) - logistic.mean_loss(w - step, [client])
    assert rise / 2e-4 == pytest.approx(slope[1, 0], abs=1e-5)


def test_sides_import_nothing_of_ours():
    """They run in environments that do not have it."""
    for name in ("channel", "logistic", "torch_peft", "flower", "fed_jax"):
        source = (processes.SIDES / f"{name}.py").read_text()
        assert not re.search(
            r"^\s*(import|from) (fedjax_post|experiments|algorithms)", source, re.M
        )


@pytest.mark.heavy
def test_help_names_every_suite():
    command = [sys.executable, "-m", "experiments.benchmark", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    said = " ".join(said.split())
    assert all(f"{name}: {what}" in said for name, what in options.SUITES.items())


@pytest.mark.heavy
def test_a_profile_shares_a_step_among_all_parts():
    settings = Settings(model="builtin-small", tiny=True, turns=1, warm_up=1)
    found = {figure.name: figure.value for figure in profile.measure(settings)}
    names = [*profile.PARTS, "what the backward pass keeps, the optimizer, and others"]
    assert sorted(found) == sorted(f"share of {part}" for part in names)
    assert all(found[f"share of {part}"] > 0 for part in names if "operands" not in part)
