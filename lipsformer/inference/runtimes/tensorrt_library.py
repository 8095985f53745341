"""TensorRT's library, its log, and the GPU.

Order matters here. Without a GPU, TensorRT's Builder and Runtime crash the whole process. So PyTorch, which fails with
a reason instead, looks for the GPU before either is created.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib
import re
import sys
from collections import deque
from collections.abc import Iterable
from importlib import metadata
from typing import TYPE_CHECKING, Protocol, cast

from lipsformer.system.errors import InputError
from lipsformer.system.extras import require

if TYPE_CHECKING:
    import tensorrt as trt

    class Log(trt.ILogger):
        """Our TensorRT logger: `take` returns the last errors, then the last warnings, and clears them."""

        def take(self) -> list[str]: ...


__all__ = ["FLAVOURS", "RTX", "TENSORRT", "Gpu", "TensorRt", "find_gpu", "load_tensorrt", "log_of", "reason"]

TENSORRT, RTX = "tensorrt", "tensorrt-rtx"  # both are targets of a bundle's files
MESSAGES = 100  # kept from the log; a server runs for months


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flavour:
    """One of the two libraries: its display name, its module, and our extra that installs it."""

    title: str
    module: str
    extra: str


FLAVOURS = {
    TENSORRT: Flavour(title="TensorRT", module="tensorrt", extra="trt"),
    RTX: Flavour(title="TensorRT for RTX", module="tensorrt_rtx", extra="trt-rtx"),
}


class TensorRt(Protocol):
    """The module of either flavour: the names that we use, with the same meaning in both."""

    __version__: str
    Builder: type[trt.Builder]
    BuilderFlag: type[trt.BuilderFlag]
    ComputeCapability: type[trt.ComputeCapability]  # RTX only
    DataType: type[trt.DataType]
    DynamicShapesKernelSpecializationStrategy: type[trt.DynamicShapesKernelSpecializationStrategy]  # RTX only
    ExecutionContextAllocationStrategy: type[trt.ExecutionContextAllocationStrategy]
    HardwareCompatibilityLevel: type[trt.HardwareCompatibilityLevel]
    ILogger: type[trt.ILogger]
    MemoryPoolType: type[trt.MemoryPoolType]
    NetworkDefinitionCreationFlag: type[trt.NetworkDefinitionCreationFlag]
    OnnxParser: type[trt.OnnxParser]
    Runtime: type[trt.Runtime]
    TensorIOMode: type[trt.TensorIOMode]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """The first visible GPU; `cuda` is the newest CUDA version that its driver supports, if known."""

    name: str
    compute_capability: str
    cuda: str | None

    @property
    def capability(self) -> tuple[int, ...]:
        """The compute capability as numbers, so that 12.0 is above 8.0."""
        return tuple(int(part) for part in self.compute_capability.split("."))

    @property
    def compatible(self) -> bool:
        """Whether hardware compatibility, in both flavours, covers it: Ampere and later."""
        return self.capability >= (8, 0)


def load_tensorrt(flavour: str) -> TensorRt:
    """Import the module of a flavour, which does not touch the GPU.

    Raises:
        InputError: if it is not installed, or does not load.
    """
    known = FLAVOURS[flavour]
    require(known.extra, known.module)
    try:
        return cast("TensorRt", importlib.import_module(known.module))
    except Exception as error:  # noqa: BLE001 - wheels without their libraries fail in many ways
        raise InputError(
            f"{known.title} does not load ({reason([str(error)])}); "
            f"pip install --force-reinstall 'lipsformer[{known.extra}]'"
        ) from None


def find_gpu(flavour: str) -> Gpu:
    """The GPU to build or run an engine on.

    Raises:
        InputError: if PyTorch is missing or sees no GPU, or the driver is too old for PyTorch or for TensorRT.
    """
    title = FLAVOURS[flavour].title
    require(FLAVOURS[flavour].extra, "torch", what=title)  # engines run in its memory
    import torch

    if torch.version.cuda is None:
        raise InputError(f"{title} needs a GPU, and this PyTorch is built without CUDA; install PyTorch's CUDA build")
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call] # unlike is_available(), it says why not
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"{title} needs a GPU: {reason([str(error)])}; check whether `nvidia-smi` works") from None
    if torch.cuda.device_count() == 0:
        raise InputError(f"{title} needs a GPU, and none is visible; check `nvidia-smi` and CUDA_VISIBLE_DEVICES")
    cuda, needed = _driver_cuda(), _cuda_of(flavour)
    if cuda is not None and needed is not None and cuda[0] < needed:
        raise InputError(
            f"{title} is installed for CUDA {needed}, the driver runs CUDA {cuda[0]}.{cuda[1]}: "
            f"update the driver, or pip install {flavour}-cu{cuda[0]}"
        )
    properties = torch.cuda.get_device_properties(0)
    return Gpu(
        name=properties.name,
        compute_capability=f"{properties.major}.{properties.minor}",
        cuda=None if cuda is None else f"{cuda[0]}.{cuda[1]}",
    )


@functools.cache
def log_of(flavour: str) -> Log:
    """The only logger of a library in this process: TensorRT rejects a second one.

    Raises:
        InputError: if the library is missing.
    """
    base = load_tensorrt(flavour).ILogger

    class Collected(base):  # type: ignore[valid-type,misc] # mypy knows the base only as a value
        def __init__(self) -> None:
            base.__init__(self)
            self.messages: deque[tuple[int, str]] = deque(maxlen=MESSAGES)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if int(severity) <= int(base.Severity.WARNING):
                self.messages.append((int(severity), msg))

        def take(self) -> list[str]:
            taken = sorted(self.messages, key=lambda message: message[0])  # severe ones have low numbers
            self.messages.clear()
            return [text for _, text in taken]

    return cast("Log", Collected())


def reason(messages: Iterable[str]) -> str:
    """The first informative line of TensorRT's messages, without its source locations."""
    lines = [line.strip() for message in messages for line in message.splitlines()]
    # Without a GPU, an unrelated CUDA error comes with each error.
    telling = [line for line in lines if line and not line.startswith("Invalid Node") and "checkMacros.cpp" not in line]
    text = next(iter(telling or lines), "no reason given")
    return " ".join(re.sub(r"\s*In \w+ at [^\s)]+:\d+", "", text).split())[:300]


def _driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA version that the driver supports."""
    version = ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except OSError:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _cuda_of(flavour: str) -> int | None:
    """The CUDA version of the installed wheel, from the name of its distribution."""
    for cuda in (12, 13):
        try:
            metadata.version(f"{flavour}-cu{cuda}")
        except metadata.PackageNotFoundError:
            continue
        return cuda
    return None
