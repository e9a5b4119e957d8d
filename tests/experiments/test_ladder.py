"""Ladders: what a file may contain, which runs it gives, and the facts beside the runs."""

import json

import pytest

from fedjax_post.experiments import openness
from fedjax_post.experiments.flags.ladder import FOLDER, ladder_names, read_ladder
from fedjax_post.integrity import seal_file
from fedjax_post.report.position.ladder import TIERS
from fedjax_post.report.position.ladder import read_ladder as read_report
from fedjax_post.study import audits, cells, ladder_facts, leaks, longer
from fedjax_post.study.factories import declared_access
from fedjax_post.study.ladder import plan_cells

SMALL = """
[task]
title = "a small task"

[common]
model = "builtin-instruct"
dataset = "builtin-kinds"
template = '{instruction}\\n'
prompt_text = "name the kind of these words:"
labels = ["animal", "food", "tool", "garment", "vehicle"]
exact_match = "on"
num_clients = 4
cohort_size = 2
num_rounds = 1
local_steps = 1
batch_size = 4
eval_every = 0
eval_examples = 20
inference = "provider"

[cells.lora]
kind = "open"
algorithm = "fed_avg"
lora_rank = 2

[cells.manual_prompt]
kind = "baseline"
algorithm = "manual_prompt"
adapter = "text_prompt"
"""


@pytest.fixture
def own(tmp_path):
    def write(text):
        path = tmp_path / "own.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def refused(capsys, *given):
    assert openness.main(["openness", *given]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ladder_names())
def test_a_ladder_names_methods_that_there_are(name):
    ladder = read_ladder(name, {})
    assert {rung.spec.method.name for rung in ladder.rungs.values()} <= set(declared_access())
    assert {"lora", "soft_prompt", "manual_prompt"} <= set(ladder.rungs)
    rows = ladder_facts.cell_entries(ladder.rungs)
    tiers = {row["tier"] for row in rows}
    assert {"TEXT", "LOGITS", "EMBEDDINGS", "EMULATOR", "WEIGHTS", "GRADIENTS"} <= tiers
    assert tiers <= set(TIERS)
    assert {row["kind"] for row in rows} == {"open", "closed", "baseline", "control"}


@pytest.mark.parametrize("name", ladder_names())
def test_a_ladder_has_the_controls_of_its_methods(name):
    rungs = read_ladder(name, {}).rungs
    keys = [rung.control for rung in rungs.values()]
    assert keys.count("manual") == 9  # and the baseline, which makes ten
    proxies = {rung.spec.model.proxy for rung in rungs.values()} - {None}
    own = {rung.spec.model.name for rung in rungs.values() if rung.control == "proxy"}
    assert own == proxies
    for key in ("stand_in", "stand_in_untuned", "one_client", "central"):
        assert keys.count(key) == 1


def test_a_typed_model_does_not_replace_that_of_a_control():
    rungs = read_ladder("kinds", {"model.name": "builtin"}).rungs
    assert rungs["proxy_alone"].spec.model.name == "builtin-small"
    assert rungs["one_client"].spec.model.name == rungs["lora"].spec.model.name == "builtin"


def test_all_seeds_of_all_cells_are_runs_with_their_own_flags_last(own, tmp_path):
    text = SMALL + '[bases]\nnames = ["builtin"]\ncells = ["lora"]\n'
    ladder = read_ladder(own(text), {"training.rounds": 2})
    runs = plan_cells(ladder.rungs, [0, 3], ladder.extras.bases, tmp_path)
    folders = [str(run.directory.relative_to(tmp_path)) for run in runs]
    assert folders == [
        *("lora/seed-0", "manual_prompt/seed-0", "lora/seed-3", "manual_prompt/seed-3"),
        *("bases/builtin/lora/seed-0", "bases/builtin/lora/seed-3"),
    ]
    assert {run.spec.training.rounds for run in runs} == {2}  # what was typed counts
    assert runs[-1].label == "lora, on builtin"  # a label is checked once
    assert (runs[0].spec.seed, runs[0].spec.adapter.rank) == (0, 2)
    assert (runs[-1].spec.seed, runs[-1].spec.model.name) == (3, "builtin")


SEARCHED = """
[search]
seed = 9
trials = 2
[search.cells.lora]
client_lr = [0.1, 0.2]
lora_rank = [2, 4]
"""


def test_a_search_changes_what_it_names_and_nothing_that_was_typed(own):
    (settings,) = read_ladder(own(SMALL + SEARCHED), {}).extras.search.settings.values()
    assert len(settings) == 4
    assert settings[-1].told == {"client_lr": 0.2, "lora_rank": 4}
    assert settings[-1].changes == {"method.client_lr": 0.2, "adapter.rank": 4}
    assert settings[0].changes == {"method.client_lr": 0.1}  # the file's own rank
    typed = {"method.client_lr": 0.3}
    (settings,) = read_ladder(own(SMALL + SEARCHED), typed).extras.search.settings.values()
    assert settings[-1].changes == {"adapter.rank": 4}


