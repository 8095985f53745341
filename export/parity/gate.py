"""The parity gate: admits files to a bundle, each only if it passes the parity check."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lipsformer.bundle.manifest import BundleFile, Kind
from lipsformer.datasets.spread import spread
from lipsformer.export.settings import ExportSettings
from lipsformer.inference.heat_map import Explainer
from lipsformer.inference.runtimes import Runtime
from lipsformer.system.console import say, track
from lipsformer.system.errors import GateError

from .check import FileParity, check_parity
from .metrics import relative_l2
from .reference import Reference

__all__ = ["Gate"]

KEPT_PHOTOS = 24
HEAT_MAP_LIMIT = 1e-4  # relative L2 of a photo's map


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

    def admit_heat_maps(self, path: Path, candidate: Explainer, reference: Explainer) -> None:
        """Admit a graph of heat maps, compared with those of the checkpoint for each photo's best class.

        Raises:
            GateError: if a photo's map differs too much.
        """
        photos, best = self.reference.images.photos, self.reference.photos.logits.argmax(axis=1)
        worst = 0.0
        with track(f"parity of {path.name}", len(photos)) as advance:
            for pixels, index in zip(photos, best.tolist(), strict=True):
                wanted, found = (one.explain(pixels, index).contributions for one in (reference, candidate))
                error = float(relative_l2(wanted.reshape(1, -1), found.reshape(1, -1))[0])
                if not error <= HEAT_MAP_LIMIT:  # catches NaN too
                    raise GateError(
                        f"{path.name}: parity failed, no bundle written: relative L2 {error:.3g} of a photo's heat map "
                        f"exceeds {HEAT_MAP_LIMIT:g}"
                    )
                worst = max(worst, error)
                advance(1, "")
        say(f"{path.name}: parity passed, relative L2 {worst:.1e}")
        parity = {"passed": True, "photos": len(photos), "relative_l2": worst, "limit": HEAT_MAP_LIMIT}
        self.files.append(BundleFile.describe(path, "heat-maps", parity=parity))

    def kept(self) -> Reference:
        """The reference for `lipsformer verify`: a few photos whose top class is the checkpoint's in all files."""
        agreed = np.flatnonzero(np.all([found.agrees for found in self.checked], axis=0))
        if not len(agreed):  # the limits were lowered to nothing
            agreed = np.arange(len(self.reference.photos.logits))
        return self.reference.select(agreed[spread(KEPT_PHOTOS, len(agreed))])

    def _add(self, path: Path, **facts: Any) -> None:
        kind: Kind = "engine" if "built" in facts else "onnx"
        self.files.append(BundleFile.describe(path, kind, **facts))
