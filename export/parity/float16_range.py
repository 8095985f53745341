"""Whether the float16 values of a network stay in float16's range, which ends at 65,504.

The parity check cannot show it on a CPU: ONNX Runtime 1.32 computes float16 nodes in float32 there and drops the casts
in between, so nothing overflows (findings/onnxruntime_cpu_computes_float16_in_float32.sh). On a GPU and in TensorRT it
would.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx
from onnx import TensorProto, shape_inference

from lipsformer.export.extremes import extremes_of
from lipsformer.system.errors import GateError

from .gate_images import GateImages

__all__ = ["check_float16_range"]

LARGEST = float(np.finfo(np.float16).max)
MOVES = ("Cast", "Concat", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose")  # they compute no value


def check_float16_range(half: onnx.ModelProto, exact: onnx.ModelProto, images: GateImages, file: str) -> None:
    """Compute each image in float32 and look at all values that are float16 in the graph `half`.

    Args:
        half, exact: the graphs of one checkpoint in fp16 and fp32, whose values have the same names.
        images: those of the gate; each runs alone.
        file: the name of the fp16 file, for messages.

    Raises:
        GateError: if a value of an image is beyond float16's range.
    """
    names = _float16_values(half)
    for extremes in extremes_of(exact, names, itertools.chain(images.photos, images.hard)):
        found = np.abs(extremes).max(axis=1)
        if not (found <= LARGEST).all():
            worst = int(np.argmax(found))
            raise GateError(
                f"{file}: no bundle written: the network's values reach {found[worst]:,.0f} ('{names[worst]}'), and "
                f"float16 ends at {LARGEST:,.0f}; export fp32 or int8"
            )


def _float16_values(graph: onnx.ModelProto) -> list[str]:
    """The names of the values that the graph computes in float16."""
    inferred = shape_inference.infer_shapes(graph).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    computed = [name for node in graph.graph.node if node.op_type not in MOVES for name in node.output]
    return [name for name in computed if types.get(name) == TensorProto.FLOAT16]
