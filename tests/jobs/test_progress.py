import io
import json
import os
import pty
import sys
from contextlib import suppress

import pytest

from jobs.progress import Plain, Silent, Terminal, progress_for, seconds_left, time_left


def test_plain_lines_say_what_it_came_to() -> None:
    stream = io.StringIO()
    progress = Plain(stream)
    progress.say("three voices")
    with progress.bar("prepare") as bar:
        bar.update(1, 4, "slice 3")
        bar.update(4, 4, "12 clips kept")
    first, last = stream.getvalue().splitlines()
    assert first == "three voices"
    assert last.startswith("prepare: done in ")
    assert last.endswith(" s (12 clips kept)")


def test_plain_lines_say_how_far_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 5.0, 11.0, 12.0, 13.0])
    monkeypatch.setattr("jobs.progress.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    with Plain(stream).bar("train") as bar:
        for done in (1, 2, 3):
            bar.update(done, 9, f"step {done}")
    assert stream.getvalue().splitlines() == ["train: 2 of 9, 38 s left (step 2)", "train: done in 13.0 s (step 3)"]


def test_a_bar_that_fails_does_not_say_done() -> None:
    stream = io.StringIO()
    with pytest.raises(RuntimeError), Plain(stream).bar("train"):
        raise RuntimeError
    assert stream.getvalue() == ""


def test_a_machine_reads_an_object_per_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 5.0, 20.0, 30.0])
    monkeypatch.setattr("jobs.progress.time.monotonic", lambda: next(clock))
    progress = progress_for(json_output=True)
    progress.say("voice ‘ada’")
    with progress.bar("prepare") as bar:
        bar.update(0, 8)
        bar.update(2, 8, "6 clips", {"recordings": 4, "hours": 0.5})
    out, err = capsys.readouterr()
    assert out == ""
    numbers = {"done": 2, "total": 8, "recordings": 4, "hours": 0.5, "note": "6 clips"}
    assert [json.loads(line) for line in err.splitlines()] == [
        {"event": "message", "message": "voice ‘ada’"},
        {"event": "begin", "what": "prepare"},
        {"event": "progress", "what": "prepare", **numbers, "seconds": 20.0, "seconds_left": 60},
        {"event": "end", "what": "prepare", **numbers, "seconds": 30.0},
    ]


def test_time_left_is_in_words_for_people() -> None:
    assert seconds_left(0, 5, 10.0) is None
    assert seconds_left(2, 6, 10.0) == 20.0
    said = [time_left(seconds) for seconds in (None, 0.0, 42.4, 600.0, 9_000.0)]
    assert said == ["", "", "42 s left", "10 min left", "2.5 h left"]


def test_silence_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Silent()
    progress.say("nothing")
    with progress.bar("prepare") as bar:
        bar.update(1, 2, "nothing")
    assert capsys.readouterr() == ("", "")


def test_bars_on_a_terminal_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress_for(json_output=False), Plain)
    parent, child = pty.openpty()
    with os.fdopen(child, "w", buffering=1) as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        progress = progress_for(json_output=False)
        assert isinstance(progress, Terminal)
        progress.say("voice [ada] begins")
        with progress.bar("prepare") as bar:
            bar.update(3, 3, "12 [clips] kept")
    read = b""
    with os.fdopen(parent, "rb", buffering=0) as screen, suppress(OSError):  # Linux's end of a terminal is an error
        while part := screen.read(1 << 16):
            read += part
    shown = read.decode()
    assert "voice [ada] begins" in shown  # names may hold brackets: they are no markup
    assert "12 [clips] kept" in shown
    assert "3/3" in shown
