"""int8 calibration: the ranges of a graph's tensors, measured on real images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from lipsformer.inference.runtimes import INPUT_NAME, Pixels, open_session
from lipsformer.system.console import track
from lipsformer.system.errors import InputError

__all__ = ["FEWEST", "measure_ranges"]

FEWEST = 16  # images
# The share of images whose values are covered completely. The rest may be clipped, so that one odd image does not make
# the steps coarser for all. A percentile of the values would clip what is rare in every image, such as a large token.
COVERED = 0.98


def measure_ranges(graph: onnx.ModelProto, tensors: Sequence[str], pixels: Pixels) -> dict[str, tuple[float, float]]:
    """The lowest and highest value of each float tensor over 98% of the images; the range always includes 0.

    Each image runs alone and the graph itself computes the extremes, so memory does not grow with images or tensors.

    Args:
        graph: a float32 graph from `pixels` to logits.
        tensors: names of tensors in it.
        pixels: real images (N, S, S, 3), similar to those that will be classified.

    Raises:
        InputError: if there are fewer than 16 images, or a value is not finite.
    """
    if len(pixels) < FEWEST:
        raise InputError(f"calibration: {len(pixels)} images, int8 needs at least {FEWEST}; give about 500")
    outputs, observed = _observed(graph, tensors)
    session = open_session(observed.SerializeToString(), cuda=False)
    rows = []
    with track("calibrating", total=len(pixels)) as advance:
        for image in pixels:
            rows.append(session.run(outputs, {INPUT_NAME: image[None]}))
            advance(1, "")
    extremes = np.asarray(rows, dtype=np.float64).reshape(len(pixels), len(tensors), 2)
    if not np.isfinite(extremes).all():
        raise InputError("calibration: the network's values are not finite; the checkpoint cannot be used")
    low = np.minimum(np.quantile(extremes[..., 0], 1 - COVERED, axis=0), 0.0)
    high = np.maximum(np.quantile(extremes[..., 1], COVERED, axis=0), 0.0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(tensors)}


def _observed(graph: onnx.ModelProto, tensors: Sequence[str]) -> tuple[list[str], onnx.ModelProto]:
    """The graph with two more outputs for each tensor, its minimum and maximum; and their names, in that order."""
    observed = onnx.ModelProto()
    observed.CopyFrom(graph)
    outputs = []
    for name in tensors:
        for reduction in ("ReduceMin", "ReduceMax"):
            output = f"{name}.{reduction}"
            observed.graph.node.append(helper.make_node(reduction, [name], [output], keepdims=0))
            observed.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
            outputs.append(output)
    return outputs, observed