TOGETHER = """
[search]
seed = 9
trials = 2
[[search.cells.lora]]
client_lr = 0.1
num_rounds = 3
[[search.cells.lora]]
client_lr = 0.2
num_rounds = 6
"""


@pytest.mark.parametrize("name", ladder_names())
def test_the_controls_of_our_ladders_are_searched_like_the_methods(name):
    ladder = read_ladder(name, {})
    searched = ladder.extras.search.settings
    nothing_to_search = {"manual_prompt", "in_context", "stand_in_untuned"}
    left = [
        cell
        for cell, rung in ladder.rungs.items()
        if cell not in searched and not {cell, rung.control} & {*nothing_to_search, "manual"}
    ]
    assert not searched or not left


def test_settings_may_change_together(own):
    (settings,) = read_ladder(own(SMALL + TOGETHER), {}).extras.search.settings.values()
    assert [one.changes for one in settings] == [
        {"method.client_lr": 0.1, "training.rounds": 3},
        {"method.client_lr": 0.2, "training.rounds": 6},
    ]


def test_a_cell_is_held_against_the_rows_of_those_that_have_run(own, tmp_path, capsys):
    done = tmp_path / "out" / "lora" / "seed-0"
    done.mkdir(parents=True)
    (done / "summary.json").write_text(seal_file({"heldout_digest": "of other rows"}))
    given = [f"--task={own(SMALL)}", f"--output_dir={tmp_path / 'out'}", "--only=manual_prompt"]
    error = refused(capsys, *given)
    assert "lora and manual_prompt would be scored on different held-out rows" in error


def test_cells_that_would_be_scored_on_different_rows_are_refused(own, capsys):
    """A prompt that is trained is no part of a row: other words make rows too long."""
    short = SMALL.replace("num_rounds = 1", "num_rounds = 1\nmax_length = 13")
    error = refused(capsys, f"--task={own(short)}", "--dry_run")
    assert "would be scored on different held-out rows" in error
    assert "raise max_length" in error


LONGER = """
[longer]
times = 10
cells = ["lora"]
"""


def test_longer_runs_have_more_rounds(own, tmp_path):
    text = SMALL.replace("lora_rank = 2", "lora_rank = 2\nnum_rounds = 3") + LONGER
    ladder = read_ladder(own(text), {})
    (run,) = longer.plan_cells(ladder.extras.longer, ladder.rungs, [4, 5], tmp_path)
    assert (run.spec.training.rounds, run.spec.seed) == (30, 4)
    assert run.directory == tmp_path / "longer" / "lora" / "seed-4"
    flags = "[longer.flags.lora]\nlocal_steps = 10\n"
    ladder = read_ladder(own(SMALL + LONGER + flags), {})  # a method of one round
    (run,) = longer.plan_cells(ladder.extras.longer, ladder.rungs, [4], tmp_path)
    assert (run.spec.training.rounds, run.spec.training.local_steps) == (1, 10)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[cells.a]\nalgorithm = 'fed_avg'\n", "has kind = None; give one of open, closed"),
        ("[cells]\n[extra]\n", "[extra] is unknown"),
        ("[task]\n", "[cells] is missing"),
        ("cells = [", "is not TOML"),
        (SMALL.replace('"fed_avg"', '"fedavg"'), "--algorithm=fedavg is no algorithm"),
        (
            SMALL.replace('"baseline"', '"control"'),
            "a control, and nothing else, names one of proxy",
        ),
        (SMALL + "control = 'proxy'\n", "manual_prompt has kind='baseline' and control='proxy'"),
        (SMALL + "nonsense = 1\n", "--nonsense is not a flag"),
        (SMALL.replace("[common]", "measure = 'loss'\n[common]"), "measure=loss must be one of"),
        (SMALL.replace("[common]", "budget = 0\n[common]"), "budget=0 must be at least 1 token"),
        (SMALL + SEARCHED.replace("9", "0"), "search.seed=0 is one of the seeds"),
        (SMALL + SEARCHED.replace("cells.lora", "cells.sgd"), "there is no [cells.sgd]"),
        (SMALL + SEARCHED.replace("[0.1, 0.2]", "0.1"), "give each flag a list of values"),
        (
            SMALL + "[attacks]\ncells = ['manual_prompt']\n",
            "attacks name manual_prompt, which is no",
        ),
        (SMALL + LONGER, "longer names lora, which has one round; state what it has more of"),
        (SMALL + LONGER.replace("10", "1"), "longer.times=1 must be at least 2"),
        (SMALL + LONGER.replace("lora", "manual_prompt"), "which is no open or closed method"),
        (
            SMALL + LONGER + "[longer.flags.b]\n",
            "longer names b, which is no open or closed method",
        ),
        (SMALL + "[longer]\n[longer.flags.lora]\n", "longer has flags for lora, which is none of"),
        (SMALL + "[longer]\ntime = 10\n", "time is no key of [longer]; did you mean times?"),
        (SMALL + "[longer]\ntimes = 'ten'\n", "longer.times='ten' must be a whole number"),
        (SMALL + "[longer]\ncells = 'lora'\n", "longer.cells='lora' must be a list, each item a"),
        (SMALL.replace("[common]", "titel = 'x'\n[common]"), "titel is no key of [task]"),
        (SMALL.replace("[common]", "gate = {best = 'lora'}\n[common]"), "gate: best is no part of"),
        (
            SMALL + "[drills]\ncells = ['lora']\ndrills = ['fire']\n",
            "drills=['fire']: give some of",
        ),
        (SMALL + "[drills]\nmeasure = 'accuracy'\n", "measure is no key of [drills]"),
        (SMALL + "[bases]\nnames = ['builtin']\n", "no method runs on the other base builtin"),
        (SMALL + "[bases]\ncells = ['lora']\n", "but no names of bases"),
        (SMALL + "[attacks]\nwires = {plain = {}}\n", "attacks have no cells, so that nothing is"),
        (SMALL + "[search]\ntrials = 2\n", "search.trials=2, but there are no settings to try"),
        (SMALL + "[attacks]\nattacks = ['guess']\n", "guess"),
        (SMALL.replace("cells.lora", 'cells."../../escaped"'), "cannot name a folder"),
        (SMALL.replace('"fed_avg"', '"os:getcwd"'), "names code, --algorithm=os:getcwd"),
    ],
)
def test_bad_files_are_refused_before_anything_runs(own, text, said, capsys, tmp_path):
    out = tmp_path / "out"
    assert said in refused(capsys, f"--task={own(text)}", f"--output_dir={out}")
    assert not out.exists()


