"""Reports are made from record files alone."""

import subprocess
import sys

import pytest

from fedjax_post.integrity import seal_line
from fedjax_post.report import comparison
from fedjax_post.report.comparison import student_t
from fedjax_post.report.curve import draw_curve, panels_of
from fedjax_post.report.drawing import add_legend, colour, new_panels
from fedjax_post.report.markup import Table, page
from fedjax_post.report.records import read_records, series
from fedjax_post.report.scatter import draw_comparison
from fedjax_post.report.table import format_bytes, summary_table

RECORDS = [
    {"round": 0, "loss": 2.0},
    {"round": 1, "loss": None, "eval_loss": 1.5, "eval_exact_match": 0.1},
    {"round": 2, "loss": 1.0},
]
SUMMARY = {
    "base": {"loss": 2.0, "exact_match": 0.1, "per_task": {"sort": {"loss": 2, "exact_match": 0}}},
    "final": {
        "loss": 1.0,
        "exact_match": 0.75,
        "per_task": {"sort": {"loss": 1, "exact_match": 1}},
    },
    "bytes_up": 4000,
    "bytes_down": 2_000_000,
    "bytes_up_per_client": 1000,
    "bytes_down_per_client": 500_000,
    "visits": 4,
    "dropped_visits": 1,
    "tokens_per_second": 12345.6,
    "seconds": 30.4,
    "train_seconds": 20.0,
    "rounds": 3,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "records.jsonl").write_text("".join(map(seal_line, RECORDS)))
    return tmp_path


def test_the_picture_needs_only_the_records(folder):
    path = draw_curve(folder)
    assert path == folder / "learning_curve.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in folder.iterdir()) == ["learning_curve.png", "records.jsonl"]


@pytest.mark.parametrize(
    ("record", "labels"),
    [
        ({"loss": 1.0, "eval_loss": 1.0}, ["loss, nats per token"]),
        ({"loss": 1.0, "accuracy": 0.5, "eval_loss": 1.0}, ["loss, nats per token"]),
        (
            {"loss": 1.0, "accuracy": 0.5, "queries": 8.0, "eval_loss": 1.0},
            ["loss per question", "loss, nats per token", "questions right, %"],
        ),
        (
            {"loss": 1.0, "accuracy": 0.5, "eval_loss": 1.0, "eval_preference": 0.5},
            ["loss, nats per pair", "loss, nats per token", "pairs preferred, %"],
        ),
        (
            {"loss": 0.0, "reward": 0.5, "eval_loss": 1.0, "eval_exact_match": 0.5},
            ["mean reward", "loss, nats per token", "exact match, %"],
        ),
        ({"loss": 0.0, "reward": 0.5}, ["mean reward"]),
    ],
)
def test_an_axis_says_what_is_drawn_on_it(record, labels):
    records = [{"round": 0, **record}]
    panels = panels_of(records)
    assert [panel.label for panel in panels] == labels
    held = [panel for panel in panels if panel.heldout == "eval_loss"]
    assert all(panel.training in (None, "loss") for panel in held)


def test_methods_of_a_comparison_have_colours_of_their_own():
    for count in (1, 10, 11, 40):
        assert len({colour(number, count) for number in range(count)}) == count


