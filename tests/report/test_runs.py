"""A page about runs shows what their folders hold, and says what they lack."""

import json
import math
import re

import pytest

from fedjax_post import report
from fedjax_post.integrity import DamagedError, seal_file, seal_line
from fedjax_post.report.comparison import interval
from fedjax_post.report.curve import mean_series
from fedjax_post.report.markup import page
from fedjax_post.report.position.ladder import _used
from fedjax_post.report.runs import sections
from fedjax_post.report.runs.folders import read_experiments

HOLDINGS = {
    **{"partition": "natural", "by": "label", "groups": ["sad", "happy"], "clients": 2},
    **{"rows": 9, "names": ["ann", "bob"], "counts": [[4, 0], [2, 3]], "tokens": [40, 50]},
    "heldout": [1, 2],
}


def records_of(seed, *, rounds=4):
    each = {"cohort": 2, "dropped": [], "bytes_up": 100, "bytes_down": 200, "seconds": 0.5}
    return [
        {"round": n, **each, "loss": 2.0 + seed - 0.1 * n, "aggregation_error": 0.1 * (1 + seed)}
        | ({"eval_loss": 1.5 + seed, "eval_exact_match": 0.25} if n % 2 else {})
        for n in range(rounds)
    ]


def summary_of(method, seed):
    spread = {"mean_by_clients": 1.0, "mean_by_examples": 1.1, "worst_tenth": 1.7}
    spread |= {"variance": 0.2, "jain": 0.9, "clients": 2, "unscored": 0}
    return {
        **{"algorithm": method, "baseline": "none", "seed": seed, "rounds": 4},
        **{"model": "tiny", "dataset": "rows", "device": "1 x cpu", "commit": "abc123"},
        **{"versions": {"jax": "0.1"}, "command": f"train --seed={seed}", "warnings": []},
        "settings": {"method.name": method, "training.rounds": 4},
        "base": {"loss": 3.0, "exact_match": 0.0},
        "final": {"loss": 1.0 + seed, "exact_match": 0.5, "per_task": {"sort": {"loss": 0.7}}},
        "clients": {"shared": {"rows": "own", "clients": 2, "scores": {"loss": spread}}},
        **{"bytes_up": 400, "bytes_down": 800, "bytes_up_per_client": 50},
        **{"bytes_down_per_client": 100, "tokens_per_second": 123.0, "train_seconds": 2.0},
        "memory": {"host_peak": 3_000_000, "device_peak": None},
        "disclosure": {"private_tokens": 77, "serving_discloses": False},
        "privacy": {"epsilon": 4.25, "delta": 1e-5},
        **{"secure_sum": None, "heldout_examples": 3, "heldout_digest": f"d{seed}"},
    }


def write_run(folder, method="fed_avg", seed=0, *, ended=True):
    folder.mkdir(parents=True)
    spec = {"method": {"name": method, "baseline": "none"}, "seed": seed}
    (folder / "spec.json").write_text(seal_file(spec))
    (folder / "records.jsonl").write_text("".join(map(seal_line, records_of(seed))))
    if ended:
        lines = [{"table": "shared", "client": c, "rows": "own", "loss": 1.0} for c in "ab"]
        (folder / "clients.jsonl").write_text("".join(map(seal_line, lines)))
        (folder / "summary.json").write_text(seal_file(summary_of(method, seed)))
        (folder / "holdings.json").write_text(seal_file(HOLDINGS))
    return folder


def text_of(page):
    """The page without its pictures."""
    return re.sub(r"data:image/png;base64,[^\"]*", "", page.read_text())


def test_the_page_needs_nothing_outside_itself(tmp_path):
    page = report.write([write_run(tmp_path / "run")])
    assert page == tmp_path / "run" / "report.html"
    text = page.read_text()
    sources = re.findall(r'src="(.{22})', text)
    assert len(sources) == 5  # curves, utility, holdings, clients, telemetry
    assert set(sources) == {"data:image/png;base64,"}
    assert all(re.findall(r'<img alt="([^"]+)"', text))
    assert not re.search(r"https?://|<script|<link|url\(", text)


def test_every_part_of_a_run_is_shown(tmp_path):
    run = write_run(tmp_path / "run")
    attack = {"attack": "inversion", "recovered": 0.375, "command": ["attack", "a run"]}
    (run / "attacks.jsonl").write_text(seal_line(attack))
    text = text_of(report.write([run]))
    for part in (
        *("3.000 → 1.000", "0.0% → 50.0 %", "0.700", "400 B", "50 B", "3 MB", "123"),
        *("ann", "happy", "2 clients, on their own held-out rows", "0.9", "4.25", "1e-05"),
        *(
            "private tokens",
            "77",
            "inversion",
            "0.375",
            "attack &#x27;a run&#x27;",
            "train --seed=0",
            "jax 0.1",
            "abc123",
        ),
    ):
        assert part in text, part
    assert "None." in text  # no file is missing
    assert "Missing: secure sums" in text


