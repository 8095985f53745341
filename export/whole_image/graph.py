"""A graph of the network with the crop and the resize in front of it."""

from __future__ import annotations

import onnx
from onnx import compose

from lipsformer.images.preprocessing import Preprocessing
from lipsformer.inference.runtimes import INPUT_NAME

from .resize import resize_graph

__all__ = ["WHOLE_IMAGE_NAME", "whole_image_graph"]

WHOLE_IMAGE_NAME = "whole-image.onnx"


def whole_image_graph(graph: onnx.ModelProto, preprocessing: Preprocessing) -> onnx.ModelProto:
    """The graph with `images`, uint8 RGB (batch, H, W, 3) of any size, in place of its input `pixels`.

    Outputs and metadata stay. The batch stays of unknown size: with a known one, ONNX Runtime would replace integer
    products of an int8 graph by products of floats.
    """
    (opset,) = (entry.version for entry in graph.opset_import if not entry.domain)
    resize = resize_graph(preprocessing, opset=opset, ir_version=graph.ir_version)
    compose.add_prefix(resize, "resize_", rename_inputs=False, inplace=True)
    whole = compose.merge_models(resize, graph, io_map=[(f"resize_{INPUT_NAME}", INPUT_NAME)])
    onnx.checker.check_model(whole, full_check=True)
    return whole
