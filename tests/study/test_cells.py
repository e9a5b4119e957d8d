"""Runs that several processes share: none is run twice, and none is lost."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedjax_post.integrity import seal_file
from fedjax_post.study import Adapter, Rung, Spec, cells, compare, folder, trained
from fedjax_post.study.files import write_spec
from fedjax_post.study.job import check_same
from fedjax_post.study.ladder import plan_cells

SPEC = Spec(method="fed_avg")


@pytest.fixture
def ran(monkeypatch):
    """The folders whose runs this process has made; a run is nothing but its summary."""
    found = []

    def carry_out(directory):
        assert not (directory / "summary.json").exists()
        found.append(directory.name)
        finish(directory)

    monkeypatch.setattr(cells, "prepare", lambda spec, *, directory, **given: directory)
    monkeypatch.setattr(cells, "carry_out", carry_out)
    monkeypatch.setattr(cells.comparison, "read_run", lambda directory: directory)
    monkeypatch.setattr(cells.comparison, "describe", str)
    monkeypatch.setattr(cells, "_PAUSE", 0.01)
    return found


def finish(directory):
    (directory / "summary.json").write_text(seal_file({"rounds": 1}))


def begin(directory, spec):
    directory.mkdir(parents=True, exist_ok=True)
    write_spec(directory / folder.SPEC, spec)


def planned(tmp_path):
    return [cells.Cell(name, SPEC, tmp_path / name) for name in "abc"]


def carry_out_beside(tmp_path, *, until):
    """Carries out the cells while another process holds the first one; returns what was shown."""
    shown = []
    with ThreadPoolExecutor() as pool, folder.claim(tmp_path / "a") as mine:
        assert mine
        one = pool.submit(cells.carry_out_all, planned(tmp_path), show=shown.append)
        while not one.done() and not any("waiting" in line for line in shown):
            time.sleep(0.01)
        until()
    one.result()
    return shown


def test_a_claim_has_one_holder_and_ends_with_it(tmp_path):
    with folder.claim(tmp_path / "run") as first, folder.claim(tmp_path / "run") as second:
        assert (first, second) == (True, False)
    with folder.claim(tmp_path / "run") as again:
        assert again


def test_what_another_process_runs_is_left_to_it_and_waited_for(ran, tmp_path):
    shown = carry_out_beside(tmp_path, until=lambda: finish(tmp_path / "a"))
    assert ran == ["b", "c"]
    assert shown[0].startswith("1/3  b")
    assert "waiting for 1 runs of other processes" in shown


def test_what_another_process_leaves_unfinished_is_taken_over(ran, tmp_path):
    carry_out_beside(tmp_path, until=lambda: None)
    assert ran == ["b", "c", "a"]


def test_a_run_that_ends_between_two_looks_is_not_repeated(ran, tmp_path, monkeypatch):
    real = folder.claim

    def claim(directory):
        if directory.name == "b" and not (directory / "summary.json").exists():
            directory.mkdir()
            finish(directory)  # by another process
        return real(directory)

    monkeypatch.setattr(cells.folder, "claim", claim)
    cells.carry_out_all(planned(tmp_path), show=lambda line: None)
    assert ran == ["a", "c"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("scoring.examples", 8),
        ("scoring.exact_match", "off"),
        ("scoring.personal", True),
        ("scoring.clients", 2),
        ("execution.record_wire", "0:1"),
    ],
)
def test_a_run_that_is_scored_or_recorded_otherwise_is_refused(tmp_path, path, value):
    """It may be resumed alone, but its scores belong in no table with the others."""
    begin(tmp_path, SPEC)
    other = SPEC.put({path: value})
    check_same(other, tmp_path / folder.SPEC)
    with pytest.raises(ValueError, match=f"one: {path}={value} differs from the run in"):
        cells.check([cells.Cell("one", other, tmp_path)])


def test_who_is_recorded_must_be_equal_too(tmp_path):
    recorded = SPEC.put({"execution.record_wire": "0:1"})
    begin(tmp_path, recorded)
    other = recorded.put({"execution.record_wire_clients": (1,)})
    with pytest.raises(ValueError, match="record_wire_clients="):
        cells.check([cells.Cell("one", other, tmp_path)])


def test_how_a_run_is_computed_may_differ(tmp_path):
    begin(tmp_path, SPEC)
    other = SPEC.put({"execution.chunk_size": 1, "scoring.batch_size": 4})
    cells.check([cells.Cell("one", other, tmp_path)])


def test_seeds_may_be_added_with_the_same_settings_alone(tmp_path):
    """A report reads all seeds of a folder, also those that this call does not name."""
    begin(tmp_path / "fed_avg" / "seed-0", SPEC)
    added = SPEC.put({"method.client_lr": 0.3, "seed": 1})
    other = cells.Cell("fed_avg", added, tmp_path / "fed_avg" / "seed-1")
    with pytest.raises(ValueError, match=r"fed_avg: method.client_lr=0.3 differs .*seed-0, which"):
        cells.check([other])
    begin(other.directory, added.put({"method.client_lr": None}))
    cells.check(cells.plan_runs({"fed_avg": SPEC}, [1], tmp_path))


@pytest.mark.parametrize("is_done", [True, False])
def test_a_run_of_another_process_is_compared_before_it_is_accepted(ran, tmp_path, is_done):
    """Both processes have checked their cells while the folder was empty."""

    def until():
        begin(tmp_path / "a", SPEC.put({"scoring.examples": 8}))
        if is_done:
            finish(tmp_path / "a")

    with pytest.raises(ValueError, match="a: scoring.examples=0 differs from the run in"):
        carry_out_beside(tmp_path, until=until)
    assert ran == ["b", "c"]


def test_one_process_writes_the_files_of_a_comparison(ran, tmp_path, monkeypatch):
    """The others would write to the same temporary files."""
    begin(tmp_path / "a" / "seed-0", SPEC)
    finish(tmp_path / "a" / "seed-0")
    written, shown = [], []
    write = lambda directory, labels, *, command: written.append(labels)
    monkeypatch.setattr(cells.comparison, "write", write)
    call = lambda: compare({"a": SPEC}, seeds=[0], directory=tmp_path, show=shown.append)
    with folder.claim(tmp_path) as mine:
        assert mine
        assert call().labels == ("a",)
    assert written == []
    assert shown[-1] == f"another process writes the files, in {tmp_path}"
    call()
    assert written == [["a"]]


def test_labels_that_differ_in_unsafe_characters_alone_are_refused(tmp_path):
    words = ["name the kind:", "name the kind?"]
    labels = [f"adapter.prompt_text={text}" for text in words]
    specs = dict.fromkeys(labels, SPEC)
    with pytest.raises(ValueError, match="have the same folder") as refused:
        cells.plan_runs(specs, [0, 1], tmp_path)
    assert all(repr(label) in str(refused.value) for label in labels)


def test_other_bases_of_one_folder_are_refused(tmp_path):
    """A ladder names the folder of another base model after it, as a comparison does."""
    bases = {"org/model-a": ["lora"], "org-model/a": ["lora"]}
    rungs = {"lora": Rung(SPEC, "open")}
    with pytest.raises(ValueError, match="'lora, on org/model-a' and 'lora, on org-model/a'"):
        cells.check(plan_cells(rungs, [0], bases, tmp_path)[1:])


@pytest.mark.heavy
def test_a_base_is_read_once_for_all_checks_of_a_table(monkeypatch, tiny_folder, tmp_path):
    read = []
    load = trained.load_model

    def note(name, *, dtype, **given):
        read.append(dtype)
        return load(name, dtype=dtype, **given)

    monkeypatch.setattr(trained, "load_model", note)
    spec = Spec(model=str(tiny_folder), adapter=Adapter(rank=2))
    dtypes = ["float32", "float32", "bfloat16"]
    runs = [
        cells.Cell(f"run {place}", spec.put({"model.dtype": dtype}), tmp_path / str(place))
        for place, dtype in enumerate(dtypes)
    ]
    cells.check(runs)
    assert read == ["float32", "bfloat16"]
    cells.check(runs[:1])  # a later check reads anew: files may have changed
    assert read == ["float32", "bfloat16", "float32"]