@pytest.mark.heavy
def test_a_dry_run_checks_every_run_and_starts_none(own, tmp_path, capsys):
    given = [f"--task={own(SMALL)}", "--seeds=0,1", f"--output_dir={tmp_path / 'out'}"]
    assert openness.main(["openness", *given, "--dry_run"]) == 0
    assert "4 runs, without drills; all can start" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    bad = own(SMALL.replace("lora_rank = 2", "lora_rank = 2\nproxy_model = 'builtin-small'"))
    assert "has no proxy; leave it out" in refused(capsys, f"--task={bad}", "--dry_run")


@pytest.mark.heavy
def test_the_report_does_not_wait_for_attacks(own, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(leaks, "carry_out", fail)
    (tmp_path / "audit.json").write_text(seal_file({"seeds": [0]}))
    given = [f"--task={own(SMALL)}", "--seeds=0", f"--output_dir={tmp_path}"]
    assert openness.main(["openness", *given]) == 130
    assert "attacks" not in json.loads((tmp_path / "ladder.json").read_text())
    assert (tmp_path / "position.html").stat().st_size > 1000


@pytest.mark.heavy
def test_trials_are_checked_before_any_run(own, tmp_path, capsys):
    bad = TOGETHER.replace("num_rounds = 6", "cohort_size = 5")  # of 4 clients
    given = [f"--task={own(SMALL + bad)}", "--seeds=0", f"--output_dir={tmp_path / 'out'}"]
    for more in ([], ["--dry_run"]):
        assert "trial 2: " in refused(capsys, *given, *more)
    assert not (tmp_path / "out").exists()


@pytest.mark.heavy
def test_a_search_by_a_score_that_the_rows_lack_is_refused_before_any_run(own, tmp_path, capsys):
    text = SMALL.replace('exact_match = "on"', 'exact_match = "off"') + TOGETHER
    given = [f"--task={own(text)}", "--seeds=0", f"--output_dir={tmp_path / 'out'}"]
    for more in (["--dry_run"], []):
        error = refused(capsys, *given, *more)
        assert "trial 1: measure=exact_match: the held-out rows are not scored by it" in error
        assert "exact_match needs --exact_match=on" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.heavy
def test_a_dry_run_names_trials_off_the_budget(own, capsys):
    text = SMALL.replace("[common]", "budget = 700\n[common]") + TOGETHER
    assert openness.main(["openness", f"--task={own(text)}", "--dry_run"]) == 0
    told = capsys.readouterr().out.partition("trials off the budget:")[2].split()
    shares = [float(share) for share in told if share.replace(".", "").isdigit() and "." in share]
    assert shares[-1] == pytest.approx(2 * shares[0], rel=0.05)  # twice the rounds


def test_what_is_said_of_the_data_is_said_once(own, tmp_path, caplog):
    data = tmp_path / "rows.tsv"
    data.write_text("".join(f"word {n}\t{n % 2}\n" for n in range(40)))
    text = SMALL.replace('"builtin-kinds"', f'"{data}"').replace("{instruction}", "{text}")
    text = text.replace("[common]", '[common]\nprompt_column = "text"\nresponse_column = "label"')
    text = text.replace('["animal", "food", "tool", "garment", "vehicle"]', '["0", "1"]')
    runs = plan_cells(read_ladder(own(text), {}).rungs, [0], {}, tmp_path / "out")
    assert len(runs) == 2
    cells.check(runs)
    assert caplog.text.count("has no column names") == 1


def test_bad_flags_are_refused(capsys):
    assert f"there is no {FOLDER / 'nowhere.toml'}" in refused(capsys, "--task=nowhere")
    assert "--task exclude each other" in refused(capsys, "--task=kinds", "--passport=all")
    assert "must be distinct numbers" in refused(capsys, "--task=kinds", "--seeds=1,1")
    assert "--seeds=x must be whole numbers" in refused(capsys, "--task=kinds", "--seeds=x")


@pytest.mark.heavy
def test_a_ladder_ends_in_a_report_and_is_not_repeated(own, tmp_path, capsys):
    given = [f"--task={own(SMALL)}", "--seeds=0", f"--output_dir={tmp_path / 'out'}"]
    (tmp_path / "out").mkdir()
    audit = {"seeds": [0]}  # of an earlier call; tests/study/test_audits_of_ladders.py makes them
    (tmp_path / "out" / "audit.json").write_text(seal_file(audit))
    assert openness.main(["openness", *given]) == 0
    first = capsys.readouterr().out
    written = (tmp_path / "out" / "ladder.json").read_text()
    facts = json.loads(written)
    assert facts["chance"] == pytest.approx(0.2, abs=0.1)
    assert facts["gate"]["soft_prompt_share"] is None  # there is no such cell
    assert facts["audit"] == audit
    assert "manual_prompt" in first
    for name in ("position.html", "position.md"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    records = [path.stat().st_mtime_ns for path in tmp_path.rglob("records.jsonl")]
    assert openness.main(["openness", *given]) == 0
    assert "2 runs, 2 of them finished" in capsys.readouterr().out
    assert (tmp_path / "out" / "ladder.json").read_text() == written
    assert records == [path.stat().st_mtime_ns for path in tmp_path.rglob("records.jsonl")]


SMALLER = """
[cells.proxy_alone]
kind = "control"
control = "proxy"
algorithm = "fed_avg"
model = "builtin-small"
"""


@pytest.mark.heavy
def test_some_cells_can_have_more_seeds_than_others(own, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(audits, "read_or_make", lambda *given: {})
    out = tmp_path / "out"
    head, cells = SMALL.replace("num_rounds = 1", "num_rounds = 2").split("[cells.lora]")
    drills = "[drills]\ncells = ['lora']\ndrills = ['withdrawn']\n"
    given = [f"--task={own(head + SMALLER + '[cells.lora]' + cells + drills)}"]
    call = lambda *more: openness.main(["openness", *given, f"--output_dir={out}", *more])
    facts = lambda: json.loads((out / "ladder.json").read_text())
    assert call("--seeds=0") == 0
    first = facts()
    capsys.readouterr()
    assert call("--seeds=0,1", "--only=proxy_alone,lora") == 0
    assert "4 runs, 2 of them finished" in capsys.readouterr().out
    assert {cell.method: list(cell.runs) for cell in read_report(out).cells} == {
        "proxy_alone": [0, 1],
        "lora": [0, 1],
        "manual_prompt": [0],
    }
    assert facts()["drills"] == first["drills"]  # none was made or removed
    # They are of the ladder's base and of its first seed, whichever cells and seeds are asked for
    assert facts()["model"] == first["model"] == "builtin-instruct"
    assert facts()["chance"] == first["chance"]
    assert call("--seeds=1") == 0  # all drills are of all seeds, also of those that a call adds
    assert facts()["chance"] == first["chance"]
    assert [len(row["before"]) for row in facts()["drills"]] == [2] * len(first["drills"])


@pytest.mark.heavy
def test_only_the_cells_that_are_asked_for_are_checked_and_counted(own, capsys):
    text = SMALL + "[bases]\nnames = ['builtin']\ncells = ['lora', 'manual_prompt']\n"
    given = ["openness", f"--task={own(text)}", "--only=manual_prompt", "--dry_run"]
    assert openness.main(given) == 0
    told = capsys.readouterr().out
    assert "2 runs, without drills" in told
    assert "lora" not in told
    error = refused(capsys, f"--task={own(SMALL)}", "--only=lore", "--dry_run")
    assert "only: lore is no method of the ladder; did you mean lora?" in error
