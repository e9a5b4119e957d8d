"""Files of tasks are data: what is no task, or names code, is refused before a model is loaded."""

import json

import pytest

from fedjax_post import study
from fedjax_post.evaluate import tasks
from fedjax_post.integrity import read_lines
from fedjax_post.study import served

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.oracle

TASK = {
    "task": "animals",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "say {{word}}:",
    "doc_to_choice": ["cat", "dog"],
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 2.0},
}
ROWS = [{"word": word, "answer": i % 2} for i, word in enumerate(["one", "two", "six"])]
CODE = (
    "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nask = lambda row: row['word']"
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "code.py").write_text(CODE)
    return tmp_path


@pytest.fixture
def no_model(monkeypatch):
    def reached(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(served, "load_model", reached)


def write(folder, name="task.yaml", *, text="", **changes):
    """JSON is YAML too; `text` replaces the task's, unquoted."""
    task = {key: value for key, value in (TASK | changes).items() if value is not None}
    written = json.dumps(task)
    if text:
        written = json.dumps(task | {"doc_to_text": "TEXT"}).replace('"TEXT"', text)
    (folder / name).write_text(written)
    return str(folder / name)


def ask(folder, *names, **given):
    return study.evaluate_tasks("builtin-small", list(names), {"data.source": str(folder)}, **given)


REFUSED = {
    "function": ({"text": "!function code.ask"}, r"names code: !function \(.*with `trust_code`"),
    "python": ({"text": "!!python/name:os.system"}, r"names code: !!python/name:os.system"),
    "metric": ({"metric_list": [{"metric": "someone/metric"}]}, "names code: the metric someone/m"),
    "hub metric": (
        {"metric_list": [{"metric": "acc", "hf_evaluate": True}]},
        "names code: the metric acc, a program of the hub",
    ),
    "pickle": ({"dataset_path": "pandas"}, "dataset_path: pandas, which reads pickles"),
    "programs": ({"unsafe_code": True}, "programs that the model writes; it runs only with"),
    "template": (
        {"doc_to_text": "{{ ''.__class__.__mro__[1].__subclasses__() }}"},
        "is no task that lm-eval .* can load: SecurityError",
    ),
    "column": ({"doc_to_text": "{{wort}}"}, "can load: UndefinedError: 'wort' is undefined"),
    "field": ({"colour": 3}, "unexpected keyword argument 'colour'"),
    "group": ({"task": ["one", "two"]}, "is no task: .* in place of a group"),
    "samples": (
        {
            "output_type": "generate_until",
            "doc_to_choice": None,
            "metric_list": [{"metric": "exact_match"}],
            "generation_kwargs": {"until": ["."], "temperature": 0.7},
        },
        "tasks=animals: its answers are generated with temperature: 0.7, and only greedy",
    ),
    "images": ({"doc_to_image": "word"}, "asks about images or sounds"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_run_is_refused_before_a_model_is_loaded(case, folder, no_model):
    changes, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        ask(folder, write(folder, **changes))
    assert not (folder / "ran").exists()


def test_code_in_an_included_file_is_refused(folder, no_model):
    write(folder, "part.yaml", text="!function code.ask")
    (folder / "whole.yaml").write_text("include: part.yaml\ntask: other\n")
    with pytest.raises(ValueError, match=r"part\.yaml names code"):
        ask(folder, str(folder / "whole.yaml"))


def test_code_runs_if_it_is_trusted(folder):
    found = ask(folder, write(folder, text="!function code.ask"), trust_code=True)
    assert (folder / "ran").exists()
    assert found.record["tasks"]["animals"]["rows"] == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["no.yaml"], "tasks=no.yaml: there is no such file"),
        (["empty"], "the folder has no task's file"),
        ([], "tasks is empty; name a task of lm-eval"),
    ],
)
def test_files_that_are_not_there_are_refused(names, message, folder, no_model, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    with pytest.raises((ValueError, OSError), match=message):
        ask(folder, *names)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"neither a file nor a task of .*; did you mean arc_easy"):
        tasks._check_known("arc_esay", ["arc_easy", "hellaswag"])


def test_missing_data_are_said_to_be_missing(folder, no_model):
    (folder / "rows.jsonl").unlink()
    with pytest.raises(
        FileNotFoundError, match="rows.jsonl.*give the folder of its data as `data`"
    ):
        ask(folder, write(folder))
    with pytest.raises(OSError, match="task.yaml: .*its data are on the hub: run it once with net"):
        ask(folder, write(folder, dataset_path="org/set", dataset_kwargs=None))


def test_settings_out_of_range_are_refused(folder, no_model):
    with pytest.raises(ValueError, match="limit=0 must be at least 1"):
        ask(folder, write(folder), limit=0)


def test_a_row_that_does_not_fit_its_task_is_reported(folder):
    path = write(folder, doc_to_text="{{ {0: word}[answer] }}")
    with pytest.raises(ValueError, match="cannot be carried out: UndefinedError: .* no element 1"):
        ask(folder, path)


@pytest.mark.heavy
def test_a_run_keeps_the_scores_of_its_tasks(folder, tmp_path_factory):
    """One line for each call, with what a reader needs to repeat it; a base has no folder."""
    run = tmp_path_factory.mktemp("runs") / "run"
    spec = study.Spec(
        model=study.Model("builtin-small"),
        data=study.Data("builtin", num_clients=4),
        training=study.Training(rounds=1, cohort_size=2, local_steps=1, batch_size=2),
        scoring=study.Scoring(every=0, examples=4),
    )
    study.carry_out(study.prepare(spec, directory=run))
    changes = {"data.source": str(folder)}
    for limit in (None, 2):
        found = study.evaluate_tasks(run, [write(folder)], changes, limit=limit, num_fewshot=1)
    first, second = read_lines(run / "harness.jsonl")
    assert second["tasks"] == found.record["tasks"]
    assert [line["tasks"]["animals"]["rows"] for line in (first, second)] == [3, 2]
    told = first["tasks"]["animals"]
    assert (told["version"], told["num_fewshot"], list(told["scores"])) == (2.0, 1, ["acc"])
    assert first["seed"] == 1234
    assert first["versions"]["lm_eval"]
    assert "animals" in found.table()
    assert "first 2 rows" in found.table()
    with pytest.raises(FileExistsError, match=r"harness\.jsonl"):
        study.prepare(spec, directory=run)
