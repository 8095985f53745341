"""The parity report: parity.json, parity.md and parity.png."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lipsformer.system.console import printable
from lipsformer.system.markdown import markdown_table

from .check import FileParity
from .metrics import accuracy
from .reference import Reference
from .thresholds import AT_LEAST

__all__ = ["ParityReport"]

JSON, TEXT, PLOT = "parity.json", "parity.md", "parity.png"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ParityReport:
    """The parity checks of several files, on the same images."""

    reference: Reference
    files: Sequence[FileParity]

    @property
    def failures(self) -> list[str]:
        """The failures, one sentence per file."""
        return [f"{_name(file)}: {'; '.join(file.failures)}" for file in self.files if not file.passed]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON."""
        images = self.reference.images
        return {
            "passed": not self.failures,
            "source": images.source,
            "photos": len(images.photos),
            "hard_inputs": list(images.hard_names),
            "checkpoint_accuracy": self._accuracy(),
            "files": [file.to_dict() for file in self.files],
        }

    def to_text(self) -> str:
        """The report in Markdown."""
        images = self.reference.images
        before = self._accuracy()
        lines = [
            f"# Parity: {'PASSED' if not self.failures else 'FAILED'}",
            "",
            f"{len(images.photos)} photos ({printable(images.source)}) and {len(images.hard)} hard inputs "
            f"({', '.join(images.hard_names)}), each compared with the checkpoint's float32 logits of it alone. "
            "The numbers are the worst of all batch sizes.",
            "Accuracy is not compared: the photos have no labels."
            if before is None
            else f"The checkpoint classifies {before:.2%} of the photos correctly.",
            "",
            _table([_overview(file) for file in self.files]),
            "",
            "Relative L2 is the norm of the error divided by the norm of the logits. Neighbors and order: how much the "
            "logits of an image change with the other images of its batch, and with its place there.",
        ]
        for file in self.files:
            lines += ["", f"## {_name(file)}: {'passed' if file.passed else 'FAILED'}", "", *_details(file)]
        return "\n".join(lines)

    def write(self, folder: Path) -> list[Path]:
        """Write the report into `folder`; return its files."""
        (folder / JSON).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        (folder / TEXT).write_text(self.to_text() + "\n", encoding="utf-8")
        from .plot import plot_errors  # Matplotlib, which `verify` does not need

        plot_errors(folder / PLOT, self.files, self.reference.images.source)
        return [folder / name for name in (JSON, TEXT, PLOT)]

    def _accuracy(self) -> float | None:
        labels = self.reference.images.labels
        return None if labels is None else accuracy(self.reference.photos.logits, labels)


def _name(file: FileParity) -> str:
    return f"{file.file} on {file.provider}"


def _overview(file: FileParity) -> dict[str, str]:
    return {
        "file": file.file,
        "runs on": file.provider.removesuffix("ExecutionProvider"),
        "relative L2": _number(file.worst("relative_l2")),
        "features": _number(file.worst("features_relative_l2")),
        "same top-1": _share(file.worst("top1_agreement")),
        "same top-5": _share(file.worst("top5_agreement")),
        "points lost": _number(file.worst("accuracy_loss"), "+.2f"),
        "hard relative L2": _number(file.worst("hard_relative_l2")),
        "neighbours": _number(file.invariance.neighbors),
        "order": _number(file.invariance.order),
        "verdict": "passed" if file.passed else "FAILED",
    }


def _details(file: FileParity) -> list[str]:
    rows = []
    for batch in file.batches:
        found = batch.metrics()
        rows.append(
            {
                "batch": str(batch.batch),
                "relative L2": _number(found.get("relative_l2")),
                "features": _number(found.get("features_relative_l2")),
                "mean": _number(found.get("relative_l2_mean")),
                "max abs": _number(found.get("max_abs")),
                "1 - cosine": _number(None if (cosine := found.get("cosine")) is None else 1 - cosine),
                "KL": _number(found.get("kl")),
                "same top-1": _share(found.get("top1_agreement")),
                "same top-5": _share(found.get("top5_agreement")),
                "accuracy": _share(batch.accuracy),
                "hard relative L2": _number(found.get("hard_relative_l2")),
                "hard max abs": _number(found.get("hard_max_abs")),
            }
        )
    limits = ", ".join(
        f"{name} {'>=' if name.removeprefix('hard_') in AT_LEAST else '<='} {limit:g}"
        for name, limit in file.limits.items()
    )
    return [_table(rows), "", f"Limits: {limits}.", *(f"- {printable(failure)}" for failure in file.failures)]


def _table(rows: Sequence[dict[str, str]]) -> str:
    """A Markdown table without the columns that have no entry."""
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    return markdown_table(columns, [[row[name] for name in columns] for row in rows])


def _number(value: float | None, form: str = ".1e") -> str:
    return "" if value is None else format(value, form)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
