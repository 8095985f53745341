"""An object in another process: results and errors come back, a death is described, nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsformer.images.open import ImageError
from lipsformer.system.errors import InputError, LipsFormerError
from lipsformer.system.subprocesses import ProcessDiedError, Subprocess, _signal_name


class Counter:
    """What the tests run in the other process."""

    def __init__(self, start: int) -> None:
        if start < 0:
            raise InputError(f"start={start}: it must be at least 0")
        self.count = start

    def add(self, amount: int) -> int:
        sys.stdout.write("noise")
        self.count += amount
        return self.count

    def pid(self) -> int:
        return os.getpid()

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def refuse(self) -> None:
        raise ImageError("damaged", "photo.jpg: damaged")

    def die(self, how: str) -> None:
        os.write(2, b"last words\n")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(7)


@pytest.fixture(scope="module")
def counter() -> Iterator[Subprocess]:
    with Subprocess("counter", {"LIPSFORMER_ADDED": "yes"}) as process:
        with pytest.raises(InputError, match=r"^start=-1: it must be at least 0$"):
            process.create(Counter, start=-1)
        process.create(Counter, start=3)
        yield process


def test_the_object_keeps_its_state_between_calls(counter: Subprocess) -> None:
    assert [counter.call("add", amount=2), counter.call("add", amount=5)] == [5, 10]
    assert counter.call("pid") != os.getpid()


def test_the_environment_is_added_to(counter: Subprocess) -> None:
    assert counter.call("variable", name="LIPSFORMER_ADDED") == "yes"
    assert counter.call("variable", name="HOME") == os.environ["HOME"]
    assert "LIPSFORMER_ADDED" not in os.environ


def test_an_unexpected_exception_is_one_line_and_ends_nothing(counter: Subprocess) -> None:
    with pytest.raises(LipsFormerError, match=r"^counter: TypeError: .*unsupported operand") as failed:
        counter.call("add", amount="two\nlines")
    assert "\n" not in str(failed.value)
    assert counter.call("add", amount=0) >= 3


@pytest.mark.parametrize(("how", "end"), [("kill", "SIGKILL"), ("exit", "exit status 7")])
def test_a_death_says_how_and_with_which_last_words(how: str, end: str) -> None:
    with Subprocess("counter") as process:
        process.create(Counter, start=0)
        with pytest.raises(ProcessDiedError, match=rf"^{end}: last words$") as death:
            process.call("die", how=how)
        assert death.value.killed == (how == "kill")
        with pytest.raises(ProcessDiedError, match=rf"^{end}"):
            process.call("pid")


def test_no_process_is_left_behind() -> None:
    with contextlib.suppress(ZeroDivisionError), Subprocess("counter") as process:
        process.create(Counter, start=0)
        pid = process.call("pid")
        raise ZeroDivisionError
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_script_without_a_main_guard_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from fractions import Fraction\n"
        "from lipsformer.system.subprocesses import Subprocess\n"
        "print('run')\n"
        "with Subprocess('half') as process:\n"
        "    process.create(Fraction, numerator=1, denominator=2)\n"
        "    print(process.call('limit_denominator', max_denominator=9))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["run", "1/2"]


def test_an_error_of_several_parts_comes_back_as_its_message(counter: Subprocess) -> None:
    with pytest.raises(InputError, match=r"^photo\.jpg: damaged$"):
        counter.call("refuse")


def test_signals_without_a_name_have_a_number() -> None:
    assert _signal_name(signal.SIGKILL) == "SIGKILL"
    assert _signal_name(signal.SIGRTMIN + 3) == f"signal {signal.SIGRTMIN + 3}"
