"""The ONNX graph of a checkpoint: uint8 NHWC pixels in, float32 logits out, any batch size."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from lipsformer.checkpoints.checkpoint import Checkpoint
from lipsformer.export.folding.network import fold as fold_network
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
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)  # a batch of 1 would become a constant
    with _quiet():
        program = torch.onnx.export(
            _network(checkpoint, precision, fold),
            (example,),
            dynamo=True,
            optimize=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=4096)}},
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    graph = program.model_proto
    _drop_traces(graph)
    del graph.graph.value_info[:]  # ONNX Runtime infers its own, and is up to 10% faster without these
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


def _drop_traces(graph: onnx.ModelProto) -> None:
    """Remove the exporter's notes about the source code: stack traces with paths of this machine."""
    del graph.metadata_props[:]
    for part in (*graph.graph.node, *graph.graph.input, *graph.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: deprecations inside torch, and that torchvision is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
