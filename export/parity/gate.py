"""The parity gate: admits files to a bundle, each only if it passes the parity check."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lipsformer.bundle.manifest import BundleFile, Kind
from lipsformer.datasets.spread import spread
from lipsformer.export.settings import ExportSettings
from lipsformer.inference.runtimes import Runtime
from lipsformer.system.console import say
from lipsformer.system.errors import GateError

from .check import FileParity, check_parity
from .reference import Reference

__all__ = ["Gate"]

KEPT_PHOTOS = 24


class Gate:
    """Compares files with the checkpoint and collects those that pass as `files`, and their reports as `checked`."""

    def __init__(self, reference: Reference, settings: ExportSettings) -> None:
        self.reference = reference
        self.settings = settings
        self.files: list[BundleFile] = []
        self.checked: list[FileParity] = []

    def admit(self, path: Path, runtime: Runtime, *, target: str, precision: str, **facts: Any) -> None:
        """Admit a graph or an engine, which `runtime` runs; `facts` are further fields of its manifest entry.

        Raises:
            GateError: if it fails the parity check.
        """
        found = check_parity(
            runtime,
            self.reference,
            file=path.name,
            target=target,
            precision=precision,
            max_batch=self.settings.max_batch,
            limits=self.settings.thresholds[precision],
        )
        name = f"{path.name} on {found.provider}"
        if not found.passed:
            raise GateError(f"{name}: parity failed, no bundle written: {'; '.join(found.failures)}")
        say(f"{name}: parity passed, relative L2 {found.worst('relative_l2'):.1e}")
        self.checked.append(found)
        self._add(path, target=target, precision=precision, parity=found.summary(), **facts)

    def admit_unchecked(
        self, path: Path, *, target: str, precision: str, built: Mapping[str, Any], reason: str
    ) -> None:
        """Admit an engine that cannot run here. The manifest says so, and nothing selects it automatically."""
        say(f"{path.name}: built, not checked: {reason}", always=True)
        unchecked = {"passed": False, "reason": reason}
        self._add(path, target=target, precision=precision, parity=unchecked, built=built)

    def kept(self) -> Reference:
        """The reference for `lipsformer verify`: a few photos whose top class is the checkpoint's in all files."""
        agreed = np.flatnonzero(np.all([found.agrees for found in self.checked], axis=0))
        if not len(agreed):  # the limits were lowered to nothing
            agreed = np.arange(len(self.reference.photos.logits))
        return self.reference.select(agreed[spread(KEPT_PHOTOS, len(agreed))])

    def _add(self, path: Path, **facts: Any) -> None:
        kind: Kind = "engine" if "built" in facts else "onnx"
        self.files.append(BundleFile.describe(path, kind, **facts))
