"""Processes in which packages cannot be found, as if they were not installed."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable
from pathlib import Path

__all__ = ["without_packages"]

# Python imports this at the start of each process that has its folder in PYTHONPATH, those of a server included.
SITE = """
    import contextlib, sys

    ABSENT = {absent!r}

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if any(name == module or name.startswith(module + ".") for module in ABSENT):
                with contextlib.suppress(OSError), open({log!r}, "a") as file:  # a confined decoder writes no files
                    file.write(name + "\\n")
                raise ModuleNotFoundError("No module named " + repr(name), name=name)

    sys.meta_path.insert(0, Absent())
"""


def without_packages(modules: Iterable[str], folder: Path) -> dict[str, str]:
    """The environment of a process, and of those that it starts, in which `modules` cannot be found.

    Those that a process looked for are in the file `looked-for.txt` of `folder`, one a line.
    """
    log = folder / "looked-for.txt"
    log.touch()
    (folder / "sitecustomize.py").write_text(textwrap.dedent(SITE).format(absent=sorted(modules), log=str(log)))
    path = [str(folder), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
