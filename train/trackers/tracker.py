"""The interface of a tracker: a library that keeps records of runs."""

from __future__ import annotations

import abc
import importlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lipsformer.system.extras import require
from lipsformer.train.listeners.listener import RunInfo

__all__ = ["PROJECT", "Tracker"]

PROJECT = "lipsformer"  # the project or experiment of all runs, unless the library's environment variable names one


class Tracker(abc.ABC):
    """Writes the record of one run. `Tracking` calls it, and catches whatever its methods raise.

    `name` is its name on the command line and that of the extra which installs it. `module` is what it imports.
    `where` says where the record is, once it is open.

    Raises:
        MissingPackageError: if the library is not installed.
    """

    name: ClassVar[str]
    module: ClassVar[str]
    where: str

    def __init__(self) -> None:
        require(self.name, what=f"--track {self.name}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.library: Any = importlib.import_module(self.module)

    @abc.abstractmethod
    def open(self, run: RunInfo) -> int:
        """Opens the record of `run`, or creates it with the run's parameters. A failed call can be repeated.

        Returns:
            The last step that the record has metrics of, or 0.
        """

    @abc.abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step, which is later than all before."""

    @abc.abstractmethod
    def add_files(self, plots: Sequence[Path], checkpoint: Path) -> None:
        """Adds the plots (PNG files) and the checkpoint of a finished training."""

    @abc.abstractmethod
    def close(self, *, finished: bool) -> None:
        """Closes the record. If the training is not `finished`, it can be resumed."""
