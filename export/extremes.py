"""The lowest and highest values of a graph's tensors, computed by the graph itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lipsformer.inference.runtimes import INPUT_NAME, Pixels, open_session

__all__ = ["extremes_of"]


def extremes_of(
    graph: onnx.ModelProto, tensors: Sequence[str], images: Iterable[Pixels]
) -> Iterator[NDArray[np.float64]]:
    """Yields (T, 2) for each image (S, S, 3), which runs alone: the lowest and the highest value of each tensor.

    Memory does not grow with images or tensors.

    Args:
        graph: a float32 graph from `pixels` to logits.
        tensors: names of T float tensors in it.
        images: the input.
    """
    outputs, observed = _observed(graph, tensors)
    session = open_session(observed.SerializeToString(), cuda=False)
    for image in images:
        yield np.asarray(session.run(outputs, {INPUT_NAME: image[None]}), np.float64).reshape(-1, 2)


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
