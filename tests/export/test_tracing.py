"""A traced graph computes in ONNX Runtime what PyTorch computes, for any batch; what it cannot hold is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipsformer.export.tracing.trace import trace


class Function(nn.Module):
    """A function as a module, with constants of its own."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 4, generator=generator))
        self.register_buffer("table", torch.randn(3, 4, generator=generator))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = self.function(self, x)
        return found if isinstance(found, tuple) else (found,)


def graph_of(function: Callable[..., Tensor], example: Tensor) -> onnx.ModelProto:
    graph = trace(
        Function(function),
        {"in": example},
        output_names=("out", "second")[: len(Function(function)(example))],
        opset=20,
    )
    onnx.checker.check_model(graph, full_check=True)
    return graph


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "arithmetic": lambda m, x: (x * 2 + m.table - 1) / (x.square() + 0.5),
    "products": lambda m, x: F.linear(x, m.weight) @ m.weight,
    "with a bias": lambda m, x: F.linear(x, m.weight, m.weight[:, 0]),
    "a bias of pooled tokens": lambda m, x: F.linear(x.mean(dim=1), m.weight, m.weight[:, 0]),
    "pooled tokens": lambda m, x: F.linear(x.mean(dim=1), m.weight),
    "roots": lambda _, x: torch.rsqrt(x.square() + 1) + torch.sqrt(x * x),
    "sums": lambda _, x: x.sum(dim=-1, keepdim=True) + x.mean(dim=(1, 2), keepdim=True),
    "a sum that drops its dimension": lambda _, x: x.sum(dim=1),
    "lengths": lambda _, x: torch.linalg.vector_norm(x, dim=-1, keepdim=True),
    "softmax": lambda _, x: torch.softmax(x, dim=1),
    "gelu": lambda _, x: F.gelu(x),
    "a norm": lambda m, x: F.layer_norm(x, (4,), m.weight[0], m.weight[1], 1e-3),
    "axes": lambda _, x: x.permute(0, 2, 1).transpose(-1, 1),
    "shapes": lambda _, x: x.reshape(-1, 3, 2, 2).flatten(0, 1).reshape(-1, 12),
    "a roll back": lambda _, x: x.roll((-1, 3), dims=(1, 2)),
    "a roll of all": lambda _, x: x.roll((3, -5), dims=(1, 2)),
    "parts": lambda _, x: torch.cat([part * (n + 1) for n, part in enumerate(x.chunk(2, dim=-1))], dim=1),
    "unequal parts": lambda _, x: x.chunk(2, dim=1)[1],
    "one by one": lambda _, x: x.unbind(1)[2] - x.unbind(1)[0],
    "the last": lambda _, x: x[..., -3:] * x[..., :3],
    "a convolution": lambda m, x: F.conv2d(
        x.reshape(-1, 1, 3, 4), m.weight.reshape(2, 1, 3, 4), None, (1, 2), (1, 2), (1, 1), 1
    ),
    "types": lambda _, x: (x.to(torch.float16) * 3).float() + x.contiguous(),
    "mixed types": lambda _, x: x.to(torch.float16) + x,
    "one value twice": lambda _, x: x + x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_computes_the_same_for_any_batch(name: str) -> None:
    graph = graph_of(FUNCTIONS[name], torch.zeros(1, 3, 4))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        x = torch.randint(-20, 20, (batch, 3, 4), generator=torch.Generator().manual_seed(batch)) / 8
        with torch.no_grad():
            (wanted,) = Function(FUNCTIONS[name])(x)
        (found,) = session.run(None, {"in": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), wanted)


def test_a_value_that_others_need_can_be_an_output_too() -> None:
    def function(m: Function, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = x * m.table
        return F.linear(inner, m.weight), inner

    graph = graph_of(function, torch.zeros(1, 3, 4))  # type: ignore[arg-type]
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    found = dict(zip(("out", "second"), session.run(["out", "second"], {"in": x.numpy()}), strict=True))
    module = Function(function)  # type: ignore[arg-type]
    for name, wanted in zip(("out", "second"), module(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(found[name]), wanted.detach())


def test_a_tiny_epsilon_is_kept() -> None:
    """torch.onnx.export drops one of 1e-8 or less, and zeros become NaN."""
    graph = graph_of(lambda _, x: x / torch.sqrt(x.square().sum(dim=-1, keepdim=True) + 1e-24), torch.ones(1, 3, 4))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"in": np.zeros((2, 3, 4), np.float32)})
    assert not found.any()


def test_what_does_not_depend_on_the_input_is_a_constant() -> None:
    graph = graph_of(lambda m, x: x @ torch.softmax(m.weight * 2, dim=1).t() + m.table.sum(), torch.zeros(1, 3, 4))
    assert [node.op_type for node in graph.graph.node] == ["MatMul", "Add"]


def test_constants_keep_the_names_of_the_network_and_are_stored_once() -> None:
    graph = graph_of(lambda m, x: F.linear(x * m.table, m.weight) + F.linear(x + 2, m.weight) * 2, torch.zeros(1, 3, 4))
    assert [tensor.name for tensor in graph.graph.initializer] == ["table", "weight", "constant"]
    with_two = graph_of(lambda m, x: F.linear(x, m.weight) @ m.weight, torch.zeros(1, 3, 4))
    assert [tensor.name for tensor in with_two.graph.initializer] == ["weight", "weight_2"]  # one is transposed
    weight = onnx.numpy_helper.to_array(graph.graph.initializer[1])
    assert weight.shape == (4, 6)  # as a product needs it
    assert np.array_equal(weight.T, Function(lambda _, x: x).weight.detach().numpy())


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda _, x: torch.tanh(x), r"no ONNX operator for tanh; add it to export/tracing/operators\.py"),
        (lambda _, x: F.gelu(x, approximate="tanh"), "no ONNX operator for these arguments of gelu: .*approximate"),
        (lambda m, x: torch.add(x, m.table, alpha=2), "no ONNX operator for these arguments of add: .*alpha"),
        (lambda _, x: x[:, 0], r"these arguments of __getitem__: index \(slice"),
        (lambda _, x: x[..., ::2], "these arguments of __getitem__: index"),
        (lambda _, x: x.add_(1), "no ONNX operator for add_"),
        (lambda _, x: x.reshape(3, -1), r"these arguments of reshape: \(3, -1\): the batch is not the first dimension"),
        (lambda _, x: x.reshape(3, 4), r"these arguments of reshape: \(3, 4\): the batch is not the first dimension"),
        (lambda _, x: x.permute(1, 0, 2), "these arguments of permute: .* the batch is not the first dimension"),
    ],
)
def test_what_it_does_not_know_is_refused(function: Callable[..., Tensor], told: str) -> None:
    with pytest.raises(NotImplementedError, match=told):
        graph_of(function, torch.zeros(1, 3, 4))
