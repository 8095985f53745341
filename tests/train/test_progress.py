"""What is shown while a model trains: right figures, seldom enough, and a terminal that is left as it was."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lipsformer.train.listeners.live import Display, Progress
from lipsformer.train.listeners.pace import MEMORY, Pace, duration

STEPS = 10  # of an epoch
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def progress(step: int = 0, **changes: Any) -> Progress:
    values: dict[str, Any] = {"loss": 2.0, "top1": 0.25, "learning_rate": 1e-3, "images": 64, "wait_seconds": 0.1,
                              "seconds": 0.5, "skipped": 0}  # fmt: skip
    return Progress(epoch=step // STEPS, step_in_epoch=step % STEPS, **(values | changes))


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Recorder:
    """A screen that keeps what it is to show."""

    interval = 10.0

    def __init__(self) -> None:
        self.shown: list[tuple[int, str, list[float]]] = []
        self.written: list[str] = []
        self.running = False

    def start(self) -> None:
        self.running = True

    def show(self, pace: Pace, note: str, validation: Sequence[float]) -> None:
        self.shown.append((pace.done, note, list(validation)))

    def write(self, line: str) -> None:
        self.written.append(line)

    def stop(self) -> None:
        self.running = False


class Terminal(io.StringIO):
    """What stderr is on a terminal, for `redirect_stderr`; it can go away."""

    encoding = "utf-8"
    gone = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.gone:
            raise OSError(5, "Input/output error")
        return super().write(text)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


def plain(text: str) -> str:
    """`text` without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_loss_is_an_exponential_mean_that_skipped_steps_leave_alone() -> None:
    pace, losses = Pace(2, STEPS), [3.0, 2.5, None, 1.0]
    for step, loss in enumerate(losses):
        pace.add(progress(step, loss=loss, top1=None), now=step)
    weights = MEMORY ** np.arange(2, -1, -1)
    assert pace.loss.value == pytest.approx((weights * [3.0, 2.5, 1.0]).sum() / weights.sum())
    assert pace.top1.value is None


def test_speed_is_that_of_the_last_half_minute() -> None:
    pace = Pace(20, STEPS)
    for step in range(100):
        pace.add(progress(step, images=step, seconds=2.0, wait_seconds=0.02 * step), now=2.0 * step)
    last = np.arange(85, 100)  # 15 steps of two seconds
    assert pace.images_per_second == pytest.approx(last.sum() / 30)
    assert pace.wait_share == pytest.approx(0.02 * last.sum() / 30)
    pace.add(progress(100, images=640, seconds=64.0), now=300.0)  # one slow step fills the window alone
    assert pace.images_per_second == pytest.approx(10)


def test_time_left_counts_steps_and_the_time_between_epochs() -> None:
    pace, now = Pace(4, STEPS), 0.0
    assert pace.seconds_left is None
    for step in range(25):
        now += 0.5 + (7.0 if step in (10, 20) else 0.0)  # validation takes 7 seconds
        pace.add(progress(step), now)
    assert (pace.epoch, pace.step_in_epoch, pace.done) == (2, 5, 25)
    assert pace.seconds_left == pytest.approx(15 * 0.5 + 7.0)


def test_a_resumed_training_stands_where_it_stopped() -> None:
    assert (Pace(4, STEPS, 20).epoch, Pace(4, STEPS, 20).step_in_epoch) == (2, 0)
    assert (Pace(4, STEPS, 25).epoch, Pace(4, STEPS, 25).step_in_epoch) == (2, 5)
    assert (Pace(4, STEPS, 40).epoch, Pace(4, STEPS, 40).step_in_epoch) == (3, 10)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3570, "1 h 00 min"), (4320, "1 h 12 min"), (183_600, "2 d 3 h")],
)
def test_durations_are_told_in_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_it_shows_no_more_often_than_the_screen_asks() -> None:
    screen, clock = Recorder(), Clock()
    with Display("title", 5, STEPS, clock=clock, screen=screen, validation=[0.1]) as display:
        assert screen.running
        for step in range(STEPS):
            clock.now += 3.0
            display.step(progress(step))
        display.note("validating 1/9")
        clock.now += 10.0
        display.note("validating 2/9")
        display.epoch("epoch 1", top1=0.2)
        display.epoch("epoch 2")
        clock.now += 9.0  # counted from the last line
        display.step(progress(STEPS))
    assert screen.shown == [(4, "", [0.1]), (8, "", [0.1]), (10, "validating 2/9", [0.1])]
    assert screen.written == ["epoch 1", "epoch 2"]
    assert not screen.running
    clock.now += 10.0


def test_names_cannot_command_the_terminal() -> None:
    screen, clock = Recorder(), Clock()
    with Display("title", 1, STEPS, clock=clock, screen=screen) as display:
        display.say("a\x1b[2Jb")
        clock.now += 10.0
        display.note("c\x07d")
    assert screen.written == ["a\N{REPLACEMENT CHARACTER}[2Jb"]
    assert screen.shown[0][1] == "c\N{REPLACEMENT CHARACTER}d"


