#!/usr/bin/env bash
# oneDNN has a kernel for the gradient of depthwise weights for 3x3 filters only, and not for maps of two rows.
#
# torch 2.13.0 (CPU; its oneDNN is 3.12.0), held to AVX2 so that every x86-64 processor shows the same. Training a depthwise
# convolution on a CPU takes three of oneDNN's primitives: the convolution, the gradient of its input and that of its weights.
# The first two have a kernel of their own (`jit_dw`) for 3x3, 5x5 and 7x7 filters. The third has one for 3x3 on maps of at
# least three rows. All other cases, so every 7x7 filter of a ConvNeXt, a LipsFormer or a RepLKNet, fall back to one matrix
# product per channel, with no word but in oneDNN's verbose output. For 32 maps of 64 channels and 8 x 8 pixels the 7x7
# gradient took 80 times as long as the 3x3 one, for 5.4 times the arithmetic; the times are printed but not checked.
#
# What to do: compute this gradient yourself. On small maps it is a batched matrix product over all pairs of positions.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# From PyTorch's own index first: PyPI's wheel for Linux brings CUDA along.
"$work/venv/bin/pip" install --quiet --index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0' 2>/dev/null ||
    "$work/venv/bin/pip" install --quiet 'torch==2.13.0' 2>/dev/null
"$work/venv/bin/pip" install --quiet 'numpy==2.4.6' 2>/dev/null
cat > "$work/step.py" <<'PYTHON'
import sys

import torch

side, kernel = (int(word) for word in sys.argv[1:])
torch.set_num_threads(1)
layer = torch.nn.Conv2d(64, 64, kernel, padding=kernel // 2, groups=64, bias=False)
for _ in range(2):  # the second run is the one that counts: the first makes the kernels
    maps = torch.randn(32, 64, side, side, requires_grad=True)
    layer(maps).sum().backward()
PYTHON
cat > "$work/check.py" <<'PYTHON'
import os
import subprocess
import sys

import torch

print("torch", torch.__version__, torch.__config__.show().split("MKL-DNN ")[1].split(" (")[0])
for side, kernel, wanted in ((8, 3, "jit_dw"), (3, 3, "jit_dw"), (2, 3, "gemm"), (8, 5, "gemm"), (8, 7, "gemm"), (16, 7, "gemm")):
    found = subprocess.run(
        [sys.executable, sys.argv[1], str(side), str(kernel)],
        env={**os.environ, "ONEDNN_VERBOSE": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True, text=True, check=True,
    ).stdout
    kernels = {}
    for line in found.splitlines():
        fields = line.split(",")
        if "exec" in fields and "convolution" in fields:
            at = fields.index("convolution")
            kernels[fields[at + 2]] = (fields[at + 1], float(fields[-1]))
    shown = ", ".join(f"{name} {kind} {time:.2f} ms" for name, (kind, time) in kernels.items())
    print(f"maps of {side} x {side}, filter {kernel} x {kernel}: {shown}")
    if wanted not in kernels["backward_weights"][0] or "jit_dw" not in kernels["backward_data"][0]:
        sys.exit("CHANGED: oneDNN picks other kernels")
PYTHON
"$work/venv/bin/python" "$work/check.py" "$work/step.py"
