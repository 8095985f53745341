"""The result of a speed measurement, as data and as a table."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from typing import Any

from lipsformer.system.console import printable
from lipsformer.system.hardware import cpu_name, installed_versions
from lipsformer.system.markdown import escape, markdown_table

from .candidates import Refusal

__all__ = ["BenchmarkReport", "Measurement", "Subject", "describe_machine", "format_speed"]

PACKAGES = ("lipsformer", "torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx")
NONE = "-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A measured model.

    `relative_l2` is the relative error of the logits against the first model, on the worst sample photo;
    `top1_agreement` is the share of the `photos` with the same top class. Both are None if the two models differ in
    their preprocessing or their number of classes. `parity` is the report of the check at export, for a bundle's file.
    """

    label: str
    provider: str
    precision: str | None
    file_bytes: int
    multiply_adds: int
    relative_l2: float | None
    top1_agreement: float | None
    photos: int
    parity: Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """A model (number `subject`, from 0) at one batch size; `rounds_ms` holds the median call of each round.

    Milliseconds are per call, from pixels to logits; `images_per_second` follows from the median call. `speedup` is the
    median over the rounds of the first model's median call divided by this one's. `memory_bytes` is the peak memory
    growth of the process after imports, for the model and for running it up to this batch; `gpu_memory_bytes` the same
    on the GPU. `sgemm_share` is a float32 model's share of a matrix product's speed on the CPU. None: not measured.
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
    """All models, all measurements by rising batch, and the files that could not be measured, with the reasons."""

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
        data = dataclasses.asdict(self)
        for subject in data["subjects"]:
            subject["proof"] = subject.pop("parity")  # the file format's name for it
        return data


def describe_machine(threads: int) -> dict[str, Any]:
    """The machine and the versions behind the numbers."""
    versions = installed_versions(PACKAGES)
    return {"cpu": cpu_name(), "threads": threads, "platform": platform.platform(), "versions": versions}


def format_speed(report: BenchmarkReport) -> str:
    """The report in Markdown."""
    machine, photos = report.machine, report.subjects[0].photos
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"# Speed of {printable(report.subjects[0].label)}{' and others' if len(report.subjects) > 1 else ''}",
        "",
        f"{machine['cpu']}, {machine['threads']} threads; {versions}.",
        f"{report.rounds} rounds. In each, every model runs for {report.seconds:g} s at every batch size.",
        "",
        _table(report),
        "",
        "speed-up: the first model's time divided by this one's, median over the rounds. memory: peak memory growth of",
        "the model's process after imports. sgemm: the model's operations per second, as a share of the "
        f"{report.sgemm_gflops:.0f} G",
        "of a float32 matrix product on the same cores. relative L2, same top-1: against the first model's outputs on",
        f"{photos} sample photos; relative L2 on the worst of them.",
    ]
    checked = [(subject.label, subject.parity) for subject in report.subjects if subject.parity]
    if checked:
        lines += ["", "Parity with the checkpoint, as checked when the bundle was exported:", ""]
        lines += [f"- {printable(label)}: {_parity(parity)}" for label, parity in checked]
    if report.refused:
        lines += ["", "Not measured:", ""]
        lines += [f"- {printable(item.label)}: {printable(item.reason)}" for item in report.refused]
    return "\n".join(lines)


def _table(report: BenchmarkReport) -> str:
    headings = ["model", "runs on", "batch", "p50 ms", "p99 ms", "images/s", "speed-up"]
    headings += ["memory MB", "file MB", "sgemm", "relative L2", "same top-1"]
    gpu = any(row.gpu_memory_bytes is not None for row in report.measurements)
    headings[8:8] = ["GPU MB"] * gpu
    rows = []
    for row in report.measurements:
        subject = report.subjects[row.subject]
        rows.append(
            [
                escape(subject.label),
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
    return markdown_table(headings, rows, "ll" + "r" * (len(headings) - 2))


def _parity(parity: Mapping[str, Any]) -> str:
    """The worst metrics of a parity report over its batch sizes, or why there are none."""
    if not parity.get("passed"):
        return f"not checked ({printable(str(parity.get('reason')))})"
    rows = parity["batches"]
    relative, agreement = max(row["relative_l2"] for row in rows), min(row["top1_agreement"] for row in rows)
    return f"relative L2 {relative:.1e}, same top-1 {agreement:.2%}, {parity['photos']} photos, {parity['provider']}"


def _megabytes(size: int | None) -> str:
    return NONE if size is None else f"{size / 1e6:.1f}"
