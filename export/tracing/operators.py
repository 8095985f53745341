"""The ONNX nodes of each function of PyTorch that the networks call.

Each takes the graph, the result that PyTorch gave, and the function's arguments; it returns the name of the result, or
a list of names. An argument that is not listed is refused, so that none is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .graph_builder import GraphBuilder

__all__ = ["OPERATORS"]

MOVED = "the batch is not the first dimension"
END = torch.iinfo(torch.int64).max  # the end of a slice that goes to the last element


def binary(operator: str) -> Callable[[GraphBuilder, Tensor, Tensor | float, Tensor | float], str]:
    """An operator of two tensors, or of a tensor and a number."""

    def build(graph: GraphBuilder, result: Tensor, a: Tensor | float, b: Tensor | float) -> str:
        return graph.node(operator, graph.value(a, result.dtype), graph.value(b, result.dtype))

    return build


def unary(operator: str) -> Callable[[GraphBuilder, Tensor, Tensor], str]:
    """An operator of one tensor and no settings."""

    def build(graph: GraphBuilder, result: Tensor, x: Tensor) -> str:
        return graph.node(operator, graph.value(x, x.dtype))

    return build


def reduction(operator: str) -> Callable[..., str]:
    """An operator over some dimensions."""

    def build(graph: GraphBuilder, result: Tensor, x: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> str:
        axes = graph.integers([dim] if isinstance(dim, int) else dim)
        return graph.node(operator, graph.value(x, x.dtype), axes, keepdims=int(keepdim))

    return build


def cast(graph: GraphBuilder, result: Tensor, x: Tensor, dtype: torch.dtype | None = None) -> str:
    return graph.value(x, result.dtype)


def rsqrt(graph: GraphBuilder, result: Tensor, x: Tensor) -> str:
    return graph.node("Reciprocal", graph.node("Sqrt", graph.value(x, x.dtype)))


def square(graph: GraphBuilder, result: Tensor, x: Tensor) -> str:
    name = graph.value(x, x.dtype)
    return graph.node("Mul", name, name)


def linear(graph: GraphBuilder, result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> str:
    name = graph.value(x, x.dtype)
    if x.ndim == 2:
        constants = [graph.value(tensor, x.dtype) for tensor in (weight, bias) if tensor is not None]
        return graph.node("Gemm", name, *constants, transB=1)
    product = graph.node("MatMul", name, graph.value(weight.t(), x.dtype, named_after=weight))
    return product if bias is None else graph.node("Add", product, graph.value(bias, x.dtype))


def conv2d(
    graph: GraphBuilder,
    result: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> str:
    inputs = [graph.value(tensor, x.dtype) for tensor in (x, weight, bias) if tensor is not None]
    return graph.node("Conv", *inputs, strides=stride, pads=[*padding, *padding], dilations=dilation, group=groups)


def conv_transpose2d(
    graph: GraphBuilder,
    result: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    output_padding: tuple[int, int],
    groups: int,
    dilation: tuple[int, int],
) -> str:
    return graph.node(
        "ConvTranspose",
        graph.value(x, x.dtype),
        graph.value(weight, x.dtype),
        strides=stride,
        pads=[*padding, *padding],
        output_padding=output_padding,
        dilations=dilation,
        group=groups,
    )


def softmax(graph: GraphBuilder, result: Tensor, x: Tensor, dim: int) -> str:
    return graph.node("Softmax", graph.value(x, x.dtype), axis=dim)


def layer_norm(
    graph: GraphBuilder,
    result: Tensor,
    x: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> str:
    inputs = [graph.value(tensor, x.dtype) for tensor in (x, weight, bias)]
    return graph.node("LayerNormalization", *inputs, axis=-len(normalized_shape), epsilon=eps)


def permute(graph: GraphBuilder, result: Tensor, x: Tensor, *dims: int) -> str:
    if dims[0] != 0:
        raise TypeError(f"{dims}: {MOVED}")
    return graph.node("Transpose", graph.value(x, x.dtype), perm=dims)


def transpose(graph: GraphBuilder, result: Tensor, x: Tensor, first: int, second: int) -> str:
    dims = list(range(x.ndim))
    dims[first], dims[second] = dims[second], dims[first]
    return permute(graph, result, x, *dims)


def reshape(graph: GraphBuilder, result: Tensor, x: Tensor, *shape: int) -> str:
    if shape[0] != -1:
        raise TypeError(f"{shape}: {MOVED}")
    return flatten(graph, result, x)


def flatten(graph: GraphBuilder, result: Tensor, x: Tensor, start: int = 0, stop: int = -1) -> str:
    """The first dimension holds the batch, and so any size: ONNX works it out."""
    return graph.node("Reshape", graph.value(x, x.dtype), graph.integers([-1, *result.shape[1:]]))


def cat(graph: GraphBuilder, result: Tensor, tensors: Sequence[Tensor], dim: int) -> str:
    return graph.node("Concat", *(graph.value(tensor, result.dtype) for tensor in tensors), axis=dim)


def chunk(graph: GraphBuilder, result: tuple[Tensor, ...], x: Tensor, chunks: int, dim: int) -> list[str]:
    sizes = graph.integers([part.shape[dim] for part in result])
    return graph.nodes("Split", len(result), graph.value(x, x.dtype), sizes, axis=dim)


def unbind(graph: GraphBuilder, result: tuple[Tensor, ...], x: Tensor, dim: int) -> list[str]:
    parts = graph.nodes("Split", len(result), graph.value(x, x.dtype), graph.integers([1] * len(result)), axis=dim)
    return [graph.node("Squeeze", part, graph.integers([dim])) for part in parts]


def last_elements(graph: GraphBuilder, result: Tensor, x: Tensor, index: tuple[Any, ...]) -> str:
    """x[..., start:stop]."""
    if index[:-1] != (Ellipsis,) or not isinstance(index[-1], slice) or index[-1].step is not None:
        raise TypeError(f"index {index}")
    start, stop, _ = index[-1].indices(x.shape[-1])
    return _slice(graph, graph.value(x, x.dtype), -1, start, stop)


def pad(graph: GraphBuilder, result: Tensor, x: Tensor, widths: tuple[int, int]) -> str:
    """Zeros in front of and behind the last dimension."""
    before, after = widths
    rest = [0] * (x.ndim - 1)
    return graph.node("Pad", graph.value(x, x.dtype), graph.integers([*rest, before, *rest, after]))


def roll(graph: GraphBuilder, result: Tensor, x: Tensor, shifts: Sequence[int], dims: Sequence[int]) -> str:
    name = graph.value(x, x.dtype)
    for shift, dim in zip(shifts, dims, strict=True):
        start = -shift % x.shape[dim]
        name = graph.node("Concat", _slice(graph, name, dim, start, END), _slice(graph, name, dim, 0, start), axis=dim)
    return name


def _slice(graph: GraphBuilder, name: str, dim: int, start: int, stop: int) -> str:
    return graph.node("Slice", name, graph.integers([start]), graph.integers([stop]), graph.integers([dim]))


OPERATORS: Mapping[str, Callable[..., str | list[str]]] = {
    "add": binary("Add"),
    "cat": cat,
    "chunk": chunk,
    "clamp_min": binary("Max"),
    "constant_pad_nd": pad,
    "contiguous": cast,
    "conv2d": conv2d,
    "conv_transpose2d": conv_transpose2d,
    "div": binary("Div"),
    "erf": unary("Erf"),
    "exp": unary("Exp"),
    "flatten": flatten,
    "float": cast,
    "gelu": unary("Gelu"),
    "__getitem__": last_elements,
    "layer_norm": layer_norm,
    "linalg_vector_norm": reduction("ReduceL2"),
    "linear": linear,
    "matmul": binary("MatMul"),
    "maximum": binary("Max"),
    "mean": reduction("ReduceMean"),
    "minimum": binary("Min"),
    "mul": binary("Mul"),
    "permute": permute,
    "reshape": reshape,
    "roll": roll,
    "rsqrt": rsqrt,
    "sigmoid": unary("Sigmoid"),
    "softmax": softmax,
    "sqrt": unary("Sqrt"),
    "square": square,
    "sub": binary("Sub"),
    "sum": reduction("ReduceSum"),
    "to": cast,
    "transpose": transpose,
    "unbind": unbind,
}
