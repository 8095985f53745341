"""The ONNX graph of a checkpoint: uint8 NHWC pixels in, float32 logits out, any batch size."""

from __future__ import annotations

import json
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from lipsformer.checkpoints.checkpoint import Checkpoint
from lipsformer.export.folding.network import fold as fold_network
from lipsformer.export.tracing.trace import trace
from lipsformer.inference.runtimes import INPUT_NAME, ONNX_METADATA_KEY, OUTPUT_NAME
from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.system.errors import InputError

__all__ = ["PixelsToLogits", "build_graph"]

OPSET = 20  # the first with a Gelu operator; below it every GELU is a chain of five


class PixelsToLogits(nn.Module):
    """A checkpoint's model as it was trained, with the normalization in front: uint8 (B, S, S, 3) to float32 (B, K)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.normalize = PixelNormalize(checkpoint.preprocessing)
        self.model = checkpoint.model

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model(self.normalize(pixels))
        return logits


def build_graph(
    checkpoint: Checkpoint, *, max_batch: int, precision: str = "fp32", fold: bool = True
) -> onnx.ModelProto:
    """Export the checkpoint to ONNX: `pixels` uint8 (batch, S, S, 3) to `logits` float32 (batch, K), batch dynamic.

    The graph includes the normalization. Its metadata holds class names, preprocessing, precision and `max_batch`, for
    tools that have only the file.

    Args:
        checkpoint: the trained model.
        max_batch: the largest batch that will be checked.
        precision: "fp32", or "fp16" for float16 between the stem and the head.
        fold: whether to fold; otherwise the graph is the network as it was trained.

    Raises:
        InputError: if `fold` is false and the precision is not fp32.
    """
    size = checkpoint.preprocessing.image_size
    graph = trace(
        _network(checkpoint, precision, fold),
        torch.zeros(1, size, size, 3, dtype=torch.uint8),
        input_name=INPUT_NAME,
        output_name=OUTPUT_NAME,
        opset=OPSET,
    )
    metadata: dict[str, Any] = {
        "model": checkpoint.config.to_dict(),
        "classes": list(checkpoint.classes),
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "max_batch": max_batch,
        "precision": precision,
    }
    onnx.helper.set_model_props(graph, {ONNX_METADATA_KEY: json.dumps(metadata)})
    onnx.checker.check_model(graph, full_check=True)
    return graph


def _network(checkpoint: Checkpoint, precision: str, fold: bool) -> nn.Module:
    if not fold:
        if precision != "fp32":
            raise InputError(f"--no-fold: {precision} needs the folded network; omit one of the two")
        return PixelsToLogits(checkpoint).eval()
    folded = fold_network(checkpoint.model, checkpoint.preprocessing)
    if precision == "fp16":
        folded.half_body()
        return folded
    return folded.float()
