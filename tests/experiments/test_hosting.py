"""A key is sent only to a host that is named on this command line."""

import socket

import pytest

from fedjax_post import study
from fedjax_post.experiments import compare, drills, openness, sweep, train
from fedjax_post.experiments.flags import define_launch, parse
from fedjax_post.experiments.flags.ladder import read_ladder
from fedjax_post.study.files import write_spec

URL = "http://127.0.0.1:8080/v1"
OTHER = "https://collector.example/v1"


def parsed(*given):
    return parse(["train", *given], about="", own=[define_launch]).spec


def stored(folder, url):
    hosted = {"execution.executor": "host", "adapter.kind": "text_prompt", "hosting.url": url}
    write_spec(folder / "spec.json", study.Spec().put(hosted))


@pytest.fixture
def listener():
    """A host that must not hear anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_stranger_s_folder_gets_no_key(tmp_path, listener, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    stored(tmp_path, url)
    assert train.main(["train", "--resume", f"--output_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert f"names a host, --provider_url={url}" in error
    assert "give --provider_url again by hand" in error
    assert "sk-very" not in error
    with pytest.raises(ValueError, match="names a host"):
        study.read(tmp_path)
    assert study.read(tmp_path, url=url).spec.hosting.url == url


@pytest.mark.parametrize(
    "given",
    [
        ["--provider_url={url}"],
        ["-provider_url", "{url}"],
        ["--provider_url", "{url}", "--flagfile={file}"],
    ],
)
def test_what_is_typed_is_consent(tmp_path, given):
    file = tmp_path / "mine.flags"
    file.write_text("--num_rounds=3\n")
    given = [word.format(url=URL, file=file) for word in given]
    assert parsed(*given).hosting.url == URL


@pytest.mark.parametrize("typed", [[], [f"--provider_url={URL}"]])
@pytest.mark.parametrize("how", ["--flagfile={file}", "--flagfile {file}"])
def test_a_flag_file_names_no_host(tmp_path, typed, how):
    """Not one of its own, and not another one than was typed."""
    file = tmp_path / "theirs.flags"
    file.write_text(f"--provider_url={OTHER}\n")
    with pytest.raises(ValueError, match=f"names a host, hosting.url={OTHER}"):
        parsed(*typed, *how.format(file=file).split())


def test_a_flag_file_names_no_code(tmp_path):
    file = tmp_path / "theirs.flags"
    file.write_text("--algorithm=os:getcwd\n")
    with pytest.raises(ValueError, match="names code, method.name=os:getcwd"):
        parsed(f"--flagfile={file}")
    file.write_text("--objective=grpo\n--reward=os:getcwd\n")
    with pytest.raises(ValueError, match="names code, objective.reward=os:getcwd"):
        parsed(f"--flagfile={file}")


def test_a_run_goes_on_where_its_host_is_typed_again(tmp_path):
    stored(tmp_path, URL)
    again = ["--resume", f"--output_dir={tmp_path}"]
    with pytest.raises(ValueError, match="names a host"):
        parsed(*again)
    assert parsed(*again, f"--provider_url={OTHER}").hosting.url == OTHER


@pytest.mark.parametrize(
    ("program", "given"),
    [
        (compare, ["--algorithms=fed_bpt"]),
        (drills, ["--methods=fed_bpt"]),
        (openness, ["--task=kinds"]),
    ],
)
def test_programs_that_start_runs_ask_for_the_same(tmp_path, capsys, program, given):
    file = tmp_path / "theirs.flags"
    file.write_text(f"--provider_url={OTHER}\n")
    assert program.main(["program", *given, f"--flagfile={file}"]) == 2
    assert f"names a host, --provider_url={OTHER}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "work", "given"),
    [
        (compare, "compare", "--algorithms=fed_bpt"),
        (sweep, "sweep", "--grid=client_lr=0.1,0.3"),
        (drills, "drills", "--methods=fed_bpt"),
        (openness, "ladder", "--task=kinds"),
    ],
)
def test_programs_that_start_runs_pay_twice_only_if_they_are_told(
    program, work, given, monkeypatch
):
    told = []

    def end(*args, ask_again, **kwargs):
        told.append(ask_again)
        raise KeyboardInterrupt

    monkeypatch.setattr(study, work, end)
    assert [program.main(["program", given, *more]) for more in ([], ["--ask_again"])] == [130, 130]
    assert told == [False, True]


@pytest.mark.parametrize("table", ["common", "cells.lora"])
def test_a_ladder_names_no_host(tmp_path, table):
    path = tmp_path / "theirs.toml"
    cell = '[cells.lora]\nkind = "open"\nalgorithm = "fed_avg"\n'
    line = f'provider_url = "{OTHER}"\n'
    text = cell + line if table == "cells.lora" else f"[common]\n{line}{cell}"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"names a host, hosting.url={OTHER}"):
        read_ladder(str(path), {})
    assert read_ladder(str(path), {"hosting.url": OTHER})
