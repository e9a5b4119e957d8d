"""The dtype of a run: chosen by its machine, written down, and kept on any other machine."""

import pytest

from fedjax_post import study
from fedjax_post.hub import precision
from fedjax_post.hub.load import load_model, save_model
from fedjax_post.study import Adapter, Data, Model, Scoring, Spec, Training, cells, folder
from fedjax_post.study.evaluate import evaluate
from fedjax_post.study.files import write_spec
from fedjax_post.study.resolve import resolve
from fedjax_post.study.served import serve


@pytest.fixture
def narrow_folder(tiny_folder, tmp_path):
    """The tiny model in bfloat16, with its tokenizer."""
    folder = tmp_path / "narrow"
    folder.mkdir()
    for file in tiny_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    save_model(folder, load_model(tiny_folder), dtype="bfloat16")
    return folder


@pytest.fixture
def machine(monkeypatch):
    """Sets whether the processor multiplies bfloat16."""
    return lambda can: monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: can)


def spec_of(model, rows, **changes):
    base = Spec(
        model=Model(str(model)),
        data=Data(str(rows), heldout_fraction=0.25),
        adapter=Adapter(rank=2),
        training=Training(rounds=1, cohort_size=2, batch_size=2),
        scoring=Scoring(every=0),
    )
    return base.put(changes)


@pytest.mark.heavy
@pytest.mark.parametrize(("first", "other"), [(True, False), (False, True)])
def test_a_run_keeps_the_dtype_of_the_machine_that_began_it(
    first, other, machine, narrow_folder, tiny_rows, tmp_path
):
    spec, run = spec_of(narrow_folder, tiny_rows), tmp_path / "run"
    machine(first)
    job = study.prepare(spec, directory=run)
    study.carry_out(job, command=["test"])
    chosen = "mixed" if first else "float32"
    assert study.read(run).spec.model.dtype == chosen
    machine(other)
    again = study.prepare(spec.put({"training.rounds": 2}), directory=run, resume=True)
    assert again.rounds_done == 1
    assert again.parts.target.config.dtype == chosen
    assert serve(run).model.config.dtype == chosen
    with pytest.raises(ValueError, match="model.dtype=bfloat16 differs from the run"):
        study.prepare(spec.put({"model.dtype": "bfloat16"}), directory=run, resume=True)


def test_a_given_dtype_is_not_changed(machine, narrow_folder, tiny_rows):
    for can in (True, False):
        machine(can)
        for dtype in ("float32", "mixed"):
            spec = spec_of(narrow_folder, tiny_rows, **{"model.dtype": dtype})
            assert study.prepare(spec).parts.target.config.dtype == dtype


def begin(cell, dtype):
    cell.directory.mkdir(parents=True)
    write_spec(cell.directory / folder.SPEC, cell.spec.put({"model.dtype": dtype}))


def cells_of(model, rows, directory):
    """Runs of two methods, of which the first one has begun in "mixed"."""
    specs = {
        name: spec_of(model, rows, **{"method.name": name}) for name in ("fed_avg", "fed_adam")
    }
    planned = cells.plan_runs(specs, [0], directory)
    begin(planned[0], "mixed")
    return planned


def test_a_machine_that_would_choose_another_dtype_for_a_table_is_refused(
    machine, narrow_folder, tiny_rows, tmp_path
):
    planned = cells_of(narrow_folder, tiny_rows, tmp_path / "table")
    machine(True)
    cells.check_dtypes(planned)
    machine(False)
    with pytest.raises(
        ValueError, match=r"mixed in the run .* float32 in fed_adam on this machine"
    ):
        cells.check(planned)
    given = [cell._replace(spec=cell.spec.put({"model.dtype": "mixed"})) for cell in planned]
    cells.check(given)  # the remedy
    with pytest.raises(ValueError, match="give model.dtype=mixed"):  # a machine that joined later
        cells.carry_out_all(planned, show=lambda line: None)
    assert not (planned[1].directory / folder.SPEC).exists()


def test_two_machines_that_have_mixed_dtypes_are_found_out(narrow_folder, tiny_rows, tmp_path):
    planned = cells_of(narrow_folder, tiny_rows, tmp_path)
    begin(planned[1], "float32")
    with pytest.raises(ValueError, match="remove runs that have another one"):
        cells.check(planned)


def test_dtypes_of_other_models_and_of_trained_weights_do_not_count(
    machine, narrow_folder, tiny_folder, tiny_rows, tmp_path
):
    machine(True)
    planned = cells_of(narrow_folder, tiny_rows, tmp_path)
    for path, value in (("model.name", str(tiny_folder)), ("adapter.kind", "full")):
        other = planned[1]._replace(spec=planned[1].spec.put({path: value}))
        assert resolve(other.spec).model.dtype == "float32"
        cells.check_dtypes([planned[0], other])


def test_weights_that_are_trained_are_float32(machine, narrow_folder, tiny_rows):
    machine(True)
    spec = spec_of(narrow_folder, tiny_rows, **{"adapter.kind": "full"})
    assert resolve(spec).model.dtype == "float32"


def test_a_base_is_scored_in_the_dtype_in_which_it_would_be_trained(
    machine, narrow_folder, tiny_rows
):
    machine(True)
    assert serve(narrow_folder).model.config.dtype == "mixed"
    assert evaluate(narrow_folder, {"data.source": str(tiny_rows)}).table()


def test_a_host_in_this_process_computes_in_the_dtype_of_clients_that_hold_the_weights(
    machine, narrow_folder, tiny_rows
):
    machine(True)
    tuned = {"method.name": "host_tuning", "adapter.kind": "text_prompt"}
    tuned |= {"adapter.prompt_text": "the", "data.template": "{prompt}"}
    spec = spec_of(narrow_folder, tiny_rows, **tuned, **{"execution.executor": "host"})
    assert resolve(spec).model.dtype == "mixed"
    elsewhere = spec.put({"hosting.url": "http://localhost:9/v1"})
    assert resolve(elsewhere).model.dtype == "float32"  # which the host alone decides
