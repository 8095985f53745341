"""CPUs with and without instructions for bf16, and a bundle with it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lipsformer.bundle.manifest import OPENVINO, BundleFile
from lipsformer.system.hardware import bf16_instructions
from tests.bundle.test_manifest import rewrite

AMX = "sse4_2 avx512f avx512_bf16 amx_bf16 amx_tile"
AVX512 = "sse4_2 avx512f avx512_bf16"
NEITHER = "sse4_2 avx2 avx512f avx512_vnni"

needs_bf16 = pytest.mark.skipif(bf16_instructions() is None, reason="this CPU has neither AMX nor AVX512-BF16")


def pretend_cpu(flags: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the processor one with these flags."""
    file = folder / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: Imaginary CPU\nflags\t\t: {flags}\n")
    monkeypatch.setattr("lipsformer.system.hardware.CPU_INFO", file)


def add_bf16(bundle: Path, output: Path, **facts: Any) -> Path:
    """A copy of a bundle whose fp32 graph was measured in bf16 too, and was faster; `facts` change its entry."""
    shutil.copytree(bundle, output)
    speedup = {"cpu": "Imaginary CPU", "instructions": bf16_instructions(), "threads": 2, "ratios": {"1": 1.8, "16": 2}}
    entry = {"target": OPENVINO, "precision": "bf16", "parity": {"passed": True}, "speedup": speedup, **facts}
    file = vars(BundleFile.describe(output / "ort-fp32.onnx", "onnx", **entry))
    rewrite(output, lambda manifest: manifest["files"].append(file))
    return output
