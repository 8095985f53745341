"""The display of a training: correct numbers, rarely enough, and a terminal that is left as it was."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest

from lipsformer.train.listeners.listener import RunInfo
from lipsformer.train.listeners.progress import ProgressDisplay, Status, duration
from lipsformer.train.metrics import EpochMetrics, StepMetrics
from lipsformer.train.recipe import load_recipe
from lipsformer.train.run_folder import RunFolder

STEPS = 10  # of an epoch
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def run_info(epochs: int, done: int = 0, top1: Sequence[float] = (), title: str = "title") -> RunInfo:
    """A run of `epochs` epochs of ten steps, of which `done` steps are done, with these validation accuracies."""
    return RunInfo(
        title=title,
        run_id="id",
        folder=RunFolder(Path("none")),
        recipe=load_recipe("default", {"epochs": epochs}),
        steps_per_epoch=STEPS,
        step=done,
        history=[epoch_metrics(number, value) for number, value in enumerate(top1, start=1)],
        say=print,
    )


def step_metrics(step: int = 1, **changes: Any) -> StepMetrics:
    values: dict[str, Any] = {"images": 64, "loss_sum": 128.0, "correct": 16.0, "grad_norm": 1.0, "skipped": 0,
                              "learning_rate": 1e-3, "data_seconds": 0.1, "seconds": 0.5}  # fmt: skip
    return StepMetrics(step=step, epoch=(step - 1) // STEPS + 1, **(values | changes))


def epoch_metrics(epoch: int, top1: float, **changes: Any) -> EpochMetrics:
    whole = EpochMetrics(epoch=epoch, step=epoch * STEPS, learning_rate=1e-3, train_loss=1.5, train_top1=0.5,
                         train_loss_curve=[1.5], skipped_steps=0, images_per_second=128.4, data_wait=0.2, val_loss=1.25,
                         val_top1=top1, val_top5=1.0, val_images=100, seconds=7.04)  # fmt: skip
    return dataclasses.replace(whole, **changes)


class Clock:
    """Seconds that pass on demand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A terminal as stderr, for `redirect_stderr`. It can go away."""

    encoding = "utf-8"
    gone = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.gone:
            raise OSError(5, "Input/output error")
        return super().write(text)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 100 columns."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


@contextlib.contextmanager
def showing(run: RunInfo, clock: Clock, stderr: TextIO) -> Iterator[ProgressDisplay]:
    """A display from the beginning of a training to its end."""
    display = ProgressDisplay(clock)
    with contextlib.redirect_stderr(stderr):
        display.on_begin(run)
        try:
            yield display
        finally:
            display.on_end()
        assert sys.stderr is stderr


def plain(text: str) -> str:
    """`text` without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def given_back(terminal: Terminal) -> bool:
    """Whether the cursor is shown again after it was hidden."""
    return terminal.getvalue().rfind(SHOW) > terminal.getvalue().rfind(HIDE) >= 0


def test_loss_is_a_mean_of_recent_steps_without_skipped_ones() -> None:
    status = Status(run_info(2))
    for step, loss in enumerate((3.0, 2.5, float("nan"), 1.0), start=1):
        status.add(step_metrics(step, loss_sum=64 * loss), now=step)
    assert status.metrics()["loss"] == ("2.167", False)
    assert status.metrics()["top-1"] == ("25.0%", False)
    nothing = Status(run_info(2))
    assert nothing.metrics() == {}
    nothing.add(step_metrics(loss_sum=float("inf"), skipped=1), now=0)
    assert nothing.metrics()["loss"] == nothing.metrics()["top-1"] == ("none", False)
    assert nothing.metrics()["skipped"] == ("1", True)


def test_speed_is_that_of_the_last_half_minute_or_20_steps() -> None:
    status, fast = Status(run_info(20)), Status(run_info(20))
    for step in range(1, 101):
        status.add(step_metrics(step, images=step, seconds=3.0, data_seconds=0.03 * step), now=3.0 * step)
        fast.add(step_metrics(step, images=10 * step, seconds=0.5, data_seconds=0.005 * step), now=0.5 * step)
    last = np.arange(81, 101)
    assert status.metrics()["images/s"] == (f"{last.sum() / 60:,.0f}", False)
    assert status.metrics()["data wait"] == (f"{0.03 * last.sum() / 60:.0%}", True)
    last = np.arange(41, 101)
    assert fast.metrics()["images/s"] == (f"{10 * last.sum() / 30:,.0f}", False)
    assert fast.metrics()["data wait"] == (f"{0.005 * last.sum() / 30:.0%}", True)
    fast.add(step_metrics(101, images=10, seconds=80.0, data_seconds=0.0), now=200.0)
    assert fast.metrics()["images/s"][0] == f"{(10 * np.arange(82, 101).sum() + 10) / 89.5:,.0f}"


