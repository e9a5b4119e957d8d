"""Progress: lines in a log file, a bar where a line can be drawn again."""

import io

import pytest

from fedjax_post.simulate.progress import is_redrawn, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(file, *, rounds=6, start=0, seconds=10.0, last=None):
    """What is written over the rounds, each of which takes some seconds."""
    now = iter(range(1000))
    show = progress(rounds, start=start, file=file, clock_fn=lambda: seconds * next(now))
    for number in range(start, rounds):
        record = {"round": number, "loss": 2.0 - 0.1 * number, "tokens_per_second": 1234.5}
        if number % 2:
            record |= {"eval_loss": 1.5}
        if number == last:
            show(None, record | {"stopped": True})
            break
        show(None, record)
    return file.getvalue()


def test_a_log_file_gets_whole_lines_spaced_in_time():
    text = shown(io.StringIO())
    assert "\r" not in text
    assert "\x1b" not in text
    rounds = [line.split()[1] for line in text.splitlines()]
    assert rounds == ["1/6", "4/6", "6/6"]  # 30 seconds apart, and the last one
    first, middle, last = text.splitlines()
    assert first == "round 1/6  loss 2.000  tokens/s 1,234  about 50 s left"
    assert "eval_loss 1.500" in middle
    assert "left" not in last


def test_slow_rounds_have_a_line_each():
    assert len(shown(io.StringIO(), seconds=31.0).splitlines()) == 6


def test_the_time_left_counts_this_invocation_alone():
    first = shown(io.StringIO(), start=4).splitlines()[0]
    assert first == "round 5/6  loss 1.600  tokens/s 1,234  about 10 s left"


def test_a_run_that_stops_early_has_a_last_line():
    assert shown(io.StringIO(), last=2).splitlines()[-1].startswith("round 3/6")


@pytest.mark.parametrize("colour", [None, "1"])
def test_a_terminal_has_one_bar_without_colours(monkeypatch, colour):
    if colour:
        monkeypatch.setenv("NO_COLOR", colour)
    text = shown(Terminal())
    assert text.count("\n") <= 1
    assert "6/6" in text
    assert "eval_loss=1.500" in text
    assert "\x1b[" not in text.replace("\x1b[A", "")


def test_a_notebook_is_drawn_like_a_terminal():
    class OutStream(io.StringIO):
        pass

    OutStream.__module__ = "ipykernel.iostream"
    assert is_redrawn(OutStream())
    assert is_redrawn(Terminal())
    assert not is_redrawn(io.StringIO())


def test_clients_that_dropped_are_counted_from_the_first_line_on():
    file = io.StringIO()
    show = progress(2, file=file, clock_fn=lambda: 0.0)
    record = {"loss": 2.0, "tokens_per_second": 0.0, "cohort": 3}
    show(None, record | {"round": 0, "dropped": [4, 5, 6]})
    show(None, record | {"round": 1, "dropped": []})
    first, last = file.getvalue().splitlines()
    assert "dropped 3 of 3 visits" in first
    assert "dropped 3 of 6 visits" in last
