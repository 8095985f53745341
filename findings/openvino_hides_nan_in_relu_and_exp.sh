#!/usr/bin/env bash
# In OpenVINO on a CPU, NaN does not survive common activations: Relu makes it 0, HardSigmoid makes it 1, Exp makes it
# infinity. Gelu, the other way round, makes NaN of infinity. So "all outputs are finite" says nothing about the network inside.
#
# openvino 2026.4.1 with float32 asked for, onnxruntime 1.32.0, onnx 1.23.0, numpy 2.4.6, x86-64. The same one-node graphs:
#   operator      input   ONNX Runtime   OpenVINO
#   Relu          NaN     NaN            0
#   HardSigmoid   NaN     NaN            1
#   Exp           NaN     NaN            inf
#   Gelu          inf     inf            NaN
# It does not depend on the length of the tensor: 1 and 17 elements were tried. A damaged weight or an overflow in an early layer
# that shows as NaN in ONNX Runtime can come out of OpenVINO as an ordinary, wrong answer.
#
# What to do: look for NaN and infinity with another runtime, or at the input and the weights, not at OpenVINO's outputs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'openvino==2026.4.1' 'onnxruntime==1.32.0' 'onnx==1.23.0' 'numpy==2.4.6' 2>/dev/null
cat > "$work/nan.py" <<'PYTHON'
import sys

import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper

CASES = {  # operator: input, ONNX Runtime's answer, OpenVINO's
    "Relu": (np.nan, np.nan, 0.0),
    "HardSigmoid": (np.nan, np.nan, 1.0),
    "Exp": (np.nan, np.nan, np.inf),
    "Gelu": (np.inf, np.inf, np.nan),
}


def model(operator, size):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [size]) for name in "xy")
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "one", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


core = openvino.Core()
print("openvino", openvino.__version__, "onnxruntime", onnxruntime.__version__)
for operator, (value, by_onnxruntime, by_openvino) in CASES.items():
    for size in (1, 17):
        content, x = model(operator, size), np.full(size, value, np.float32)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        compiled = core.compile_model(core.read_model(content, b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found = session.run(None, {"x": x})[0], compiled([x])[0]
        print(f"{operator}({value}) of {size}: ONNX Runtime {found[0][0]}, OpenVINO {found[1][0]}")
        for answer, wanted in zip(found, (by_onnxruntime, by_openvino), strict=True):
            if not np.array_equal(answer, np.full(size, wanted, np.float32), equal_nan=True):
                sys.exit(f"CHANGED: {operator}")
PYTHON
"$work/venv/bin/python" "$work/nan.py"
echo 'As found: OpenVINO replaces NaN in Relu, HardSigmoid and Exp, and makes NaN of infinity in Gelu.'
