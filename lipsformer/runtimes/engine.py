"""Whether an engine file can run here, told from what the manifest says of it: asked before the file is touched.

An engine is machine code for one version of TensorRT and, unless it was built to be compatible, for one kind of GPU.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lipsformer.errors import InputError
from lipsformer.manifest import MANIFEST_NAME, BundleFile, read_manifest

from .nvidia import FLAVOURS, RTX, TENSORRT, Gpu, find_gpu, load_tensorrt

__all__ = ["PLATFORM", "engine_file", "engine_fits", "rebuild"]

PLATFORM = f"{sys.platform}-{platform.machine()}".lower()
COMPATIBLE_FROM = (8, 0)  # hardware compatibility, in both flavours, is for Ampere and what came after


def engine_fits(built: Mapping[str, Any]) -> str | None:
    """Why an engine cannot run here, in one line with the remedy, or None where it can.

    Args:
        built: what the engine was built with, from the manifest.
    """
    flavour = built.get("flavour")
    if flavour not in FLAVOURS:
        return f"built for {flavour!r}, which is not known; export the bundle again"
    try:
        version = load_tensorrt(flavour).__version__
        gpu = find_gpu(flavour)
    except InputError as error:
        return str(error)
    misfit = _misfit(built, flavour, version, gpu)
    return None if misfit is None else f"{misfit}; {rebuild(flavour)}"


def engine_file(engine: Path) -> BundleFile:
    """What the manifest beside an engine says of it; the hashes of the whole bundle are checked.

    Raises:
        InputError: if there is no manifest, or it does not name this file as an engine.
        GateError: if a file of the bundle is missing or its hash differs.
    """
    for file in read_manifest(engine.parent).files:
        if file.name == engine.name and file.kind == "engine":
            return file
    raise InputError(f"{engine}: the {MANIFEST_NAME} beside it names no such engine; keep it in the bundle it came in")


def rebuild(flavour: str) -> str:
    """The command that makes an engine for this machine."""
    option = "--trt-rtx" if flavour == RTX else "--trt"
    return f"build it on this machine: lipsformer export CHECKPOINT --output BUNDLE {option}"


def _misfit(built: Mapping[str, Any], flavour: str, version: str, gpu: Gpu) -> str | None:
    title = FLAVOURS[flavour].title
    if built.get("version") != version:
        return f"built by {title} {built.get('version')}, here is {version}"
    if flavour == TENSORRT and built.get("platform") != PLATFORM:  # engines for RTX run on any
        return f"built on {built.get('platform')}, here is {PLATFORM}"
    here = gpu.compute_capability
    if built.get("hardware_compatibility"):
        if _number(here) < COMPATIBLE_FROM:
            return f"built for GPUs of compute capability 8.0 and later, {gpu.name} has {here}"
    elif built.get("compute_capability") != here:
        return f"built for {built.get('gpu')} ({built.get('compute_capability')}), here is {gpu.name} ({here})"
    return None


def _number(compute_capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in compute_capability.split("."))
