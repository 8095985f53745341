"""The ONNX graph of a checkpoint: uint8 NHWC pixels in, float32 logits and features out, any batch size."""

from __future__ import annotations

import base64
import json
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from lipsformer.checkpoints.checkpoint import Checkpoint
from lipsformer.evaluation.heat_maps.contributions import default_stage, logits_of, tokens_of
from lipsformer.export.folding.network import fold as fold_network
from lipsformer.export.tracing.gradient import Tape
from lipsformer.export.tracing.trace import trace
from lipsformer.inference.heat_map import CHOSEN_NAME, HEAT_MAP_OUTPUTS, STAGE_KEY
from lipsformer.inference.runtimes import FEATURES_NAME, INPUT_NAME, LOGITS_NAME, ONNX_METADATA_KEY
from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.system.errors import InputError

__all__ = ["PixelsToHeatMap", "PixelsToOutputs", "build_graph", "build_heat_map_graph"]

OPSET = 20  # the first with a Gelu operator; below it every GELU is a chain of five


class PixelsToOutputs(nn.Module):
    """A checkpoint's calibrated model, not folded, with the normalization in front.

    Maps uint8 (B, S, S, 3) to float32 logits (B, K) and features (B, C).
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.normalize = PixelNormalize(checkpoint.preprocessing)
        self.model = checkpoint.calibrated()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model.forward_features(self.normalize(pixels))
        return self.model.head(features), features


class PixelsToHeatMap(nn.Module):
    """A checkpoint's calibrated model, not folded, that explains its logits at the default stage.

    Maps uint8 (B, S, S, 3) and the chosen classes (B, K), 1 for the class and 0 elsewhere, to contributions (B, H, W),
    the class's logit (B,) and the head's bias for it (B,).
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.normalize = PixelNormalize(checkpoint.preprocessing)
        self.model = checkpoint.calibrated()
        self.stage = default_stage(checkpoint.config)

    def forward(self, pixels: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = tokens_of(self.model, self.normalize(pixels), self.stage)
        with Tape(tokens) as tape:
            logits = logits_of(self.model, tokens, self.stage)
        contributions = (tape.gradient(logits, chosen) * tokens).sum(-1)
        return contributions, (logits * chosen).sum(-1), (chosen * self.model.head.bias).sum(-1)


def build_heat_map_graph(checkpoint: Checkpoint) -> onnx.ModelProto:
    """Export the checkpoint's heat maps to ONNX, see `PixelsToHeatMap`; batch dynamic, float32."""
    size, network = checkpoint.preprocessing.image_size, PixelsToHeatMap(checkpoint).eval()
    inputs = {
        INPUT_NAME: torch.zeros(1, size, size, 3, dtype=torch.uint8),
        CHOSEN_NAME: torch.zeros(1, len(checkpoint.classes)),
    }
    graph = trace(network, inputs, output_names=HEAT_MAP_OUTPUTS, opset=OPSET)
    onnx.helper.set_model_props(graph, {STAGE_KEY: str(network.stage + 1)})
    onnx.checker.check_model(graph, full_check=True)
    return graph


def build_graph(
    checkpoint: Checkpoint, *, max_batch: int, precision: str = "fp32", fold: bool = True
) -> onnx.ModelProto:
    """Export the checkpoint to ONNX: `pixels` uint8 (batch, S, S, 3) to float32 `logits` (batch, K) and `features`
    (batch, C), batch dynamic.

    The graph includes the normalization and the temperature. Its metadata holds class names, preprocessing, precision,
    `max_batch`, and by which rule answers are accepted, for tools that have only the file.

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
        {INPUT_NAME: torch.zeros(1, size, size, 3, dtype=torch.uint8)},
        output_names=(LOGITS_NAME, FEATURES_NAME),
        opset=OPSET,
    )
    metadata: dict[str, Any] = {
        "model": checkpoint.config.to_dict(),
        "classes": list(checkpoint.classes),
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "max_batch": max_batch,
        "precision": precision,
        "temperature": checkpoint.temperature,
    }
    if checkpoint.acceptance is not None:
        metadata["acceptance"] = base64.b64encode(checkpoint.acceptance.to_bytes()).decode()
    onnx.helper.set_model_props(graph, {ONNX_METADATA_KEY: json.dumps(metadata)})
    onnx.checker.check_model(graph, full_check=True)
    return graph


def _network(checkpoint: Checkpoint, precision: str, fold: bool) -> nn.Module:
    if not fold:
        if precision != "fp32":
            raise InputError(f"--no-fold: {precision} needs the folded network; omit one of the two")
        return PixelsToOutputs(checkpoint).eval()
    folded = fold_network(checkpoint.calibrated(), checkpoint.preprocessing)
    if precision == "fp16":
        folded.half_body()
        return folded
    return folded.float()
