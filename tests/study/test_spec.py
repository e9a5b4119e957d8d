"""An experiment is a value: checked when it is made, written to one file, read back equal."""

import dataclasses
import json

import pytest

from fedjax_post.study.fields import meaning_of
from fedjax_post.study.files import (
    Missing,
    check_trusted,
    from_json,
    identity,
    load_code,
    read_spec,
    to_json,
    write_spec,
)
from fedjax_post.study.spec import (
    PATHS,
    SECTIONS,
    Adapter,
    Data,
    Hosting,
    Method,
    Model,
    Spec,
    Training,
)


def test_the_first_field_of_a_section_stands_for_it():
    assert Spec(model="builtin-small", data="rows.csv", method="scaffold") == Spec(
        model=Model("builtin-small"), data=Data("rows.csv"), method=Method("scaffold")
    )
    assert Spec().replace(method="scaffold").method == Method("scaffold")


def test_put_changes_fields_by_their_paths():
    spec = Spec().put({"training.rounds": 3, "method": "scaffold", "seed": 7})
    assert (spec.training.rounds, spec.method.name, spec.seed) == (3, "scaffold", 7)
    assert spec.at("training.rounds") == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Training(rounds=0), "rounds=0 must be at least 1"),
        (lambda: Training(rounds=1.5), "rounds=1.5 must be a whole number, not float"),
        (lambda: Training(rounds=True), "rounds=True must be a whole number, not bool"),
        (lambda: Adapter(client_ranks=(4, 0)), "client_ranks=0 must be at least 1"),
        (lambda: Adapter(alpha=float("nan")), "alpha=nan must be a finite number"),
        (lambda: Data(labels="yes"), "labels='yes' must be a list, each item a text, not str"),
        (lambda: Model(dtype="bfloat61"), "did you mean bfloat16?"),
        (lambda: Hosting(max_cost=0.0), "max_cost=0.0 must be greater than 0"),
        (lambda: Spec(seed="1"), "seed='1' must be a whole number, not str"),
        (lambda: Spec().put({"training.round": 1}), "did you mean training.rounds?"),
    ],
)
def test_a_wrong_value_is_refused_when_the_value_is_made(make, message):
    with pytest.raises(ValueError, match="must|did you mean") as raised:
        make()
    assert message in str(raised.value)


def test_whole_numbers_and_lists_are_brought_to_their_type():
    adapter = Adapter(alpha=8, client_ranks=[2, 4])
    assert type(adapter.alpha) is float
    assert adapter.client_ranks == (2, 4)


def test_every_field_says_what_it_is_and_has_a_flag_of_its_own():
    flags = [meaning_of(field).flag or field.name for field in PATHS.values()]
    assert len(set(flags)) == len(flags)
    for path, field in PATHS.items():
        assert meaning_of(field).help, path


def test_a_specification_is_read_back_equal(tmp_path):
    spec = Spec(
        data=Data("rows.csv", response_words={"0": "sad"}, labels=("a", "b")),
        method=Method("fed_prox", {"mu": 0.1}, uplink="top_k(0.01)"),
        training=Training(rounds=3),
        seed=5,
    )
    write_spec(tmp_path / "spec.json", spec)
    assert read_spec(tmp_path / "spec.json") == spec
    assert set(json.loads(to_json(spec))) == {"format", "version", *SECTIONS, "seed", "sha256"}


HEAD = '{"format": "fedjax_post experiment", '


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a specification"),
        ("{}", "is not a specification"),
        (HEAD + '"version": 9}', "has version 9"),
        (HEAD + '"version": 1, "trainin": {"rounds": 1}}', "training"),
        (HEAD + '"version": 1, "training": {"rounds": -1}}', "rounds=-1"),
        (HEAD + '"version": 1, "training": 3}', "training is no field"),
        (HEAD + '"version": 1, "seed": {"a": 1}}', "seed={'a': 1}"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_specification_is_refused_by_name(text, message):
    with pytest.raises(ValueError, match="spec.json") as raised:
        from_json(text, source="spec.json")
    assert message in str(raised.value)


def test_fields_that_a_file_lacks_have_their_defaults():
    assert from_json('{"format": "fedjax_post experiment", "version": 1}') == Spec()


def test_a_function_is_written_by_its_name_and_runs_only_if_it_is_trusted(tmp_path):
    path = tmp_path / "spec.json"
    write_spec(path, Spec(method=json.dumps))
    assert json.loads(path.read_text())["method"]["name"] == "json:dumps"
    spec = read_spec(path)
    with pytest.raises(ValueError, match="names code, method.name=json:dumps"):
        check_trusted(spec, {}, source=path)
    with pytest.raises(ValueError, match="names code, method.name=json:dumps"):
        check_trusted(spec, {"method.name": "another:one"}, source=path)
    check_trusted(spec, {}, source=path, trust_code=True)
    check_trusted(spec, {"method.name": "json:dumps"}, source=path)
    assert load_code(spec.method.name, field="method") is json.dumps
    assert read_spec(path, supplied={"method.name": json.dumps}).method.name is json.dumps


@pytest.mark.parametrize("name", ["ditto('os:getcwd')", "os:getcwd", "a.b.c:d"])
def test_code_is_found_wherever_a_text_names_it(name):
    with pytest.raises(ValueError, match="names code"):
        check_trusted(Spec(method=name), {}, source="a file")


def test_what_a_file_cannot_hold_has_to_be_supplied(tmp_path):
    path = tmp_path / "spec.json"
    inner = lambda loss_fn: loss_fn
    other = lambda loss_fn, more=1: more
    rows = [{"prompt": "a", "response": "b"}]
    write_spec(path, Spec(method=inner, data=rows))
    with pytest.raises(ValueError, match=r"cannot hold data.source: 1 rows, .*data=\.\.\."):
        read_spec(path)
    spec = read_spec(path, supplied={"method.name": inner, "data.source": rows})
    assert spec.method.name is inner
    with pytest.raises(ValueError, match="method.name = function .* was given"):
        read_spec(path, supplied={"method.name": other, "data.source": rows})
    with pytest.raises(ValueError, match="data.source = 1 rows"):
        read_spec(path, supplied={"method.name": inner, "data.source": [*rows, *rows]})
    assert isinstance(from_json(path.read_text()).method.name, Missing)


def test_identity_leaves_out_what_changes_no_result():
    spec = Spec().put({"scoring.every": 1, "execution.chunk_size": 4, "training.rounds": 7})
    assert identity(spec) == {"training.rounds": 7}


def test_specifications_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Spec().seed = 1
