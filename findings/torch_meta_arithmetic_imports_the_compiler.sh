#!/usr/bin/env bash
# One multiplication on PyTorch's meta device imports PyTorch's compiler and SymPy: hundreds of modules more than torch's own.
#
# torch 2.13.0 (CPU). Building a network under torch.device("meta") is the usual way to check a checkpoint's shapes before
# memory is allocated. Layers (nn.Linear, nn.Conv2d) and torch.zeros import nothing there. A matrix product imports SymPy,
# and one elementwise operation (a * b, a + b, a - b) imports SymPy and torch._dynamo. A network that computes a table of
# indices in its constructor, as Swin's relative positions do, so makes each program that loads it start more slowly,
# by about as much again as `import torch` takes.
#
# What to do: compute constant tables with NumPy, or with device="cpu" given explicitly.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# From PyTorch's own index first: PyPI's wheel for Linux brings CUDA along.
"$work/venv/bin/pip" install --quiet --index-url https://download.pytorch.org/whl/cpu 'torch==2.13.0' 2>/dev/null ||
    "$work/venv/bin/pip" install --quiet 'torch==2.13.0' 2>/dev/null
"$work/venv/bin/pip" install --quiet 'numpy==2.4.6' 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import subprocess
import sys

PROGRAM = """
import sys, time
import torch
before, started = len(sys.modules), time.process_time()
with torch.device("meta"):
    {work}
print(len(sys.modules) - before, "torch._dynamo" in sys.modules, "sympy" in sys.modules, time.process_time() - started)
"""

print("torch", subprocess.check_output([sys.executable, "-c", "import torch; print(torch.__version__)"], text=True).strip())
for work, expected in (
    ("torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(8, 8))", (False, False)),
    ("torch.zeros(2, 3) @ torch.zeros(3, 2)", (False, True)),
    ("torch.zeros(3) * torch.zeros(3)", (True, True)),
    ("torch.zeros(3) + torch.zeros(3)", (True, True)),
    ("torch.arange(3) - torch.arange(3)", (True, True)),
):
    output = subprocess.check_output([sys.executable, "-c", PROGRAM.format(work=work)], text=True).split()
    modules, dynamo, sympy, seconds = int(output[0]), output[1] == "True", output[2] == "True", float(output[3])
    print(f"{work}: {modules} modules more, torch._dynamo {dynamo}, sympy {sympy}, {seconds:.2f} CPU seconds")
    if (dynamo, sympy) != expected or (modules > 300) != sympy:
        sys.exit("CHANGED: other operations import the compiler")
PYTHON
