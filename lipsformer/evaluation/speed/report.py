"""What was measured, as data and as tables."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lipsformer.system.console import printable
from lipsformer.system.hardware import installed_versions

from .candidates import Refusal

__all__ = ["BenchmarkReport", "Measurement", "Subject", "describe_machine", "render"]

PACKAGES = ("lipsformer", "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")
NONE = "-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that was measured.

    `relative_l2` is the worst sample photo's relative error of the logits against the first model, `top1_agreement` the
    share of the `photos` with the same top class; None where the two do not see the same pixels or name the same number
    of classes. `proof` is the report of the gate that a bundle's file passed when it was exported.
    """

    label: str
    provider: str
    precision: str | None
    file_bytes: int
    multiply_adds: int
    relative_l2: float | None
    top1_agreement: float | None
    photos: int
    proof: Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """A model (`subject` counts them from 0) at one batch size; `rounds_ms` has the median call of each round.

    Milliseconds are of a call, pixels to logits; `images_per_second` is at the median call. `speedup` is the median,
    over the rounds, of the first model's median call by this one's. `memory_bytes` is what the process grew by at most
    once its libraries were loaded: the model, and running it up to this batch; `gpu_memory_bytes` the same on the GPU.
    `sgemm_share` is the speed of a float32 model on the CPU beside the matrix product's. None: not measured.
    """

    subject: int
    batch: int
    calls: int
    rounds_ms: tuple[float, ...]
    p50_ms: float
    p99_ms: float
    images_per_second: float
    speedup: float
    memory_bytes: int | None
    gpu_memory_bytes: int | None
    sgemm_share: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """All models, all measurements (by rising batch), and what could not be measured, with the reasons."""

    machine: Mapping[str, Any]
    device: str
    rounds: int
    seconds: float
    sgemm_gflops: float
    subjects: tuple[Subject, ...]
    measurements: tuple[Measurement, ...]
    refused: tuple[Refusal, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def describe_machine(threads: int) -> dict[str, Any]:
    """What the numbers were measured on."""
    versions = installed_versions(PACKAGES)
    return {"cpu": _cpu(), "threads": threads, "platform": platform.platform(), "versions": versions}


def _cpu() -> str:
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def render(report: BenchmarkReport) -> str:
    """The report as Markdown that is also readable as it stands."""
    machine, photos = report.machine, report.subjects[0].photos
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"# Speed of {printable(report.subjects[0].label)}{' and others' if len(report.subjects) > 1 else ''}",
        "",
        f"{machine['cpu']}, {machine['threads']} threads; {versions}.",
        f"{report.rounds} rounds, a turn of {report.seconds:g} s for each model and batch size in each.",
        "",
        *_table(_speed_rows(report)),
        "",
        "speed-up: the first model's time by this one's, the median over the rounds. memory: what the model's process",
        "grew by at most once its libraries were loaded. sgemm: the model's operations per second beside the "
        f"{report.sgemm_gflops:.0f} G",
        "of a float32 matrix product on the same cores. relative L2, same top-1: against the first model's answers to",
        f"{photos} sample photos; the former of the worst of them.",
    ]
    proved = [subject for subject in report.subjects if subject.proof]
    if proved:
        lines += ["", "What was proved against the checkpoint when the bundle was exported:", ""]
        lines += [f"- {printable(subject.label)}: {_proof(subject.proof or {})}" for subject in proved]
    if report.refused:
        lines += ["", "Not measured:", ""]
        lines += [f"- {printable(item.label)}: {printable(item.reason)}" for item in report.refused]
    return "\n".join(lines)


def _speed_rows(report: BenchmarkReport) -> list[list[str]]:
    headings = ["model", "runs on", "batch", "p50 ms", "p99 ms", "images/s", "speed-up"]
    headings += ["memory MB", "file MB", "sgemm", "relative L2", "same top-1"]
    gpu = any(row.gpu_memory_bytes is not None for row in report.measurements)
    rows = [headings[:8] + ["GPU MB"] * gpu + headings[8:]]
    for row in report.measurements:
        subject = report.subjects[row.subject]
        rows.append(
            [
                printable(subject.label),
                subject.provider.removesuffix("ExecutionProvider"),
                str(row.batch),
                f"{row.p50_ms:.2f}",
                f"{row.p99_ms:.2f}",
                f"{row.images_per_second:.1f}",
                f"{row.speedup:#.3g}",
                _megabytes(row.memory_bytes),
                *[_megabytes(row.gpu_memory_bytes)] * gpu,
                _megabytes(subject.file_bytes),
                NONE if row.sgemm_share is None else f"{row.sgemm_share:.0%}",
                NONE if subject.relative_l2 is None else f"{subject.relative_l2:.1e}",
                NONE if subject.top1_agreement is None else f"{subject.top1_agreement:.1%}",
            ]
        )
    return rows


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * width if column < 2 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    padded = [
        [cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(cells)]
        for cells in (list(zip(row, widths, strict=True)) for row in (rows[0], rule, *rows[1:]))
    ]
    return ["| " + " | ".join(cells) + " |" for cells in padded]


def _proof(proof: Mapping[str, Any]) -> str:
    """The worst figures of a parity report over its batch sizes, or why there is none."""
    if not proof.get("passed"):
        return f"not proved ({printable(str(proof.get('reason')))})"
    rows = proof["batches"]
    relative, agreement = max(row["relative_l2"] for row in rows), min(row["top1_agreement"] for row in rows)
    return f"relative L2 {relative:.1e}, same top-1 {agreement:.2%}, {proof['photos']} photos, {proof['provider']}"


def _megabytes(size: int | None) -> str:
    return NONE if size is None else f"{size / 1e6:.1f}"
