"""What this process may use of the machine: cores, devices by name, and a place for what can be fetched again."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["cache_folder", "check_device", "cores", "installed_versions", "torch_device", "visible_gpus"]

DEVICES = ("auto", "cpu", "cuda")
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # as a container sees its own


def cores() -> int:
    """Cores that this process may keep busy: those it may run on, and no more than its container's share of time."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(available, _share(CPU_LIMIT)))


def _share(limit: Path) -> int:
    """The cores' worth of time that a control group (version 2) grants, rounded up; a large number if all of it."""
    try:
        quota, period = limit.read_text(encoding="ascii").split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such group, or "max"
        return sys.maxsize


def visible_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names, as CUDA_VISIBLE_DEVICES takes them, of the NVIDIA GPUs that a process of this environment may use.

    Asked of the kernel's driver, so that a process that forks later need not have touched CUDA.
    """
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1", "NoDevFiles"))
    driver = Path("/proc/driver/nvidia/gpus")
    return tuple(str(index) for index, _ in enumerate(driver.iterdir())) if driver.is_dir() else ()


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those of `packages` that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def check_device(name: str) -> None:
    """Refuses a device that is not "auto", "cpu" or "cuda" with an `InputError`."""
    if name not in DEVICES:
        raise InputError(f"--device {name}: one of {', '.join(DEVICES)} is needed")


def torch_device(name: str) -> torch.device:
    """PyTorch's device for "auto" (CUDA where there is one), "cpu" or "cuda".

    Raises:
        InputError: if the name is another one, or "cuda" cannot be had.
    """
    import torch

    check_device(name)
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("--device cuda: PyTorch finds no CUDA device; run `lipsformer doctor`")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def cache_folder() -> Path:
    """$LIPSFORMER_CACHE, by default ~/.cache/lipsformer."""
    return Path(os.environ.get("LIPSFORMER_CACHE") or Path.home() / ".cache" / "lipsformer")
