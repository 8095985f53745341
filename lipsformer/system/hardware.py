"""CPU cores, devices, installed versions and the cache folder."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = [
    "CPU_INFO",
    "bf16_instructions",
    "cache_folder",
    "check_device",
    "cores",
    "cpu_name",
    "installed_versions",
    "peak_memory",
    "torch_device",
    "visible_gpus",
]

DEVICES = ("auto", "cpu", "cuda")
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # of this container
CPU_INFO = Path("/proc/cpuinfo")
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16")  # as Linux names them, the faster first


def cores() -> int:
    """The number of CPU cores available to this process: its affinity, limited by the container's CPU quota."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(available, _cpu_quota(CPU_LIMIT)))


def cpu_name() -> str:
    """The name of the processor on Linux, elsewhere its architecture."""
    return _cpu_info("model name") or platform.machine()


def bf16_instructions() -> str | None:
    """The CPU's instructions for bfloat16 products: "amx_bf16" or else "avx512_bf16"; None without, and off Linux."""
    flags = _cpu_info("flags").split()
    return next((name for name in BF16_INSTRUCTIONS if name in flags), None)


def _cpu_info(field: str) -> str:
    """What Linux says about the first processor, "" elsewhere."""
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _cpu_quota(limit: Path) -> int:
    """The CPU quota of a control group (version 2) in cores, rounded up; sys.maxsize without a quota."""
    try:
        quota, period = limit.read_text(encoding="ascii").split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such group, or "max"
        return sys.maxsize


def visible_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The NVIDIA GPUs that a process with this environment may use, as CUDA_VISIBLE_DEVICES names them.

    Read from the kernel's driver, so that CUDA is not initialized before a fork.
    """
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1", "NoDevFiles"))
    driver = Path("/proc/driver/nvidia/gpus")
    return tuple(str(index) for index, _ in enumerate(driver.iterdir())) if driver.is_dir() else ()


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of `packages`, as far as they are installed."""
    from importlib import metadata  # it takes as long to import as the command line

    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_device(name: str) -> None:
    """Checks a device name.

    Raises:
        InputError: if it is not "auto", "cpu" or "cuda".
    """
    if name not in DEVICES:
        raise InputError(f"--device {name}: one of {', '.join(DEVICES)} is needed")


def torch_device(name: str) -> torch.device:
    """The torch.device for "auto" (CUDA if available), "cpu" or "cuda".

    Raises:
        InputError: if the name is unknown, or CUDA is not available.
    """
    import torch

    check_device(name)
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("--device cuda: PyTorch finds no CUDA device; run `lipsformer doctor` for the reason")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def cache_folder() -> Path:
    """The folder for downloads and listings: $LIPSFORMER_CACHE, by default ~/.cache/lipsformer."""
    return Path(os.environ.get("LIPSFORMER_CACHE") or Path.home() / ".cache" / "lipsformer")


def peak_memory() -> int | None:
    """Peak memory of this process in bytes; None where the system does not report it.

    Not getrusage's ru_maxrss: on Linux that starts from the parent's.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