def test_what_a_run_has_not_written_is_said_to_be_missing(tmp_path):
    text = text_of(report.write([write_run(tmp_path / "run", ended=False)]))
    for what in ("scores, since no run has ended", "who holds what", "scores by client"):
        assert f"Missing: {what}" in text
    for what in ("epsilon", "disclosure", "attacks", "commands and versions", "bytes"):
        assert f"Missing: {what}" in text
    for file in ("summary.json", "holdings.json", "clients.jsonl"):
        assert f"fed_avg, seed 0: {file}: " in text
    assert "1 run, 0 of them ended" in text


def test_runs_that_differ_in_their_seed_are_one_experiment(tmp_path):
    runs = [write_run(tmp_path / f"run-{seed}", seed=seed) for seed in (0, 1)]
    (one,) = read_experiments(runs)
    assert list(one.runs) == [0, 1]
    mean, half = interval([1.0, 2.0])
    _, table = sections.scores([one])
    assert table.rows[0][:3] == ["fed_avg", "0, 1", f"3.000 → {mean:.3f} ± {half:.3f}"]


def test_a_comparison_is_shown_as_its_runs_are(tmp_path):
    methods = ("scaffold", "fed_avg")
    runs = [
        write_run(tmp_path / "compared" / method / f"seed-{seed}", method, seed)
        for method in methods
        for seed in (0, 1)
    ]
    rows = {"command": "compare", "rows": [{"algorithm": method} for method in methods]}
    (tmp_path / "compared" / "comparison.json").write_text(seal_file(rows))
    whole = read_experiments([tmp_path / "compared"])
    assert whole == read_experiments(runs)
    assert [one.label for one in whole] == ["scaffold", "fed_avg"]  # in its order
    assert [list(one.runs) for one in whole] == [[0, 1], [0, 1]]


def test_experiments_of_one_method_are_told_apart_by_their_settings(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    for run, rate in zip(runs, (0.1, 0.3), strict=True):
        spec = {"method": {"name": "fed_avg", "client_lr": rate}, "seed": 0}
        (run / "spec.json").write_text(seal_file(spec))
    labels = [one.label for one in read_experiments(runs)]
    assert labels == ["fed_avg:client_lr=0.1", "fed_avg:client_lr=0.3"]


def test_one_seed_twice_is_refused(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    with pytest.raises(ValueError, match=r"b and .*a are the same experiment with the same seed"):
        report.write(runs, tmp_path / "page.html")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="contains neither a run nor a comparison"):
        report.write([tmp_path])


def test_a_changed_file_is_named(tmp_path):
    run = write_run(tmp_path / "run")
    text = (run / "summary.json").read_text()
    (run / "summary.json").write_text(text.replace("4.25", "0.25"))
    with pytest.raises(DamagedError, match=r"summary.json is damaged"):
        report.write([run])


def test_curves_are_means_at_the_rounds_that_all_seeds_have():
    seeds = [records_of(0), records_of(1, rounds=3)]
    rounds, means, halves = mean_series(seeds, "loss")
    assert rounds == [1, 2, 3]
    for number, mean, half in zip(rounds, means, halves, strict=True):
        values = [records[number - 1]["loss"] for records in seeds]
        assert (mean, half) == interval(values)
    alone = mean_series(seeds[:1], "eval_loss")
    assert alone[:2] == ([2, 4], [1.5, 1.5])
    assert all(map(math.isnan, alone[2]))


def test_text_of_a_run_cannot_change_the_page(tmp_path):
    run = write_run(tmp_path / "run")
    summary = json.loads(seal_file(summary_of("<script>alert(1)</script>", 0)))
    (run / "summary.json").write_text(
        seal_file({k: v for k, v in summary.items() if k != "sha256"})
    )
    blocks = sections.scores(read_experiments([run]))
    text = page("<b>", blocks, tmp_path, marked={})
    assert "<script" not in text
    assert "<b>" not in text


def test_what_uses_have_shown_stands_beside_the_run(tmp_path):
    run = write_run(tmp_path / "run")
    entry = {"party": "provider", "outside": True, "private_tokens": 4321, "unique_tokens": 5}
    entry |= {"queries": 7, "cost": 0.5}
    assert "In use" not in text_of(report.write([run]))
    lines = [entry | {"purpose": purpose} for purpose in ("training", "use")]
    (run / "disclosure.jsonl").write_text("".join(map(seal_line, lines)))
    text = text_of(report.write([run]))
    assert "In use, since the runs ended" in text
    assert text.count("4,321") == 1
    assert _used(run) == {"queries": 7, "private_tokens": 4321}
    assert _used(tmp_path) == {}
