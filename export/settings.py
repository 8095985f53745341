"""What an export is asked for, checked before any work is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from lipsformer.bundle.manifest import PRECISIONS
from lipsformer.export.parity.thresholds import THRESHOLDS, Limits
from lipsformer.inference.runtimes import import_onnxruntime
from lipsformer.inference.runtimes.tensorrt_library import RTX, TENSORRT, find_gpu, load_tensorrt
from lipsformer.system.errors import InputError, suggest

__all__ = ["ExportSettings"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """How a checkpoint is exported.

    Args:
        precisions: of "fp32", "fp16" and "int8"; the first is the one that is run unless another is asked for.
        fold: whether to fold scales, norms and biases into the weights; the answers are the same.
        max_batch: the largest batch that is proved and will be served.
        calibration: photos that int8's scales are measured on: a folder or tar shards.
        parity_data: photos for the gate; by default those of `calibration` that were not used there, else the sample
            photos that the package ships.
        parity_images: how many photos the gate sees, evenly spread; their mirror images make up for missing ones.
        trt: build engines by TensorRT for this machine's GPU, and prove them on it.
        trt_rtx: build engines by TensorRT for RTX; without a GPU they are built and not proved, and so not run.
        trt_check: have TensorRT for RTX build each graph that is for TensorRT, which needs no GPU.
        workspace: bytes of GPU memory that a layer of an engine may use besides its data; by default all there is.
        hardware_compatibility: make TensorRT's engines run on every GPU from Ampere on, and slower.
        thresholds: what the gate demands, by precision; see `thresholds.read_thresholds`.

    Raises:
        InputError: if the settings cannot be met.
    """

    precisions: tuple[str, ...] = ("fp32",)
    fold: bool = True
    max_batch: int = 16
    calibration: Path | None = None
    parity_data: Path | None = None
    parity_images: int = 256
    trt: bool = False
    trt_rtx: bool = False
    trt_check: bool = False
    workspace: int | None = None
    hardware_compatibility: bool = False
    thresholds: Mapping[str, Limits] = dataclasses.field(default_factory=lambda: THRESHOLDS)

    def __post_init__(self) -> None:
        if not self.precisions:
            raise InputError(f"--precision: give at least one of {', '.join(PRECISIONS)}")
        for precision in self.precisions:
            if precision not in PRECISIONS:
                raise InputError(f"--precision {precision}: not known; {suggest(precision, PRECISIONS)}")
            if self.precisions.count(precision) > 1:
                raise InputError(f"--precision: {precision} is given twice")
        if "fp16" in self.precisions and not self.fold:
            raise InputError("--no-fold: fp16 is made of the folded network alone; leave one of the two out")
        for option, value in (("--max-batch", self.max_batch), ("--parity-images", self.parity_images)):
            if value < 1:
                raise InputError(f"{option} {value}: at least 1 is needed")
        if "int8" in self.precisions and self.calibration is None:
            raise InputError("--precision int8 needs --calibration DATA: real photos, such as those of the training")
        if "int8" not in self.precisions and self.calibration is not None:
            raise InputError("--calibration is for --precision int8; add it or leave the calibration away")

        if self.workspace is not None and not self.flavours:
            raise InputError("--workspace is for engines; add --trt or --trt-rtx, or leave it away")
        if self.workspace is not None and self.workspace < 1:
            raise InputError(f"--workspace {self.workspace}: at least 1 is needed")
        if self.hardware_compatibility and not self.trt:
            raise InputError("--hardware-compatibility is for --trt; add it or leave this away")

    @property
    def targets(self) -> tuple[str, ...]:
        """Who int8 graphs are made for."""
        return ("ort", TENSORRT) if self.trt or self.trt_rtx or self.trt_check else ("ort",)

    @property
    def flavours(self) -> tuple[str, ...]:
        """Which of the two TensorRTs build engines; the one that is to be run first comes first."""
        return tuple(name for name, wanted in ((TENSORRT, self.trt), (RTX, self.trt_rtx)) if wanted)

    def check_libraries(self) -> None:
        """Looks for all that the export needs, before it costs anything.

        Raises:
            InputError: if a library or, for TensorRT, the GPU is missing.
        """
        import_onnxruntime()
        if self.trt:
            load_tensorrt(TENSORRT)
            find_gpu(TENSORRT)
        if self.trt_rtx or self.trt_check:
            load_tensorrt(RTX)
