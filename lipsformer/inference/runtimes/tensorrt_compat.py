"""Whether an engine can run here, according to its manifest entry; checked before the file is opened.

An engine is machine code for one version of TensorRT and, unless built with hardware compatibility, one kind of GPU.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from typing import Any

from lipsformer.system.errors import InputError

from .tensorrt_library import FLAVOURS, RTX, TENSORRT, Gpu, TensorRt, find_gpu, load_tensorrt

__all__ = ["PLATFORM", "engine_fits", "rebuild"]

PLATFORM = f"{sys.platform}-{platform.machine()}".lower()


def engine_fits(built: Mapping[str, Any]) -> str | None:
    """Why an engine cannot run here, in one line with the remedy; None if it can.

    Args:
        built: the facts about its build, from the manifest.
    """
    flavour = str(built.get("flavour"))
    if flavour not in FLAVOURS:
        return f"built by '{flavour}', which is unknown; export the bundle again"
    try:
        library = load_tensorrt(flavour)
        gpu = find_gpu(flavour)
    except InputError as error:
        return str(error)
    version = library.__version__
    if flavour == RTX and not _rtx_knows(library, gpu.capability):
        return f"{FLAVOURS[RTX].title} {version} does not support {gpu.name}; {rebuild(TENSORRT)}"
    misfit = _misfit(built, flavour, version, gpu)
    return None if misfit is None else f"{misfit}; {rebuild(flavour)}"


def rebuild(flavour: str) -> str:
    """The command that builds an engine for this machine."""
    option = "--trt-rtx" if flavour == RTX else "--trt"
    return f"build it on this machine: lipsformer export CHECKPOINT --output BUNDLE {option}"


def _misfit(built: Mapping[str, Any], flavour: str, version: str, gpu: Gpu) -> str | None:
    title, here = FLAVOURS[flavour].title, gpu.compute_capability
    if built.get("version") != version:
        return f"built by {title} {built.get('version')}, here is {version}"
    if flavour == TENSORRT and built.get("platform") != PLATFORM:  # engines for RTX run on any
        return f"built on {built.get('platform')}, here is {PLATFORM}"
    if built.get("hardware_compatibility"):
        if not gpu.compatible:
            return f"built for GPUs of compute capability 8.0 and later, {gpu.name} has {here}"
    elif built.get("compute_capability") != here:
        return f"built for {built.get('gpu')} ({built.get('compute_capability')}), here is {gpu.name} ({here})"
    return None


def _rtx_knows(library: TensorRt, here: tuple[int, ...]) -> bool:
    """Whether TensorRT for RTX supports a GPU: not data center ones (9.0, 10.0), but all after its newest."""
    names = [name.removeprefix("SM") for name in library.ComputeCapability.__members__]
    known = [divmod(int(name), 10) for name in names if name.isdigit()]
    return here in known or here > max(known)
