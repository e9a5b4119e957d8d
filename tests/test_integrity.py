"""Checksums: a changed bit, a missing end or an exchanged file is detected on reading."""

import json
import math
import subprocess

import pytest

from fedjax_post.integrity import (
    DamagedError,
    check_sums,
    open_line,
    read_file,
    read_lines,
    seal_file,
    seal_line,
    write_sums,
)

CONTENT = {"round": 3, "loss": 1.25e-07, "of": [1, {"a": None}], "text": 'a "é", b'}


def flipped(raw):
    """The bytes with each of their bits changed, in turn."""
    for place in range(8 * len(raw)):
        other = bytearray(raw)
        other[place // 8] ^= 1 << place % 8
        yield bytes(other)


def test_a_line_is_plain_json_and_comes_back():
    line = seal_line(CONTENT)
    assert {k: v for k, v in json.loads(line).items() if k != "crc32"} == CONTENT
    assert line.endswith("\n")
    assert open_line(line[:-1], "here") == CONTENT


@pytest.mark.heavy
def test_every_flipped_bit_of_a_line_is_found(tmp_path):
    path = tmp_path / "lines"
    for raw in flipped((seal_line({"round": 0}) + seal_line(CONTENT)).encode()):
        path.write_bytes(raw)
        with pytest.raises(DamagedError, match="lines"):
            list(read_lines(path))


@pytest.mark.heavy
def test_every_flipped_bit_of_a_file_is_found(tmp_path):
    path = tmp_path / "file.json"
    path.write_text(seal_file(CONTENT))
    assert read_file(path) == CONTENT
    for raw in flipped(seal_file(CONTENT).encode()):
        path.write_bytes(raw)
        with pytest.raises(DamagedError, match=r"file\.json"):
            read_file(path)


@pytest.mark.parametrize("written", [seal_line, seal_file])
def test_what_json_has_no_number_for_is_null_and_named(written):
    content = {"loss": math.nan, "of": {"all": [1.0, math.inf]}}
    told = json.loads(written(content), parse_constant=pytest.fail)
    assert (told["loss"], told["of"]) == (None, {"all": [1.0, None]})
    assert told["not_finite"] == ["loss", "of.all.1"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "one").write_text("1")
    (tmp_path / "sub" / "two").write_text("2")
    write_sums(tmp_path)
    return tmp_path


def test_the_sums_of_a_folder_are_those_of_sha256sum(folder):
    check_sums(folder)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "sub" / "two").write_text("3"), "sub/two is damaged"),
        (lambda folder: (folder / "one").unlink(), "one is missing"),
        (lambda folder: (folder / "three").write_text("3"), "three is not in SHA256SUMS"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "has no SHA256SUMS"),
        (lambda folder: (folder / "SHA256SUMS").write_text(""), "one is not in SHA256SUMS"),
        (lambda folder: (folder / "SHA256SUMS").write_bytes(b"\xff"), "is not text at byte 0"),
    ],
)
def test_a_folder_that_was_changed_is_refused(folder, change, said):
    change(folder)
    with pytest.raises(DamagedError, match=said):
        check_sums(folder)
