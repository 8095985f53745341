#!/usr/bin/env bash
# OpenVINO's Python API casts an input array of another type to that of the graph, as NumPy's astype does: floats for a
# uint8 input are cut off and wrap around. ONNX Runtime refuses the same array.
#
# openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6, x86-64. The graph casts uint8 to float32.
# - float32 1.9, 255.6, 256.0, 300.7 and -1.0 give 1, 255, 0, 44 and 255; int64 300, -1 and 70000 give 44, 255 and 112.
# - So normalized pixels (about -2 to 2) given by mistake to a graph that takes uint8 become 0, 1, 254 and 255: a plausible
#   image, plausible scores, and no message.
#
# What to do: compare `array.dtype` with `input.element_type.to_dtype()` yourself before you call an OpenVINO model.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'openvino==2026.4.1' 'onnxruntime==1.32.0' 'onnx==1.23.2' 'numpy==2.4.6' 2>/dev/null
cat > "$work/cast.py" <<'PYTHON'
import sys

sys.modules["openvino_telemetry"] = None
import numpy as np
import onnxruntime
import openvino
from onnx import TensorProto, helper

node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
x, y = (
    helper.make_tensor_value_info(name, kind, ["n"])
    for name, kind in (("x", TensorProto.UINT8), ("y", TensorProto.FLOAT))
)
graph = helper.make_graph([node], "cast", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
floats = np.array([1.9, 255.6, 256.0, 300.7, -1.0], np.float32)
integers = np.array([300, -1, 70000], np.int64)

print("openvino", openvino.__version__, "onnxruntime", onnxruntime.__version__)
compiled = openvino.compile_model(openvino.Core().read_model(model), "CPU")
found = [compiled([given])["y"].tolist() for given in (floats, integers)]
print("OpenVINO:", found)
if found != [[1, 255, 0, 44, 255], [44, 255, 112]]:
    sys.exit("CHANGED: what OpenVINO makes of other types")
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
try:
    session.run(None, {"x": floats})
except Exception as error:
    print("ONNX Runtime:", " ".join(str(error).split())[:110])
else:
    sys.exit("CHANGED: ONNX Runtime takes another type")
PYTHON
ORT_DISABLE_TELEMETRY=1 "$work/venv/bin/python" "$work/cast.py"
echo 'As found: OpenVINO casts, ONNX Runtime refuses.'
