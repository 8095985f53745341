#!/usr/bin/env bash
# torch.onnx.export drops an added epsilon of 1e-8 or less, so a normalization that PyTorch guards answers NaN in ONNX.
#
# torch 2.13.0 (CPU) with onnxscript 0.7.2, onnx-ir 1.1.0, onnxruntime 1.32.0. For x / sqrt(sum(x * x) + epsilon) the graph
# has an Add with epsilon 1e-7, and none with 1e-8, 1e-12 or 1e-24. A vector of zeros then gives 0 / 0: PyTorch
# answers 0, ONNX Runtime NaN. onnxscript's optimizer, on by default, rewrites x + 0 to x, and compares the constant with 0
# by math.isclose and an absolute tolerance of 1e-8 (the default of its pattern constants). No message says so, and a check on
# random inputs passes: only inputs near zero differ. With optimize=False the Add stays.
#
# What to do: compare the exported graph on zeros, or use torch.clamp(length, min=epsilon).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# From PyTorch's own index first: PyPI's wheel for Linux brings CUDA along.
"$work/venv/bin/pip" install --quiet --index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0' 2>/dev/null ||
    "$work/venv/bin/pip" install --quiet 'torch==2.13.0' 2>/dev/null
"$work/venv/bin/pip" install --quiet 'onnx==1.23.2' 'onnx-ir==1.1.0' 'onnxscript==0.7.2' 'onnxruntime==1.32.0' \
    'numpy==2.4.6' 2>/dev/null
"$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys
import warnings
from importlib.metadata import version

import numpy as np
import onnxruntime
import torch

warnings.simplefilter("ignore")
print(*(f"{name} {version(name)}" for name in ("torch", "onnxscript", "onnx-ir", "onnxruntime")))


class Unit(torch.nn.Module):
    def __init__(self, epsilon):
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x):
        return x / torch.sqrt((x * x).sum(dim=-1, keepdim=True) + self.epsilon)


def answers(epsilon, x, **options):
    model = Unit(epsilon)
    program = torch.onnx.export(model, (torch.ones(2, 3),), dynamo=True, verbose=False, **options)
    graph = program.model_proto
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return [node.op_type for node in graph.graph.node], model(x).numpy(), found


zeros, photo = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0], [0.1, -0.2, 0.3]])
for epsilon, options, kept in ((1e-7, {}, True), (1e-8, {}, False), (1e-24, {}, False), (1e-24, {"optimize": False}, True)):
    nodes, wanted, found = answers(epsilon, zeros, **options)
    print(f"epsilon {epsilon:g} {options or ''}: {nodes}; PyTorch {wanted[0]}, ONNX Runtime {found[0]}")
    if ("Add" in nodes) != kept or np.isnan(found).any() == kept or wanted.any():
        sys.exit("CHANGED: the epsilon is treated differently")
    _, wanted, found = answers(epsilon, photo, **options)
    if not np.allclose(wanted, found, rtol=1e-5):
        sys.exit("CHANGED: other inputs differ too")
PYTHON
echo 'As found: an epsilon of 1e-8 or less is gone from the graph, and zeros become NaN.'
