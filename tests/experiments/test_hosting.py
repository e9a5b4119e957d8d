"""A key goes to a host that is named on this command line, and to no other."""

import socket

import pytest

from experiments import compare, drills, flags, hosting, ladder, openness, train

URL = "http://127.0.0.1:8080/v1"
OTHER = "https://collector.example/v1"


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
    stored = f"--provider_url={url}\n--executor=host\n--adapter=text_prompt\n"
    (tmp_path / "flags").write_text(stored)
    assert train.main(["train", "--resume", f"--output_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert f"--provider_url={url} comes from a file" in error
    assert f"type --provider_url={url} on this command line" in error
    assert "sk-very" not in error


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
    assert flags.parse(["train", *given]).provider_url == URL


@pytest.mark.parametrize("typed", [[], [f"--provider_url={URL}"]])
def test_a_flag_file_names_no_host(tmp_path, typed):
    """Not one of its own, and not another one than was typed."""
    file = tmp_path / "theirs.flags"
    file.write_text(f"--provider_url={OTHER}\n")
    with pytest.raises(ValueError, match=f"--provider_url={OTHER} comes from a file"):
        flags.parse(["train", *typed, f"--flagfile={file}"])


def test_a_run_goes_on_where_its_host_is_typed_again(tmp_path):
    (tmp_path / "flags").write_text(f"--provider_url={URL}\n")
    again = ["train", "--resume", f"--output_dir={tmp_path}"]
    with pytest.raises(ValueError, match="comes from a file"):
        flags.parse(again)
    options = flags.parse([*again, f"--provider_url={OTHER}"])
    assert options.provider_url == OTHER
    assert hosting.given(options) == [f"--provider_url={OTHER}"]


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
    assert f"--provider_url={OTHER} comes from a file" in capsys.readouterr().err


def test_a_ladder_names_no_host(tmp_path):
    cell = ladder.Cell("cell", "a cell", "closed", {"provider_url": OTHER})
    told = ladder.Ladder({}, {}, (cell,), {}, {})
    with pytest.raises(ValueError, match=f"--provider_url={OTHER} comes from a file"):
        ladder.plan_runs(told, [0], [], tmp_path)
    with pytest.raises(ValueError, match="comes from a file"):
        ladder.plan_runs(told._replace(common={"provider_url": OTHER}), [0], [], tmp_path)
    assert ladder.plan_runs(told, [0], [f"--provider_url={OTHER}"], tmp_path)
