"""Export settings, validated before any work starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from lipsformer.bundle.manifest import PRECISIONS
from lipsformer.datasets import DatasetOptions
from lipsformer.export.parity.thresholds import THRESHOLDS, Limits
from lipsformer.inference.runtimes import import_onnxruntime
from lipsformer.inference.runtimes.openvino import check_bf16
from lipsformer.inference.runtimes.tensorrt_library import RTX, TENSORRT, find_gpu, load_tensorrt
from lipsformer.system.errors import InputError, suggest

__all__ = ["PACKAGES", "ExportSettings"]

# A bundle's answers may depend on the versions of these.
PACKAGES = ("lipsformer", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "pillow", "torch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Settings of an export.

    Args:
        precisions: any of "fp32", "fp16", "int8" and "bf16"; the first is the default at run time. bf16 is the fp32
            graph in OpenVINO, so it needs fp32, and its place does not matter (see `open_best`).
        fold: whether to fold scales, norms and biases into the weights, which leaves the outputs unchanged.
        max_batch: the largest batch to check and to serve.
        calibration: photos for int8 calibration: a folder or tar shards.
        parity_data: photos for the gate; by default those of `calibration` that were not used there, else the sample
            photos of the package.
        parity_images: how many photos the gate uses, evenly spread; mirror images make up for missing ones.
        trt: build TensorRT engines for this machine's GPU, and check them on it.
        trt_rtx: build engines for TensorRT for RTX; without a GPU they are not checked, and therefore not used.
        trt_check: have TensorRT for RTX build each graph that is for TensorRT, which needs no GPU.
        workspace: bytes of GPU memory that a layer of an engine may use in addition to its data; no limit by default.
        hardware_compatibility: make TensorRT's engines run on every GPU from Ampere on, but slower.
        whole_image: also write the graph of the first precision with the crop and the resize in front of it.
        explain: also write a graph of heat maps, compared with PyTorch's.
        thresholds: the limits of the gate by precision; see `read_thresholds`.
        dataset_options: how to read `calibration` and `parity_data`.

    Raises:
        InputError: if a setting is invalid, or two do not fit together.
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
    whole_image: bool = False
    explain: bool = False
    thresholds: Mapping[str, Limits] = dataclasses.field(default_factory=lambda: THRESHOLDS)
    dataset_options: DatasetOptions = dataclasses.field(default_factory=DatasetOptions)

    def __post_init__(self) -> None:
        if not self.precisions:
            raise InputError(f"--precision: give at least one of {', '.join(PRECISIONS)}")
        for precision in self.precisions:
            if precision not in PRECISIONS:
                raise InputError(f"--precision {precision}: unknown; {suggest(precision, PRECISIONS)}")
            if self.precisions.count(precision) > 1:
                raise InputError(f"--precision: {precision} is given twice")
        if "bf16" in self.precisions and "fp32" not in self.precisions:
            raise InputError("--precision bf16 is another way to run the fp32 graph; write --precision fp32,bf16")
        if "fp16" in self.precisions and not self.fold:
            raise InputError("--no-fold: fp16 needs the folded network; omit one of the two")
        for option, value in (("--max-batch", self.max_batch), ("--parity-images", self.parity_images)):
            if value < 1:
                raise InputError(f"{option} {value}: it must be at least 1")
        if "int8" in self.precisions and self.calibration is None:
            raise InputError("--precision int8 needs --calibration DATA: real photos, such as the training images")
        if "int8" not in self.precisions and self.calibration is not None:
            raise InputError("--calibration is for --precision int8; add it, or omit --calibration")
        if self.workspace is not None and not self.flavours:
            raise InputError("--workspace is for engines; add --trt or --trt-rtx, or omit --workspace")
        if self.workspace is not None and self.workspace < 1:
            raise InputError(f"--workspace {self.workspace}: it must be at least 1")
        if self.hardware_compatibility and not self.trt:
            raise InputError("--hardware-compatibility is for --trt; add it, or omit --hardware-compatibility")

    @property
    def graphs(self) -> tuple[str, ...]:
        """The precisions that have a graph."""
        return tuple(precision for precision in self.precisions if precision != "bf16")

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets of int8 graphs."""
        return ("ort", TENSORRT) if self.trt or self.trt_rtx or self.trt_check else ("ort",)

    @property
    def flavours(self) -> tuple[str, ...]:
        """The TensorRT libraries that build engines, the preferred one first."""
        return tuple(name for name, wanted in ((TENSORRT, self.trt), (RTX, self.trt_rtx)) if wanted)

    def check_libraries(self) -> None:
        """Check that every library that the export needs is installed.

        Raises:
            InputError: if a library is missing, or for TensorRT the GPU, or for bf16 the CPU's instructions.
        """
        import_onnxruntime()
        if "bf16" in self.precisions:
            check_bf16()
        if self.trt:
            load_tensorrt(TENSORRT)
            find_gpu(TENSORRT)
        if self.trt_rtx or self.trt_check:
            load_tensorrt(RTX)
