"""Static int8: the matrix products of a float32 graph in eight bits, with scales that were measured on real images.

Only the products with weights are quantized, which are nearly all of the multiply-adds. A pair of QuantizeLinear and
DequantizeLinear guards each product's inputs; the residual trunk, norms, attention and depthwise convolutions stay
in float32. Scales are constants: an image's logits do not depend on the rest of its batch.

Fine quantization rounds each activation in two parts of eight bits: to its steps, and what that leaves to steps 254
times smaller. Each product is then a sum of two products of integers with the same weights. Certificates need it: one
part alone may move the features several times farther than what they promise (`bound.py`). The weights are then rounded
so that the products of the calibration's images change least (`rounding.py`), not to the nearest integers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from lipsformer.inference.runtimes import ONNX_METADATA_KEY, Pixels
from lipsformer.system.errors import InputError

from .calibration import measure_moments, measure_ranges
from .rounding import round_weights

__all__ = ["REST", "quantize"]

REST = ".rest"  # what the first part of a fine quantization leaves
NARROW = 8  # a product with fewer rows or columns of weights, as folded norms have, costs too little to gain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """The integer format of a target: the type of activations, unsigned or signed, and the largest weight."""

    activation: type[np.unsignedinteger | np.signedinteger]
    largest_weight: int


SCHEMES: Mapping[str, Scheme] = {
    # Seven bits of weights: CPUs without VNNI add two products u8 * s8 in 16 bits, and 2 * 255 * 64 still fits. With
    # eight they would saturate, and the outputs would differ from those of the machine that checked the export.
    "ort": Scheme(activation=np.uint8, largest_weight=64),
    # TensorRT supports only symmetric int8.
    "tensorrt": Scheme(activation=np.int8, largest_weight=127),
}


def quantize(graph: onnx.ModelProto, pixels: Pixels, *, target: str, fine: bool = False) -> onnx.ModelProto:
    """Quantize a float32 graph to int8; inputs, outputs and the rest of the metadata stay the same.

    Args:
        graph: a folded graph from `build_graph`.
        pixels: at least 16 real images (N, S, S, 3) to measure scales on, similar to those that will be classified.
        target: the runtime, "ort" or "tensorrt".
        fine: whether to round finely, see above; for "ort" only.

    Raises:
        InputError: if the graph has no product to quantize, or the images are too few.
    """
    scheme = SCHEMES[target]
    layers = _products(graph)
    if not layers:
        raise InputError("int8: the graph has no float32 product with weights to quantize; give a float32 export")
    activations = list(dict.fromkeys(node.input[0] for node in layers))
    ranges = measure_ranges(graph, activations, pixels)
    moments = measure_moments(graph, activations, pixels) if fine else {}

    quantized = onnx.ModelProto()
    quantized.CopyFrom(graph)
    rewriter = Rewriter(quantized.graph, scheme, ranges, moments)
    rewriter.rewrite({node.output[0] for node in layers})
    for entry in quantized.metadata_props:
        if entry.key == ONNX_METADATA_KEY:
            entry.value = json.dumps({**json.loads(entry.value), "precision": "int8"})
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def _products(graph: onnx.ModelProto) -> list[NodeProto]:
    """The products of tokens with constant float32 weights (in, out).

    Not a Gemm: its input is pooled, one token per image, so it costs little and is close to the logits.
    """
    weights = {
        tensor.name
        for tensor in graph.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2 and min(tensor.dims) >= NARROW
    }
    return [node for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in weights]


class Rewriter:
    """Inserts QuantizeLinear and DequantizeLinear at the inputs of some of a graph's products, in place."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        scheme: Scheme,
        ranges: Mapping[str, tuple[float, float]],
        moments: Mapping[str, NDArray[np.float64]],
    ) -> None:
        self.graph = graph
        self.scheme = scheme
        self.ranges = ranges
        self.moments = moments
        self.fine = bool(moments)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.done: set[str] = set()

    def rewrite(self, products: set[str]) -> None:
        """Quantize the products with these outputs."""
        nodes: list[NodeProto] = []
        for node in self.graph.node:
            if node.output[0] in products:
                nodes += (*self._activation(node.input[0]), *self._weights(node), *self._product(node))
            else:
                nodes.append(node)
        used = {name for node in nodes for name in node.input}
        kept = [tensor for name, tensor in self.initializers.items() if name in used]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(kept)

    def _activation(self, name: str) -> Iterator[NodeProto]:
        """Nodes that round a tensor to the steps of its range; its other consumers keep the original."""
        if name in self.done:
            return
        self.done.add(name)
        limits = np.iinfo(self.scheme.activation)
        low, high = self.ranges[name]
        if limits.min < 0:
            scale, zero = max(-low, high) / limits.max, 0
        else:
            scale = (high - low) / limits.max
            zero = round(-low / scale) if scale else 0
        scale = scale or 1.0  # the tensor is all zeros
        yield from self._rounding(name, scale, zero)
        if self.fine:  # what is left is within half a step, 127 smaller ones, on both sides
            yield helper.make_node("Sub", [name, f"{name}.dequantized"], [f"{name}{REST}"])
            yield from self._rounding(f"{name}{REST}", scale / 254, 128)

    def _rounding(self, name: str, scale: float, zero: int) -> Iterator[NodeProto]:
        self._constant(f"{name}.scale", np.float32(scale))
        self._constant(f"{name}.zero", self.scheme.activation(zero))
        parameters = [f"{name}.scale", f"{name}.zero"]
        yield helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}.quantized"])
        yield helper.make_node("DequantizeLinear", [f"{name}.quantized", *parameters], [f"{name}.dequantized"])

    def _product(self, node: NodeProto) -> Iterator[NodeProto]:
        """The product of what was rounded; of both parts, if there are two."""
        name, weights, output = node.input[0], f"{node.input[1]}.dequantized", node.output[0]
        if not self.fine:
            yield helper.make_node("MatMul", [f"{name}.dequantized", weights], [output])
            return
        parts = [(f"{name}.dequantized", f"{output}.coarse"), (f"{name}{REST}.dequantized", f"{output}{REST}")]
        for part, product in parts:
            yield helper.make_node("MatMul", [part, weights], [product])
        yield helper.make_node("Add", [product for _, product in parts], [output])

    def _weights(self, node: NodeProto) -> Iterator[NodeProto]:
        """The node that dequantizes a product's weights (in, out), stored in int8 with one scale per output channel."""
        read, name = node.input
        if name in self.done:
            return
        self.done.add(name)
        weights = numpy_helper.to_array(self.initializers[name]).astype(np.float64)
        largest = np.abs(weights).max(axis=0)
        scales = (np.where(largest > 0, largest, 1.0) / self.scheme.largest_weight).astype(np.float32)
        if self.fine:
            integers = round_weights(weights, scales, self.moments[read], self.scheme.largest_weight)
        else:
            integers = np.rint(weights / scales).astype(np.int8)
        self._constant(f"{name}.quantized", integers)
        self._constant(f"{name}.scales", scales)
        inputs = [f"{name}.quantized", f"{name}.scales"]
        yield helper.make_node("DequantizeLinear", inputs, [f"{name}.dequantized"], axis=1)

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> None:
        self.initializers[name] = numpy_helper.from_array(np.asarray(value), name)
