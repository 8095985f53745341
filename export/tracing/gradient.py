"""The gradient of a traced network, as functions of PyTorch that can be traced too.

PyTorch's own backward pass calls none, so a graph cannot hold it. A `Tape` remembers what a network computes; each
function has its rule for the gradient here. The rules are checked against PyTorch's gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Tape"]

# Operands, and functions that compute the gradient in each: only those that are needed are called.
Rule = Iterator[tuple[Any, Callable[[], Tensor]]]


class Tape(TorchFunctionMode):
    """Remembers each function that is called, while it is entered, with a tensor that depends on `start`."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.start = start
        self._tensors = {id(start): start}  # kept, so that no other tensor can have its identity
        self._calls: list[tuple[str, Any, tuple[Any, ...], Mapping[str, Any]]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        parts = _parts(result)
        if any(result is value for value in args):  # `contiguous` of what is contiguous already
            return result
        if parts and any(id(tensor) in self._tensors for value in args for tensor in _parts(value)):
            self._calls.append((func.__name__, result, args, kwargs))
            self._tensors |= {id(part): part for part in parts}
        return result

    def gradient(self, result: Tensor, weights: Tensor) -> Tensor:
        """The gradient of (`weights` * `result`).sum() in the tensor that the tape started with. Call it after leaving.

        Raises:
            NotImplementedError: if there is no rule for a function on the way.
        """
        gradients = {id(result): weights}
        for name, output, args, kwargs in reversed(self._calls):
            found = [gradients.get(id(part)) for part in _parts(output)]
            if not any(isinstance(gradient, Tensor) for gradient in found):
                continue
            if name not in RULES or any(gradient is None for gradient in found):
                raise NotImplementedError(f"no rule for the gradient of {name}; add it to export/tracing/gradient.py")
            given = found[0] if isinstance(output, Tensor) else found
            for operand, compute in RULES[name](given, output, *args, **kwargs):
                if id(operand) in self._tensors:
                    part = _summed(compute(), operand)
                    before = gradients.get(id(operand))
                    gradients[id(operand)] = part if before is None else before + part
        return gradients[id(self.start)]


def _parts(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [part for part in value if isinstance(part, Tensor)] if isinstance(value, list | tuple) else []


def _summed(gradient: Tensor, operand: Tensor) -> Tensor:
    """The gradient in an operand that was repeated along some dimensions; the first holds the batch."""
    for dim, (size, needed) in enumerate(zip(gradient.shape, operand.shape, strict=True)):
        if dim and needed == 1 and size != 1:
            gradient = gradient.sum(dim, True)
    return gradient


def add(g: Tensor, result: Tensor, a: Any, b: Any) -> Rule:
    yield a, lambda: g
    yield b, lambda: g


def sub(g: Tensor, result: Tensor, a: Any, b: Any) -> Rule:
    yield a, lambda: g
    yield b, lambda: g * -1.0


def mul(g: Tensor, result: Tensor, a: Any, b: Any) -> Rule:
    yield a, lambda: g * b
    yield b, lambda: g * a


def square(g: Tensor, result: Tensor, x: Tensor) -> Rule:
    yield x, lambda: g * x * 2.0


def rsqrt(g: Tensor, result: Tensor, x: Tensor) -> Rule:
    yield x, lambda: g * result * result * result * -0.5


def gelu(g: Tensor, result: Tensor, x: Tensor) -> Rule:
    def compute() -> Tensor:
        distribution = torch.erf(x * math.sqrt(0.5)) * 0.5 + 0.5
        density = torch.exp(x.square() * -0.5) * (1 / math.sqrt(2 * math.pi))
        return g * (distribution + x * density)

    yield x, compute


def softmax(g: Tensor, result: Tensor, x: Tensor, dim: int) -> Rule:
    yield x, lambda: result * (g - (g * result).sum(dim, True))


def layer_norm(
    g: Tensor, result: Tensor, x: Tensor, normalized_shape: tuple[int, ...], weight: Tensor, bias: Tensor, eps: float
) -> Rule:
    def compute() -> Tensor:
        centered = x - x.mean(-1, True)
        inverse = torch.rsqrt(centered.square().mean(-1, True) + eps)
        unit, scaled = centered * inverse, g * weight
        return inverse * (scaled - scaled.mean(-1, True) - unit * (scaled * unit).mean(-1, True))

    yield x, compute


def linear(g: Tensor, result: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Rule:
    yield x, lambda: g @ weight


def matmul(g: Tensor, result: Tensor, a: Tensor, b: Tensor) -> Rule:
    yield a, lambda: g @ b.transpose(-2, -1)
    yield b, lambda: a.transpose(-2, -1) @ g


def conv2d(
    g: Tensor,
    result: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Rule:
    whole = [
        (out - 1) * step - 2 * pad + apart * (kernel - 1) + 1
        for out, step, pad, apart, kernel in zip(g.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True)
    ]
    rest = tuple(size - reached for size, reached in zip(x.shape[2:], whole, strict=True))  # pixels that no filter saw
    yield x, lambda: F.conv_transpose2d(g, weight, None, stride, padding, rest, groups, dilation)


def mean(g: Tensor, result: Tensor, x: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Rule:
    dims = {at % x.ndim for at in ([dim] if isinstance(dim, int) else dim)}
    count = math.prod(x.shape[at] for at in dims)
    kept = [1 if at in dims else size for at, size in enumerate(x.shape)][1:]
    yield x, lambda: g.reshape(-1, *kept) * torch.full(x.shape[1:], 1.0 / count, dtype=x.dtype)


def sum_over(g: Tensor, result: Tensor, x: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Rule:
    return mean(g * float(x.numel() // result.numel()), result, x, dim, keepdim)


def permute(g: Tensor, result: Tensor, x: Tensor, *dims: int) -> Rule:
    yield x, lambda: g.permute(*(dims.index(at) for at in range(len(dims))))


def transpose(g: Tensor, result: Tensor, x: Tensor, first: int, second: int) -> Rule:
    yield x, lambda: g.transpose(first, second)


def reshape(g: Tensor, result: Tensor, x: Tensor, *shape: int) -> Rule:
    yield x, lambda: g.reshape(-1, *x.shape[1:])


def contiguous(g: Tensor, result: Tensor, x: Tensor) -> Rule:
    yield x, lambda: g


def cat(g: Tensor, result: Tensor, tensors: Sequence[Tensor], dim: int) -> Rule:
    if dim != -1:
        raise NotImplementedError("the gradient of a concatenation needs the last dimension")
    start = 0
    for tensor in tensors:
        stop = start + tensor.shape[-1]
        yield tensor, lambda start=start, stop=stop: g[..., start:stop]  # type: ignore[misc]
        start = stop


def chunk(g: list[Tensor], result: Sequence[Tensor], x: Tensor, chunks: int, dim: int) -> Rule:
    yield x, lambda: torch.cat(g, dim)


def unbind(g: list[Tensor], result: Sequence[Tensor], x: Tensor, dim: int) -> Rule:
    shape = [1 if at == dim else size for at, size in enumerate(x.shape)][1:]
    yield x, lambda: torch.cat([part.reshape(-1, *shape) for part in g], dim)


def last_elements(g: Tensor, result: Tensor, x: Tensor, index: tuple[Any, ...]) -> Rule:
    """x[..., start:stop], as `operators.py` has it."""
    start, stop, _ = index[-1].indices(x.shape[-1])
    yield x, lambda: torch.constant_pad_nd(g, (start, x.shape[-1] - stop))


def roll(g: Tensor, result: Tensor, x: Tensor, shifts: Sequence[int], dims: Sequence[int]) -> Rule:
    yield x, lambda: g.roll([-shift for shift in shifts], list(dims))


RULES: Mapping[str, Callable[..., Rule]] = {
    "add": add,
    "cat": cat,
    "chunk": chunk,
    "contiguous": contiguous,
    "conv2d": conv2d,
    "flatten": reshape,
    "gelu": gelu,
    "__getitem__": last_elements,
    "layer_norm": layer_norm,
    "linear": linear,
    "matmul": matmul,
    "mean": mean,
    "mul": mul,
    "permute": permute,
    "reshape": reshape,
    "roll": roll,
    "rsqrt": rsqrt,
    "softmax": softmax,
    "square": square,
    "sub": sub,
    "sum": sum_over,
    "transpose": transpose,
    "unbind": unbind,
}
