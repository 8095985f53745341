"""Traces a network to an ONNX graph by running it once and writing down every function of PyTorch that it calls.

What does not depend on the input is a constant of the graph, with the value that the run gave it. For these networks
`torch.onnx.export` gives the same nodes, but takes minutes where this takes seconds, and its optimizer drops an epsilon
of 1e-8 or less, so that zeros become NaN (findings/torch_onnx_drops_a_small_epsilon.sh).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .graph_builder import GraphBuilder
from .operators import OPERATORS

__all__ = ["trace"]


def trace(
    network: nn.Module, inputs: Mapping[str, Tensor], *, output_names: Sequence[str], opset: int
) -> onnx.ModelProto:
    """The ONNX graph of `network`, with a first dimension of any size ("batch") where `inputs` have their own.

    The batch has to stay the first dimension of every tensor that depends on the input, alone or multiplied by a number
    of windows; nothing else may depend on it.

    Args:
        network: takes tensors (B, ...) and returns a tuple of tensors (B, ...), in inference mode.
        inputs: examples by the names of the graph's inputs; their values do not matter.
        output_names: of the graph's outputs.
        opset: the version of ONNX's operators.

    Raises:
        NotImplementedError: if the network calls a function, or uses an argument, that `operators.py` does not list.
    """
    graph = GraphBuilder({**dict(network.named_parameters()), **dict(network.named_buffers())})
    for name, example in inputs.items():
        graph.add_input(example, name)
    with torch.no_grad(), _Recorder(graph):
        results = network(*inputs.values())
    return graph.build(dict(zip(output_names, results, strict=True)), opset)


class _Recorder(TorchFunctionMode):
    """Adds the nodes of each function that gets a tensor of the graph."""

    def __init__(self, graph: GraphBuilder) -> None:
        super().__init__()
        self.graph = graph

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        results = [result] if isinstance(result, Tensor) else result
        if not isinstance(results, list | tuple) or not any(isinstance(part, Tensor) for part in results):
            return result  # a shape, a type
        if not any(self.graph.holds(tensor) for tensor in _tensors((args, kwargs))):
            return result  # a constant
        operator = OPERATORS.get(func.__name__)
        if operator is None:
            raise NotImplementedError(f"no ONNX operator for {func.__name__}; add it to export/tracing/operators.py")
        try:
            names = operator(self.graph, result, *args, **kwargs)
        except TypeError as error:
            raise NotImplementedError(f"no ONNX operator for these arguments of {func.__name__}: {error}") from error
        for part, name in zip(results, [names] if isinstance(names, str) else names, strict=True):
            self.graph.add_tensor(part, name)
        return result


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
