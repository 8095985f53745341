"""int8 calibration: the ranges and second moments of a graph's tensors, measured on real images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lipsformer.export.extremes import extremes_of
from lipsformer.inference.runtimes import INPUT_NAME, Pixels, open_session
from lipsformer.system.console import track
from lipsformer.system.errors import InputError

__all__ = ["FEWEST", "measure_moments", "measure_ranges"]

FEWEST = 16  # images
# The share of images whose values are covered completely. The rest may be clipped, so that one odd image does not make
# the steps coarser for all. A percentile of the values would clip what is rare in every image, such as a large token.
COVERED = 0.98


def measure_ranges(graph: onnx.ModelProto, tensors: Sequence[str], pixels: Pixels) -> dict[str, tuple[float, float]]:
    """The lowest and highest value of each float tensor over 98% of the images; the range always includes 0.

    Each image runs alone; see `extremes_of`.

    Args:
        graph: a float32 graph from `pixels` to logits.
        tensors: names of tensors in it.
        pixels: real images (N, S, S, 3), similar to those that will be classified.

    Raises:
        InputError: if there are fewer than 16 images, or a value is not finite.
    """
    if len(pixels) < FEWEST:
        raise InputError(f"calibration: {len(pixels)} images, int8 needs at least {FEWEST}; give about 500")
    rows = []
    with track("calibrating", total=len(pixels)) as advance:
        for row in extremes_of(graph, tensors, pixels):
            rows.append(row)
            advance(1, "")
    extremes = np.stack(rows)  # (images, tensors, 2)
    if not np.isfinite(extremes).all():
        raise InputError("calibration: the network's values are not finite; the checkpoint cannot be used")
    low = np.minimum(np.quantile(extremes[..., 0], 1 - COVERED, axis=0), 0.0)
    high = np.maximum(np.quantile(extremes[..., 1], COVERED, axis=0), 0.0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(tensors)}


def measure_moments(graph: onnx.ModelProto, tensors: Sequence[str], pixels: Pixels) -> dict[str, NDArray[np.float64]]:
    """The sum of x x' over the last dimension of each float tensor, over all positions of all images: (C, C).

    Args:
        graph: a float32 graph from `pixels` to logits.
        tensors: names of tensors in it.
        pixels: real images (N, S, S, 3).
    """
    observed = onnx.ModelProto()
    observed.CopyFrom(graph)
    outputs = [f"{name}.moments" for name in tensors]
    for name, output in zip(tensors, outputs, strict=True):
        # the last dimension to the front, all others flat
        observed.graph.node.append(helper.make_node("Flatten", [name], [f"{name}.rows"], axis=-1))
        observed.graph.node.append(helper.make_node("Transpose", [f"{name}.rows"], [f"{name}.columns"], perm=[1, 0]))
        observed.graph.node.append(helper.make_node("MatMul", [f"{name}.columns", f"{name}.rows"], [output]))
        observed.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    session = open_session(observed.SerializeToString(), cuda=False)
    sums = [np.zeros((1, 1))] * len(tensors)
    for image in pixels:
        found = session.run(outputs, {INPUT_NAME: image[None]})
        sums = [before + np.asarray(moment, np.float64) for before, moment in zip(sums, found, strict=True)]
    return dict(zip(tensors, sums, strict=True))
