"""An ONNX graph that grows node by node, and the tensors that its values stand for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

__all__ = ["DTYPES", "GraphBuilder"]

DTYPES: Mapping[torch.dtype, int] = {
    torch.uint8: TensorProto.UINT8,
    torch.float16: TensorProto.FLOAT16,
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
}
IR_VERSION = 10  # as torch.onnx writes it; the runtimes that a bundle is for read it


class GraphBuilder:
    """Nodes and constants of a graph. A tensor is known by its identity, and kept so that no other can have it.

    Args:
        names: what constants among these tensors are called.
    """

    def __init__(self, names: Mapping[str, Tensor]) -> None:
        self._names = {id(tensor): name for name, tensor in names.items()}
        self._values: dict[int, tuple[Tensor, str]] = {}
        self._constants: dict[Hashable, str] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._counts: Counter[str] = Counter()

    def add_input(self, tensor: Tensor, name: str) -> None:
        """Make a tensor (B, ...) an input, its first dimension of any size."""
        self._inputs.append(_value_info(tensor, name))
        self.add_tensor(tensor, name)

    def add_tensor(self, tensor: Tensor, name: str) -> None:
        """Remember that the graph's value `name` stands for this tensor."""
        self._values[id(tensor)] = (tensor, name)

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor depends on the input."""
        return id(tensor) in self._values

    def value(self, operand: Tensor | float, dtype: torch.dtype, *, named_after: Tensor | None = None) -> str:
        """The name of a tensor or number in this type; a constant or a cast is added where there is none yet."""
        if not isinstance(operand, Tensor):
            return self._constant(torch.tensor(operand, dtype=dtype))
        if self.holds(operand):
            name = self._values[id(operand)][1]
            return name if operand.dtype == dtype else self.node("Cast", name, to=DTYPES[dtype])
        name = self._names.get(id(operand if named_after is None else named_after), "")
        return self._constant(operand.detach().to(dtype), name)

    def integers(self, values: Sequence[int]) -> str:
        """The name of a constant of int64, as shapes and axes are."""
        return self._constant(torch.tensor(values, dtype=torch.int64))

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        return self.nodes(operator, 1, *inputs, **attributes)[0]

    def nodes(self, operator: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with `count` outputs; returns their names."""
        outputs = [self._unique(operator.lower()) for _ in range(count)]
        self._nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs

    def build(self, results: Mapping[str, Tensor], opset: int) -> onnx.ModelProto:
        """The graph whose outputs are the values of `results`, by name, their first dimension of any size."""
        renamed = {self._values[id(result)][1]: name for name, result in results.items()}
        for node in self._nodes:
            node.input[:] = [renamed.get(value, value) for value in node.input]
            node.output[:] = [renamed.get(value, value) for value in node.output]
        outputs = [_value_info(result, name) for name, result in results.items()]
        graph = helper.make_graph(self._nodes, "lipsformer", self._inputs, outputs, self._initializers)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION, producer_name="lipsformer"
        )

    def _constant(self, tensor: Tensor, name: str = "") -> str:
        value = tensor.contiguous().numpy()
        key = (name, value.dtype, value.shape, hashlib.sha256(value.data).digest())
        if key not in self._constants:
            self._constants[key] = self._unique(name or "constant")
            self._initializers.append(numpy_helper.from_array(value, self._constants[key]))
        return self._constants[key]

    def _unique(self, name: str) -> str:
        self._counts[name] += 1
        return name if self._counts[name] == 1 else f"{name}_{self._counts[name]}"


def _value_info(tensor: Tensor, name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, DTYPES[tensor.dtype], ["batch", *tensor.shape[1:]])