@pytest.mark.parametrize("letters", [3, 30, 90])
def test_a_legend_is_no_wider_than_its_picture(letters):
    figure, (axes,) = new_panels(1)
    labels = [f"{n} " + " ".join(["many"] * (letters // 5)) for n in range(4)]
    height = figure.get_figheight()
    legend = add_legend(figure, axes.plot([[0] * 4]), labels)
    assert legend.get_window_extent().width <= figure.bbox.width
    assert len(figure.legends) == 1
    assert figure.get_figheight() > height


def test_plots_are_two_in_a_row():
    for count in (1, 2, 3, 5):
        figure, plots = new_panels(count)
        assert len(plots) == count == sum(axes.get_visible() for axes in figure.axes)
        assert figure.get_figwidth() <= 2 * 4.4


def test_only_tables_that_are_wider_than_a_phone_become_cards(tmp_path):
    narrow, wide = Table(("client", "rows"), [("7", "389")]), Table(("a", "b"), [("x" * 50, "")])
    text = page("t", [narrow, wide], tmp_path, marked={})
    assert text.count("<table>") == 1
    assert text.count('<table class="wide">') == 1
    assert ".wide td:empty { display: none; }" in text


def test_series_leave_out_rounds_without_a_value():
    assert series(RECORDS, "loss") == ([1, 3], [2.0, 1.0])
    assert series(RECORDS, "eval_loss") == ([2], [1.5])
    assert series(RECORDS, "absent") == ([], [])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"round"', "is not JSON"),
        (b"[" * 50_000, "is not JSON"),
        (b"[1]", "is not a JSON object but list"),
        (b'{"round": 3}', "has no checksum"),
        (seal_line({"round": 3}).replace("3", "4", 1).encode(), "is damaged: its checksum is"),
    ],
    ids=["half", "deep", "list", "bare", "changed"],
)
def test_a_broken_line_is_named(folder, line, said):
    with open(folder / "records.jsonl", "ab") as file:
        file.write(line)
    with pytest.raises(ValueError, match=f"records.jsonl, line 4, {said}"):
        read_records(folder)


def test_records_that_are_no_text_are_refused(folder):
    (folder / "records.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"records.jsonl is damaged: it is not text at byte 0"):
        read_records(folder)


def test_the_table_shows_every_number_of_the_summary():
    shown = summary_table(SUMMARY, "runs/x").splitlines()
    assert shown[2].split() == ["all", "2.000", "1.000", "10.0%", "75.0%"]
    assert shown[3].split() == ["sort", "2.000", "1.000", "0.0%", "100.0%"]
    text = "\n".join(shown)
    for part in ("1,000 per client and round, 4,000 in all (4 kB)", "1 of 4 visits", "12,346"):
        assert part in text
    assert shown[-1].split() == ["results", "runs/x"]


def test_ranks_are_shown_beside_exact_match_and_what_they_leave_out_is_said():
    scores = {"loss": 1.0, "exact_match": 0.1, "accuracy": 0.8, "accuracy_pmi": 0.7}
    tasks = {"cut": {"loss": 1.0}}  # no row of this task can be compared or ranked
    summary = SUMMARY | dict.fromkeys(("base", "final"), scores | {"per_task": tasks})
    shown = summary_table(summary | {"left_out": {"accuracy": 3}}, "runs/x").splitlines()
    assert shown[2].split() == [
        "all",
        "1.000",
        "1.000",
        *["10.0%"] * 2,
        *["80.0%"] * 2,
        *["70.0%"] * 2,
    ]
    assert shown[3].split() == ["cut", "1.000", "1.000", *["-"] * 6]
    assert "left out   3 rows from accuracy; cut, too long or without a label" in shown


def test_ranks_that_a_host_leaves_open_are_said():
    open_ranks = {"accuracy": 0.5, "accuracy_undecided": 0.25, "accuracy_pmi_undecided": 0.0}
    shown = summary_table(SUMMARY | {"final": SUMMARY["final"] | open_ranks}, "runs/x")
    assert "undecided  25.0% of rows by accuracy: labels are not among the tokens" in shown
    assert "undecided" not in summary_table(SUMMARY, "runs/x")


def run_with(**scores):
    return comparison.RunScores(scores, 2000, 1000, 3.0, {})


def test_a_model_that_only_answers_is_compared_by_what_it_has(tmp_path):
    tuned, asked = run_with(loss=0.5, exact_match=0.75, accuracy=0.8), run_with(exact_match=0.5)
    assert comparison.describe(asked) == "exact match 50.0%; 2 kB up and 1 kB down; 3 s of rounds"
    for pair in ({"lora": tuned, "host": asked}, {"host": asked, "lora": tuned}):
        rows = comparison.rows_of({name: {0: run} for name, run in pair.items()})
        lines = comparison.table(rows).splitlines()
        assert "exact match" in lines[0]
        assert [line.split()[1] for line in lines[2:]] == ["lora", "host"]
        second = next(line for line in lines if line.split()[1] == rows[1].label)
        assert second.split("|")[3].strip() == "-"  # one of them has no loss
        assert draw_comparison(rows, tmp_path / "a.png")
    rows = comparison.rows_of({"lora": {0: run_with(loss=0.5)}, "host": {0: asked}})
    assert comparison.table(rows)
    assert not draw_comparison(rows, tmp_path / "b.png")  # there is no axis that suits both


def test_a_reference_point_has_no_bytes_to_show():
    assert "bytes" not in summary_table(SUMMARY | {"bytes_up": None}, "runs/x")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (9.8e12, "9.8 TB")],
)
def test_bytes_are_shown_to_three_digits(count, text):
    assert format_bytes(count) == text


def test_reports_import_no_jax():
    """The package's own face imports jax, so the rooms are loaded without it."""
    code = (
        "import sys, types; p = types.ModuleType('fedjax_post'); p.__path__ = ['fedjax_post'];"
        "sys.modules['fedjax_post'] = p; from fedjax_post.report import comparison, curve;"
        "print('jax' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042)]
)
def test_students_t_is_that_of_the_tables(freedom, expected):
    assert student_t(freedom) == pytest.approx(expected, abs=1e-3)
