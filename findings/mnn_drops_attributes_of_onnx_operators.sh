#!/usr/bin/env bash
# MNN's converter takes ONNX operators with attributes that its own layers lack, drops the attribute, and reports success. The model
# then answers with values of another operator. Compare every converted model with ONNX Runtime on real input; a success says nothing.
#
# MNN 3.6.1 (PyPI's wheel, CPU), onnx 1.23.2, onnxruntime 1.32.0, opset 20, float32, one operator per model. Dropped:
# - Resize: `antialias` and `nearest_mode`; so images that a graph shrinks itself are sampled, not averaged.
# - MaxPool and AveragePool: `auto_pad` SAME_LOWER pads as SAME_UPPER.
# - RNN: `direction` "reverse" runs forward, "bidirectional" is right.
# - ScatterElements: `reduction` "add" overwrites. Mod: `fmod`. GridSample: mode "cubic".
# - ReduceL2 and ReduceLogSumExp: `axes`, an input since opset 18, unlike ReduceMean, ReduceSum and ReduceMax, which take it.
# - Split: `num_outputs` that does not divide the axis gives parts of another length.
# And without any attribute: Round rounds halves away from zero (ONNX: to even).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export ORT_DISABLE_TELEMETRY=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'MNN==3.6.1' 'onnx==1.23.2' 'onnxruntime==1.32.0' 'numpy==2.4.6' 2>/dev/null
cat > "$work/operators.py" <<'PYTHON'
import subprocess
import sys
from importlib.metadata import version

import MNN
import MNN.expr as expr
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

CONVERT = "import sys, _tools; _tools.mnnconvert(sys.argv)"  # what the command mnnconvert calls


def build(operator, inputs, constants, outputs, attributes):
    node = helper.make_node(operator, [*inputs, *constants], outputs, **attributes)
    described = [helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape) for key, value in inputs.items()]
    weights = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    graph = helper.make_graph([node], "g", described, [helper.make_empty_tensor_value_info(name) for name in outputs], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def same(operator, inputs, constants=None, outputs=1, **attributes):
    """Whether MNN computes what ONNX Runtime computes."""
    names = [f"y{number}" for number in range(outputs)]
    model = build(operator, inputs, constants or {}, names, attributes)
    with open("model.onnx", "wb") as file:
        file.write(model)
    command = [sys.executable, "-c", CONVERT, "-f", "ONNX", "--modelFile", "model.onnx", "--MNNModel", "model.mnn", "--bizCode", "x"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    module = MNN.nn.load_module_from_file("model.mnn", list(inputs), names)
    fed = []
    for value in inputs.values():
        fed.append(expr.placeholder(list(value.shape), expr.NCHW, expr.float))
        fed[-1].write(np.ascontiguousarray(value))
    found = [np.array(expr.convert(y, expr.NCHW).read() if y.data_format == expr.NC4HW4 else y.read()) for y in module.forward(fed)]
    wanted = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, inputs)
    return all(f.size == w.size and np.allclose(f.reshape(w.shape), w, rtol=1e-2, atol=1e-3) for f, w in zip(found, wanted))


def check(name, found, wanted):
    print(f"{name}: {'as' if found else 'unlike'} ONNX Runtime", flush=True)
    if found != wanted:
        sys.exit(f"CHANGED: {name}")


print("MNN", version("MNN"), "onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
RANDOM = np.random.default_rng(0)
X = {"x": RANDOM.normal(size=(1, 4, 6, 8)).astype(np.float32)}
NONE = np.array([], np.float32)
SMALL, LARGE = ({"roi": NONE, "scales": NONE, "sizes": np.array([1, 4, *size])} for size in ((3, 4), (9, 5)))
check("Resize, linear", same("Resize", X, SMALL, mode="linear"), True)
check("Resize, linear, antialias", same("Resize", X, SMALL, mode="linear", antialias=1), False)
check("Resize, nearest", same("Resize", X, LARGE, mode="nearest"), True)
check("Resize, nearest, ceil", same("Resize", X, LARGE, mode="nearest", nearest_mode="ceil"), False)
for operator in ("MaxPool", "AveragePool"):
    pool = {"kernel_shape": [3, 3], "strides": [2, 2]}
    check(f"{operator}, SAME_UPPER", same(operator, X, auto_pad="SAME_UPPER", **pool), True)
    check(f"{operator}, SAME_LOWER", same(operator, X, auto_pad="SAME_LOWER", **pool), False)
sequence = {"x": RANDOM.normal(size=(5, 2, 4)).astype(np.float32)}
for direction in ("forward", "reverse", "bidirectional"):
    halves = 2 if direction == "bidirectional" else 1
    shapes = {"w": (halves, 3, 4), "r": (halves, 3, 3), "b": (halves, 6)}
    weights = {key: RANDOM.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    check(f"RNN, {direction}", same("RNN", sequence, weights, hidden_size=3, direction=direction), direction != "reverse")
square = {"x": RANDOM.normal(size=(3, 3)).astype(np.float32)}
added = {"indices": np.array([[0, 0, 2], [1, 1, 1]]), "updates": np.ones((2, 3), np.float32)}
check("ScatterElements", same("ScatterElements", square, added, axis=0), True)
check("ScatterElements, add", same("ScatterElements", square, added, axis=0, reduction="add"), False)
check("Mod, fmod", same("Mod", {"x": np.array([[-5.3, 5.3]], np.float32)}, {"by": np.array([[3, -3]], np.float32)}, fmod=1), False)
grid = {**X, "grid": RANDOM.uniform(-0.6, 0.6, (1, 5, 5, 2)).astype(np.float32)}
check("GridSample, linear", same("GridSample", grid, mode="linear"), True)
check("GridSample, cubic", same("GridSample", grid, mode="cubic"), False)
for operator in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceLogSumExp"):
    check(f"{operator}, axes", same(operator, X, {"axes": np.array([-1])}), operator not in ("ReduceL2", "ReduceLogSumExp"))
row = {"x": RANDOM.normal(size=(1, 7)).astype(np.float32)}
check("Split of 7 in 3", same("Split", row, outputs=3, axis=1, num_outputs=3), False)
check("Round", same("Round", {"x": np.array([[-1.5, -0.5, 0.5, 2.5]], np.float32)}), False)
PYTHON
cd "$work"
"$work/venv/bin/python" "$work/operators.py" | grep -v '^The device supports'
echo 'As found: MNN drops these attributes.'