def test_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Display("title", 2, STEPS, clock=clock) as display:
        for step in range(3):
            clock.now += 6.0
            display.step(progress(step, skipped=step))
        display.epoch("the epoch's line")
    out, err = capsys.readouterr()
    assert out == ""
    figures = "loss 2.000, top-1 25.0%, learning rate 0.001, 128 images/s, data wait 20%, skipped 1, 9 s left"
    assert err.splitlines() == [f"epoch 1/2: step 2/10, {figures}", "the epoch's line"]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str], terminal: Terminal) -> None:
    clock = Clock()
    with contextlib.redirect_stderr(terminal), Display("title", 2, STEPS, quiet=True, clock=clock) as display:
        clock.now += 60
        display.step(progress())
        display.epoch("line", top1=0.5)
        display.note("note")
    assert terminal.getvalue() == capsys.readouterr().out == ""


def show_all(terminal: Terminal, title: str, validation: Sequence[float] = ()) -> None:
    """Goes through all that a display can show, and checks that the terminal is given back."""
    clock = Clock()
    with (
        contextlib.redirect_stderr(terminal),
        Display(title, 5, STEPS, clock=clock, validation=validation) as display,
    ):
        display.say("introduction [bold]")
        for step in range(STEPS):
            clock.now += 0.3
            display.step(progress(step, skipped=7))
        clock.now += 0.3
        display.note("validating 3/8")
        display.epoch("line of epoch 1", top1=0.4)
        display.epoch("line of epoch 2", top1=0.3)
        clock.now += 0.3
        display.step(progress(2 * STEPS))
    assert given_back(terminal)


def given_back(terminal: Terminal) -> bool:
    """Whether the cursor is shown again after it was hidden."""
    return terminal.getvalue().rfind(SHOW) > terminal.getvalue().rfind(HIDE) >= 0


def test_the_panel_of_a_terminal(terminal: Terminal) -> None:
    show_all(terminal, "model on data")
    text = plain(terminal.getvalue())
    for piece in ("introduction [bold]", "model on data", "epoch 1/5", "step 10/10", "2.000", "25.0%", "0.001", "128",
                  "20%", "7", "learning rate", "data wait", "skipped", "left", "validating 3/8", "line of epoch 1",
                  "30.0% validation top-1, best 40.0% after epoch 1  █▁"):  # fmt: skip
        assert piece in text
    assert "▁" not in text.split("line of epoch 1")[0]
    assert terminal.getvalue().count("line of epoch 1") == 1  # to stay, not redrawn


@pytest.mark.parametrize("width", [1, 10, 25, 50, 300])
def test_the_panel_fits_any_width(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show_all(terminal, "a rather long name of a model on data", [0.1] * 80)
    panel = plain(terminal.getvalue()).rsplit("line of epoch 2", 1)[1]
    assert max(len(line) for line in panel.splitlines()) <= min(width, 100)


def test_a_terminal_of_few_characters(terminal: Terminal) -> None:
    terminal.encoding = "ascii"
    show_all(terminal, "model on data")
    assert "best 40.0% after epoch 1" in terminal.getvalue()
    assert terminal.getvalue().isascii()


def test_a_dumb_terminal_gets_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    clock = Clock()
    with contextlib.redirect_stderr(terminal), Display("title", 2, STEPS, clock=clock) as display:
        clock.now += 10
        display.step(progress())
    assert terminal.getvalue().startswith("epoch 1/2: step 1/10, loss")
    assert "\x1b" not in terminal.getvalue()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_terminal_clean(terminal: Terminal, error: type[BaseException]) -> None:
    clock = Clock()

    def fail() -> None:
        with Display("title", 2, STEPS, clock=clock) as display:
            clock.now += 10
            display.step(progress())
            raise error

    with contextlib.redirect_stderr(terminal):
        with pytest.raises(error):
            fail()
        assert sys.stderr is terminal
    assert given_back(terminal)
    assert terminal.getvalue().rstrip("\n").endswith("\x1b[2K")  # the panel's lines are erased


def test_training_goes_on_when_the_terminal_has_gone(terminal: Terminal) -> None:
    clock = Clock()
    with contextlib.redirect_stderr(terminal), Display("title", 2, STEPS, clock=clock) as display:
        terminal.gone = True
        for step in range(STEPS):
            clock.now += 10
            display.step(progress(step))
        display.epoch("line")
        assert sys.stderr is terminal
        terminal.gone = False
        display.epoch("another line")  # silent for good: half a panel would be worse
    assert "line" not in terminal.getvalue()


def test_a_real_terminal_is_given_back(tmp_path: os.PathLike[str]) -> None:
    pty = pytest.importorskip("pty")
    code = (
        "import sys\nfrom lipsformer.train.listeners.live import Display\n"
        "from tests.train.test_progress import Clock, STEPS, progress\n"
        "clock = Clock()\nwith Display('title', 2, STEPS, clock=clock) as display:\n"
        "    clock.now += 1\n    display.step(progress())\n    print('a warning', file=sys.stderr)\n"
        "    display.epoch('the line')\nprint('result')\n"
    )
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "90", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=slave, env=environment, text=True, check=False
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # Linux's way of saying that the other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert (done.returncode, done.stdout) == (0, "result\n")
    text = plain(shown.decode())
    assert "epoch 1/2" in text
    assert text.index("a warning") < text.index("the line")
    assert shown.decode().rfind(SHOW) > shown.decode().rfind(HIDE) >= 0
