"""Messages and progress on stderr, and how both are silenced."""

from __future__ import annotations

import sys
import threading

import pytest

from lipsformer.system import console
from lipsformer.system.console import is_quiet, printable, quiet, say, track


def work(title: str = "counting") -> None:
    with track(title, 3) as advance:
        for step in range(3):
            advance(1, f"step {step}")


def test_messages_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_progress_is_plain_lines_off_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work()
    assert capsys.readouterr().err == ""  # no line is due yet
    monkeypatch.setattr(console, "PLAIN_INTERVAL_SECONDS", 0)
    work()
    assert capsys.readouterr() == ("", "counting: 1/3 step 0\ncounting: 2/3 step 1\n")


def test_a_total_may_become_known_later(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL_SECONDS", 0)
    totals = [None, 1200, 1200]
    with track("counting", lambda: totals[0]) as advance:
        for _ in range(3):
            advance(400, "")
            totals.pop(0)
            totals.append(1200)
    assert capsys.readouterr().err == "counting: 400/?\ncounting: 800/1200\n"


def test_progress_is_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    work()
    found = capsys.readouterr()
    assert found.out == ""
    assert "counting" in found.err
    assert "3/3" in found.err


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_silences_messages_and_progress(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(console, "PLAIN_INTERVAL_SECONDS", 0)
    with quiet():
        assert is_quiet()
        say("hello")
        say("a warning", always=True)
        work()
        thread = threading.Thread(target=say, args=("from a thread",))
        thread.start()
        thread.join()
    assert capsys.readouterr() == ("", "a warning\n")
    assert not is_quiet()


def test_quiet_ends_with_its_block(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet(), quiet():
        pass
    with pytest.raises(ZeroDivisionError), quiet():
        raise ZeroDivisionError
    say("heard")
    assert capsys.readouterr().err == "heard\n"


def test_control_characters_are_replaced() -> None:
    assert printable("a\x1b[2J\nb写真") == "a�[2J�b写真"