def test_time_left_counts_steps_and_validations() -> None:
    status, now = Status(run_info(4)), 0.0
    assert status.time_left == ""
    for step in range(1, 26):
        now += 0.5
        status.add(step_metrics(step), now)
        if step % STEPS == 0:
            now += 7.0  # validation and checkpoints
            status.finish(epoch_metrics(step // STEPS, 0.5), now)
    assert (status.epoch, status.step_in_epoch, status.done) == (3, 5, 25)
    assert status.time_left == "14 s left"  # 15 steps of 0.5 s, and 7 s


def test_a_resumed_training_stands_where_it_stopped() -> None:
    for done, epoch, step in ((20, 3, 0), (25, 3, 5), (40, 4, 10)):
        status = Status(run_info(4, done))
        assert (status.epoch, status.step_in_epoch) == (epoch, step)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3570, "1 h 00 min"), (4320, "1 h 12 min"), (183_600, "2 d 3 h")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_line_of_an_epoch() -> None:
    status = Status(run_info(9, top1=[0.4]))
    status.finish(epoch_metrics(2, 0.3, skipped_steps=3), now=0)
    assert status.summary() == (
        "epoch 2/9: train loss 1.500, val loss 1.250, top-1 30.0% (best 40.0%), 128 images/s, 7.0 s, 3 steps skipped"
    )
    status.finish(epoch_metrics(3, 0.6, train_loss=None, val_loss=None, images_per_second=None), now=0)
    assert status.summary() == "epoch 3/9: train loss none, val loss none, top-1 60.0% (best 60.0%), 7.0 s"


def test_lines_in_a_log_come_every_ten_seconds(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    log = io.StringIO()
    with showing(run_info(2), clock, log) as display:
        for step in range(1, 4):
            clock.now += 6.0
            display.on_step(step_metrics(step, skipped=step - 1))
        display.on_validation(1, 9)
        clock.now += 4.0
        display.on_validation(2, 9)
        display.on_epoch(epoch_metrics(1, 0.5))
        clock.now += 9.0  # counted from the last line
        display.on_step(step_metrics(11))
    assert capsys.readouterr() == ("", "")
    numbers = "loss 2.000, top-1 25.0%, lr 0.001, images/s 128, data wait 20%, skipped"
    assert log.getvalue().splitlines() == [
        f"epoch 1/2: step 2/10, {numbers} 1, 9 s left",
        f"epoch 1/2: step 3/10, validating 2/9, {numbers} 2, 8 s left",
        "epoch 1/2: train loss 1.500, val loss 1.250, top-1 50.0% (best 50.0%), 128 images/s, 7.0 s",
    ]


def test_the_panel_is_drawn_four_times_a_second_at_most(terminal: Terminal, clock: Clock) -> None:
    with showing(run_info(5), clock, terminal) as display:
        drawn = []
        for step in range(1, 9):
            clock.now += 0.1
            length = len(terminal.getvalue())
            display.on_step(step_metrics(step))
            drawn.append(len(terminal.getvalue()) > length)
    assert drawn == [False, False, True, False, False, True, False, False]


def test_names_cannot_command_the_terminal(terminal: Terminal, clock: Clock) -> None:
    with showing(run_info(1, title="c\x07d"), clock, terminal) as display:
        display.on_message("a\x1b[2Jb [bold]c")
        clock.now += 10.0
        display.on_step(step_metrics())
    assert "a\N{REPLACEMENT CHARACTER}[2Jb [bold]c" in terminal.getvalue()
    assert "c\N{REPLACEMENT CHARACTER}d" in terminal.getvalue()
    assert "\x07" not in terminal.getvalue()


def show_all(terminal: Terminal, clock: Clock, title: str, top1: Sequence[float] = ()) -> None:
    """Goes through everything that a display can show, and checks that the terminal is given back."""
    with showing(run_info(5, top1=top1, title=title), clock, terminal) as display:
        display.on_message("introduction [bold]")
        for step in range(1, STEPS + 1):
            clock.now += 0.3
            display.on_step(step_metrics(step, skipped=7))
        clock.now += 0.3
        display.on_validation(3, 8)
        display.on_epoch(epoch_metrics(1, 0.4))
        display.on_epoch(epoch_metrics(2, 0.3))
        display.on_message("the last line")
        clock.now += 0.3
        display.on_step(step_metrics(2 * STEPS + 1))
    assert given_back(terminal)


def test_the_panel_of_a_terminal(terminal: Terminal, clock: Clock) -> None:
    show_all(terminal, clock, "model on data")
    text = plain(terminal.getvalue())
    for piece in ("introduction [bold]", "model on data", "epoch 1/5", "step 10/10", "2.000", "25.0%", "0.001", "128",
                  "20%", "7", "lr", "data wait", "skipped", "left", "validating 3/8", "epoch 1/5: train",
                  "30.0% validation top-1, best 40.0% after epoch 1  █▁"):  # fmt: skip
        assert piece in text
    assert "▁" not in text.split("epoch 1/5: train")[0]
    assert text.count("epoch 1/5: train") == 1  # printed once, not redrawn


@pytest.mark.parametrize("width", [1, 10, 25, 50, 300])
def test_the_panel_fits_any_width(
    terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show_all(terminal, clock, "a rather long name of a model on data", [0.1] * 80)
    lines = [line.rsplit("\r", 1)[-1] for line in plain(terminal.getvalue()).splitlines()]
    assert max(map(len, lines)) <= width
    assert max((len(line) for line in lines if "━" in line), default=0) <= 100


def test_a_terminal_of_few_characters(terminal: Terminal, clock: Clock) -> None:
    terminal.encoding = "ascii"
    show_all(terminal, clock, "model on data")
    assert "best 40.0% after epoch 1" in plain(terminal.getvalue())
    assert terminal.getvalue().isascii()


def test_a_dumb_terminal_gets_lines(terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with showing(run_info(2), clock, terminal) as display:
        clock.now += 10
        display.on_step(step_metrics())
    assert terminal.getvalue().startswith("epoch 1/2: step 1/10, loss")
    assert "\x1b" not in terminal.getvalue()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_terminal_clean(terminal: Terminal, clock: Clock, error: type[BaseException]) -> None:
    def fail() -> None:
        with showing(run_info(2), clock, terminal) as display:
            clock.now += 10
            display.on_step(step_metrics())
            raise error

    with pytest.raises(error):
        fail()
    assert given_back(terminal)
    assert terminal.getvalue().rstrip("\n").endswith("\x1b[2K")  # the panel's lines are erased


def test_training_continues_when_the_terminal_is_gone(terminal: Terminal, clock: Clock) -> None:
    with showing(run_info(2), clock, terminal) as display:
        terminal.gone = True
        for step in range(1, STEPS + 1):
            clock.now += 10
            display.on_step(step_metrics(step))
        display.on_epoch(epoch_metrics(1, 0.5))
        terminal.gone = False
        display.on_message("another line")  # silent for good: half a panel would be worse
    assert "line" not in terminal.getvalue()


def test_a_real_terminal_is_given_back(terminal: Terminal, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert terminal.isatty()  # its environment is that of the real one
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    shown: list[bytes] = []
    reader = threading.Thread(target=lambda: shown.extend(pieces(master)))
    reader.start()
    with os.fdopen(slave, "w", encoding="utf-8") as stream, showing(run_info(2), clock, stream) as display:
        clock.now += 1
        display.on_step(step_metrics())
        sys.stderr.write("a warning\n")
        display.on_message("the line")
        sys.stdout.write("result\n")
    reader.join(timeout=30)
    os.close(master)
    assert capsys.readouterr() == ("result\n", "")
    raw = b"".join(shown).decode()
    assert "epoch 1/2" in plain(raw)
    assert plain(raw).index("a warning") < plain(raw).index("the line")
    assert raw.rfind(SHOW) > raw.rfind(HIDE) >= 0


def pieces(descriptor: int) -> Iterator[bytes]:
    """Everything written to a pseudo-terminal until its other side is closed."""
    with contextlib.suppress(OSError):  # how Linux reports that the other side is closed
        while piece := os.read(descriptor, 4096):
            yield piece
