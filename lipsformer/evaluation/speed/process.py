"""The other end of `worker.py`: starts it, asks it, and tells how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Self

import lipsformer
from lipsformer.system.errors import InputError, LipsFormerError

__all__ = ["Worker"]

HOME = Path(lipsformer.__file__).parents[1]


class Worker:
    """A process that measures one thing, `label`. While it is not asked anything it waits at a pipe.

    Use it in a `with` block: no process is left behind, however the block ends.
    """

    def __init__(self, label: str, threads: int) -> None:
        self.label = label
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        path = os.pathsep.join(filter(None, (str(HOME), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            [sys.executable, "-P", "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,  # its end tells the process that this one has gone
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C comes to this process alone, which then stops the others
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it holds nothing that could be lost
        self._process.communicate()
        self._log.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """The worker's answer to `request`.

        Raises:
            InputError: if it could not use its input.
            LipsFormerError: if it failed or has died.
        """
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101, PT018
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" not in answer:
            return answer
        if answer["status"] == InputError.exit_code:
            raise InputError(answer["error"])
        raise LipsFormerError(answer["error"] if answer["status"] else f"{self.label}: {answer['error']}")

    def _death(self) -> LipsFormerError:
        status = self._process.wait()
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().rpartition("\n")[2]
        end = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        hint = "perhaps for want of memory; " if -status == signal.SIGKILL else ""
        return LipsFormerError(
            f"{self.label}: its process ended with {end}{f' ({last[:200]})' if last else ''}; "
            f"{hint}try a smaller --batch or leave it out"
        )
