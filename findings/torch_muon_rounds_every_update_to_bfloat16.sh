#!/usr/bin/env bash
# torch.optim.Muon rounds every update to bfloat16: on a CPU too, and for float32 and float64 weights too.
#
# torch 2.13.0 (CPU). Muon replaces a matrix of gradients by the nearest orthogonal one, in five Newton-Schulz steps. PyTorch's
# own Muon casts the matrix to bfloat16 first, whatever its type and device, and no argument changes that. Each entry of an
# update so has 8 bits, even in a training in float64: it is off by about 1% of the float64 result, which changes what a
# comparison in high precision says. On a CPU without bfloat16 instructions (AVX2 only) these steps also took 25 times as long
# as in float32, most of a small network's whole training step; that depends on the processor and is not checked here.
#
# What to do: on a CPU, compute the same five steps in the weights' own type.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# From PyTorch's own index first: PyPI's wheel for Linux brings CUDA along.
"$work/venv/bin/pip" install --quiet --index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0' 2>/dev/null ||
    "$work/venv/bin/pip" install --quiet 'torch==2.13.0' 2>/dev/null
"$work/venv/bin/pip" install --quiet 'numpy==2.4.6' 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch

print("torch", torch.__version__)
for dtype in (torch.float32, torch.float64):
    weights = torch.nn.Parameter(torch.zeros(48, 48, dtype=dtype))
    # From zero, without momentum and decay, the weights after one step are minus the update.
    muon = torch.optim.Muon([weights], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False)
    weights.grad = torch.randn(48, 48, dtype=dtype, generator=torch.Generator().manual_seed(0))
    muon.step()
    update = -weights.detach()

    group, wanted = muon.param_groups[0], weights.grad / weights.grad.norm()
    a, b, c = group["ns_coefficients"]
    for _ in range(group["ns_steps"]):  # the same steps in the weights' own type
        gram = wanted @ wanted.T
        wanted = a * wanted + (b * gram + c * gram @ gram) @ wanted
    rounded = torch.equal(update, update.to(torch.bfloat16).to(dtype))
    error = float((update - wanted).norm() / wanted.norm())
    print(f"weights of {dtype}: every entry of the update is a bfloat16 number: {rounded}; relative error {error:.1e}")
    if not rounded or not 1e-3 < error < 1e-1:
        sys.exit("CHANGED: Muon no longer computes in bfloat16")
PYTHON
