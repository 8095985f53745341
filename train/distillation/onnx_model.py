"""A teacher from an ONNX file that LipsFormer did not export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lipsformer.inference.runtimes import ONNX_METADATA_KEY, open_session
from lipsformer.system.errors import InputError

from .hashes import read_graph
from .settings import TeacherPreprocessing

__all__ = ["OnnxModel", "is_exported"]

TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(uint8)": torch.uint8,
}


def is_exported(path: Path) -> bool:
    """Whether `lipsformer export` wrote this ONNX file.

    Raises:
        InputError: if it is not an ONNX file.
    """
    return any(entry.key == ONNX_METADATA_KEY for entry in read_graph(path).metadata_props)


class OnnxModel:
    """Maps images in the layout of `table` to outputs (B, K) in ONNX Runtime. `dtype` is that of the images.

    A graph with a fixed batch gets as many images at a time, the last ones with repeats.

    Raises:
        InputError: if the file cannot be loaded, its input does not fit the table, or it has several outputs and the
            table names none.
    """

    def __init__(self, path: Path, table: TeacherPreprocessing, device: torch.device, threads: int) -> None:
        self.path = path
        self.session = open_session(path, cuda=device.type == "cuda", threads=threads)
        inputs, outputs = self.session.get_inputs(), [output.name for output in self.session.get_outputs()]
        if len(inputs) != 1 or inputs[0].type not in TYPES or len(inputs[0].shape) != 4:
            found = ", ".join(f"{value.name} {value.type} {value.shape}" for value in inputs)
            raise InputError(f"{path}: a teacher takes one batch of images with 4 axes, this takes {found}")
        self.input, self.dtype = inputs[0].name, TYPES[inputs[0].type]
        self.batch = self._check_shape(inputs[0].shape, table)
        self.output = table.output or outputs[0]
        if self.output not in outputs or (table.output is None and len(outputs) > 1):
            raise InputError(
                f"{path}: outputs {', '.join(outputs)}; name one as output in the recipe's [distillation.preprocessing]"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Outputs of images in the input's type and layout, as a tensor on the CPU."""
        parts = torch.split(images.cpu(), self.batch or len(images))
        return torch.cat([self._infer(part) for part in parts])

    def _infer(self, images: Tensor) -> Tensor:
        missing = (self.batch or len(images)) - len(images)
        batch = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images
        try:
            found: Any = self.session.run([self.output], {self.input: np.ascontiguousarray(batch.numpy())})[0]
        except Exception as error:  # noqa: BLE001 - ONNX Runtime raises its own types, without a common base
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{self.path}: ONNX Runtime cannot run it as a teacher ({reason})") from None
        return torch.from_numpy(found)[: len(images)]

    def _check_shape(self, shape: list[int | str | None], table: TeacherPreprocessing) -> int | None:
        """The fixed batch size, or None."""
        size = table.image_size
        needed = [3, size, size] if table.layout == "nchw" else [size, size, 3]
        if any(isinstance(found, int) and found != wanted for found, wanted in zip(shape[1:], needed, strict=True)):
            raise InputError(
                f"{self.path}: it takes images of shape {shape[1:]}, and [distillation.preprocessing] says "
                f"{needed} (image_size={size}, layout={table.layout!r}); correct image_size or layout"
            )
        return shape[0] if isinstance(shape[0], int) and shape[0] > 0 else None
