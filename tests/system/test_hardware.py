"""CPU cores and devices that this process may use."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from lipsformer.system import hardware
from lipsformer.system.errors import InputError
from tests.support.bf16 import AMX, AVX512, NEITHER, pretend_cpu


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("max 100000\n", 8),
        ("250000 100000\n", 3),
        ("50000 100000\n", 1),
        ("900000 100000\n", 8),
        ("nonsense", 8),
        (None, 8),
    ],
)
def test_a_containers_cpu_quota_limits_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, cores: int
) -> None:
    file = tmp_path / "cpu.max"
    if limit is not None:
        file.write_text(limit)
    monkeypatch.setattr(hardware, "CPU_LIMIT", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert hardware.cores() == cores


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0, GPU-7"}, ("0", "GPU-7")),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ()),
    ],
)
def test_cuda_visible_devices_decides(environment: dict[str, str], expected: tuple[str, ...]) -> None:
    assert hardware.visible_gpus(environment) == expected


def test_an_unknown_device_is_reported() -> None:
    with pytest.raises(InputError, match="--device gpu: one of auto, cpu, cuda is needed"):
        hardware.check_device("gpu")


@pytest.mark.parametrize(("flags", "expected"), [(AMX, "amx_bf16"), (AVX512, "avx512_bf16"), (NEITHER, None)])
def test_instructions_for_bf16(
    flags: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_cpu(flags, tmp_path, monkeypatch)
    assert hardware.bf16_instructions() == expected
    assert hardware.cpu_name() == "Imaginary CPU"


def test_a_system_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "CPU_INFO", tmp_path / "missing")
    assert hardware.bf16_instructions() is None
    assert hardware.cpu_name() == platform.machine()
