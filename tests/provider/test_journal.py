"""A journal is data: its content is checked, and bad lines are named."""

import json
import os
import resource
from contextlib import contextmanager

import pytest

from fedjax_post.disclosure.meter import Carried, add
from fedjax_post.provider import lines
from fedjax_post.provider.journal import Journal, JournalError, carried, spent

CARRIED = Carried(1, 5, 4, 0, 2, 1, {"ab": 4})
ASKED = {"state": "asked", "round": 0, "client": 3, "call": 0, "request": "ab", "queries": 1,
         "worst_cost": 2.0, "carries": CARRIED._asdict(), "time": 1.0}  # fmt: skip
ANSWERED = {**ASKED, "state": "answered", "replies": [["a", True, {"b": -1.0}]], "cost": 1.0,
            "prompt_tokens": 3, "completion_tokens": 1, "seconds": 0.5}  # fmt: skip
FAILED = {**ASKED, "state": "failed", "error": "no", "may_be_paid": True, "sent": True,
          "dropped": False, "seconds": 0.5}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.jsonl"


def write(path, *entries):
    for entry in entries:
        lines.append(path, entry)


def test_lines_that_were_written_are_read(path):
    write(path, ASKED, ANSWERED, ASKED | {"client": 4}, FAILED | {"client": 4})
    found = spent(path)
    assert (found.calls, found.queries, found.unsettled, found.failed) == (2, 2, 1, 1)
    assert found.cost == 1.0 + 2.0
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("then", "times"),
    [
        ([], 1),  # a killed process: it may have arrived
        ([ANSWERED], 1),
        ([FAILED], 1),
        ([{**FAILED, "sent": False, "may_be_paid": False}], 0),  # no connection was made
        ([{**FAILED, "state": "refused", "may_be_paid": False}, ASKED, ANSWERED], 2),  # a 429
        ([ASKED, ANSWERED], 2),  # sent again after a kill
    ],
)
def test_what_a_call_carries_counts_each_time_that_it_may_have_arrived(path, then, times):
    write(path, ASKED, *then)
    found = carried(path)
    assert found == ({(0, 3): add([CARRIED] * times)} if times else {})
    assert Journal(path, ask_again=True).spent() == spent(path)


@pytest.mark.parametrize(
    "odd",
    [
        [1], {}, {"state": "paid"}, {"state": ["asked"]}, ASKED | {"round": True},
        ASKED | {"client": -3}, ASKED | {"queries": 1.5}, ASKED | {"worst_cost": -1},
        ASKED | {"carries": {}}, ASKED | {"carries": CARRIED._asdict() | {"labels": -1}},
        ASKED | {"carries": CARRIED._asdict() | {"distinct": {"ab": "4"}}},
        ASKED | {"request": None}, ANSWERED | {"replies": []}, ANSWERED | {"cost": "free"},
        ANSWERED | {"replies": [["a", True, [1]]]}, ANSWERED | {"replies": [["a", 1, None]]},
        ANSWERED | {"replies": [["\ud800", True, None]]}, ANSWERED | {"prompt_tokens": -1},
        FAILED | {"may_be_paid": 1}, {k: v for k, v in FAILED.items() if k != "dropped"},
    ],
    ids=str,
)  # fmt: skip
def test_a_line_of_another_form_is_named_whatever_its_checksum(path, odd):
    write(path, ASKED)
    text = json.dumps(odd if isinstance(odd, dict) else {"list": odd})
    write(path, json.loads(text))
    with pytest.raises(JournalError, match=rf"{path}, line 2: .*give a new `directory`"):
        Journal(path, ask_again=True)


@pytest.mark.parametrize(("old", "new"), [(b'"cost": 1.0', b'"cost": 0.0'), (b"ab", b"aB")])
def test_a_changed_bit_is_seen(path, old, new):
    write(path, ASKED, ANSWERED)
    raw = path.read_bytes()
    assert raw.count(old)
    path.write_bytes(raw.replace(old, new))
    with pytest.raises(JournalError, match="its checksum differs"):
        spent(path)


def test_numbers_that_json_has_not_are_not_written(path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        lines.append(path, ASKED | {"worst_cost": float("nan")})
    assert not path.exists()


def test_a_line_that_could_not_be_written_leaves_no_half_behind(path, monkeypatch):
    write(path, ASKED)
    before = path.read_bytes()

    def full(number):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            lines.append(path, ANSWERED, is_durable=True)
    assert path.read_bytes() == before
    write(path, ANSWERED)
    assert spent(path).queries == 1


@contextmanager
def room_for(num_bytes):
    """No file may become larger, as on a disk that is full from there on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_in_the_middle_of_a_line_damages_no_journal(path):
    write(path, ASKED)
    before = path.read_bytes()
    with room_for(len(before) + 40), pytest.raises(OSError, match="File too large"):
        lines.append(path, ANSWERED, is_durable=True)
    assert path.read_bytes() == before
    write(path, ANSWERED)
    assert spent(path).queries == 1


def test_a_pipe_is_no_journal_and_is_not_waited_for(path):
    os.mkfifo(path)
    with pytest.raises(OSError, match="is no file"):
        Journal(path)


def test_a_journal_is_refused_if_it_is_none(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"round": 1}\n')
    with pytest.raises(JournalError, match="journal.jsonl, line 1: .*no journal of calls"):
        Journal(path)
