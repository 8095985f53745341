"""A Python object in a separate process, whose methods are called through pipes.

Its memory, threads and crashes stay in that process, and what it prints is captured. `multiprocessing` would import the
caller's `__main__` again, which runs an unguarded script twice, and does not say how a process ended.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from .errors import GateError, InputError, LipsFormerError

__all__ = ["ProcessDiedError", "Subprocess"]

PACKAGE_ROOT = Path(__file__).parents[2]  # the child must find the same package, in a checkout too


class ProcessDiedError(LipsFormerError):
    """The process ended during a call: the message is its signal or exit status, and its last line of output."""

    def __init__(self, status: int, output: str) -> None:
        end = _signal_name(-status) if status < 0 else f"exit status {status}"
        self.killed = end == "SIGKILL"
        super().__init__(": ".join([end, *output.strip().splitlines()[-1:]])[:300])


class Subprocess:
    """One object in one process. Use it in a `with` block, which leaves no process behind, however it ends.

    Args:
        label: what the object stands for; starts the message of an unexpected exception.
        environment: variables to set in addition to this process's.
    """

    def __init__(self, label: str, environment: Mapping[str, str] | None = None) -> None:
        self.label = label
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        path = os.pathsep.join(filter(None, (str(PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lipsformer.system.subprocesses"],
            stdin=subprocess.PIPE,  # the process ends when this one does, and the pipe with it
            stdout=subprocess.PIPE,
            stderr=self._output,
            env={**os.environ, **(environment or {}), "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C reaches only this process, which then stops the other
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # between calls it has nothing to lose
        self._process.communicate()
        self._output.close()

    def create(self, kind: type, **arguments: Any) -> None:
        """Make the object there: an instance of `kind`, a class that the process can import.

        Raises:
            LipsFormerError: as `call`.
        """
        self._ask(kind, arguments)

    def call(self, method: str, **arguments: Any) -> Any:
        """The result of one of the object's methods; arguments and result are pickled.

        Raises:
            LipsFormerError: what the method raises; any other exception becomes one, its name and text in one line.
            ProcessDiedError: if the process ends before the method does.
        """
        return self._ask(method, arguments)

    def _ask(self, what: type | str, arguments: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101, PT018
        try:
            pickle.dump((what, arguments), self._process.stdin)
            self._process.stdin.flush()
            answer, error = pickle.load(self._process.stdout)  # noqa: S301 - from our own process
        except (OSError, EOFError, pickle.UnpicklingError):
            raise self._death() from None
        if isinstance(error, str):
            raise LipsFormerError(f"{self.label}: {error}")
        if error is not None:
            raise error
        return answer

    def _death(self) -> ProcessDiedError:
        status = self._process.wait()
        self._output.seek(0)
        return ProcessDiedError(status, self._output.read().decode(errors="replace"))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have none
        return f"signal {number}"


def main() -> None:
    """Serve the calls of a `Subprocess` until it closes the pipe."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    subject: Any = None
    while True:
        try:
            what, arguments = pickle.load(requests)  # noqa: S301 - from the process that started this one
        except EOFError:
            return
        answer: Any = None
        error: LipsFormerError | str | None = None
        try:
            if isinstance(what, str):
                answer = getattr(subject, what)(**arguments)
            else:
                subject = what(**arguments)
        except LipsFormerError as ours:  # as the plain class: subclasses may need more than a message
            kind = next((kind for kind in (GateError, InputError) if isinstance(ours, kind)), LipsFormerError)
            error = kind(str(ours))
        except Exception as other:  # noqa: BLE001 - whatever a library raises, the caller must hear of it
            error = f"{type(other).__name__}: {' '.join(str(other).split())[:300]}"
        pickle.dump((answer, error), answers)
        answers.flush()


if __name__ == "__main__":
    main()
