#!/usr/bin/env bash
# tract loads recurrent ONNX layers with direction="reverse" and runs them forward, without an error: LSTM, GRU and RNN alike. Layers
# with direction="bidirectional" are right, both halves. So a model that reads a sequence backward in a layer of its own gives wrong
# answers of the right shape and size.
#
# tract 0.23.9 (PyPI's wheel), onnx 1.23.2, onnxruntime 1.32.0 and NumPy as the judges. Three more operators of the same version:
# - Celu with alpha: max(0, x) + min(0, exp(x / alpha) - 1), without the factor alpha. The default, alpha = 1, is right.
# - ReduceLogSumExp: exp without taking the maximum off first; [1000, 1000] gives inf instead of 1000.69.
# - Relu turns NaN into 0, and Max and Min give the other number, so a broken activation is not seen at the output.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export ORT_DISABLE_TELEMETRY=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'tract==0.23.9' 'onnx==1.23.2' 'onnxruntime==1.32.0' 'numpy==2.4.6' 2>/dev/null
cat > "$work/layers.py" <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
import tract
from onnx import TensorProto, helper, numpy_helper

RANDOM, HIDDEN = np.random.default_rng(0), 3
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def build(operator, inputs, constants, **attributes):
    node = helper.make_node(operator, [*inputs, *constants], ["y"], **attributes)
    described = [helper.make_tensor_value_info(key, TensorProto.FLOAT, value.shape) for key, value in inputs.items()]
    weights = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    graph = helper.make_graph([node], "g", described, [helper.make_empty_tensor_value_info("y")], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def run(operator, inputs, constants=None, **attributes):
    """What tract and ONNX Runtime compute."""
    model = build(operator, inputs, constants or {}, **attributes)
    with open("model.onnx", "wb") as file:
        file.write(model)
    runnable = tract.onnx().load("model.onnx").into_model().into_runnable()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return runnable.run(list(inputs.values()))[0].to_numpy(), session.run(None, inputs)[0]


def recurrent(operator, direction):
    halves, gates = 2 if direction == "bidirectional" else 1, GATES[operator] * HIDDEN
    constants = {"w": (halves, gates, 4), "r": (halves, gates, HIDDEN), "b": (halves, 2 * gates)}
    constants = {key: np.random.default_rng(1).normal(size=shape).astype(np.float32) for key, shape in constants.items()}
    return run(operator, {"x": SEQUENCE}, constants, hidden_size=HIDDEN, direction=direction)


def equal(one, other):
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)


def check(name, found, wanted):
    print(f"{name}: {found}")
    if found != wanted:
        sys.exit(f"CHANGED: {name}")


print("tract", version("tract"), "onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
SEQUENCE = RANDOM.normal(size=(5, 2, 4)).astype(np.float32)
for operator in GATES:
    forward = recurrent(operator, "forward")
    check(f"{operator}, forward: as ONNX Runtime", equal(*forward), True)
    backward = recurrent(operator, "reverse")
    check(f"{operator}, reverse: as ONNX Runtime", equal(*backward), False)
    check(f"{operator}, reverse: the same as forward", equal(backward[0], forward[0]), True)
    check(f"{operator}, bidirectional: as ONNX Runtime", equal(*recurrent(operator, "bidirectional")), True)
x = np.array([[-2.0, -0.5, 0.0, 1.5]], np.float32)
for alpha in (1.0, 0.3):
    found, runtime = run("Celu", {"x": x}, alpha=alpha)
    defined = np.maximum(0, x) + np.minimum(0, alpha * (np.exp(x / alpha) - 1))
    check(f"Celu, alpha {alpha}: as defined", (equal(found, defined), equal(runtime, defined)), (alpha == 1.0, True))
found, runtime = run("ReduceLogSumExp", {"x": np.array([[1000, 1000]], np.float32)}, keepdims=0)
check("ReduceLogSumExp of 1000, 1000", (float(found), round(float(runtime), 2)), (np.inf, 1000.69))
nan = np.array([[np.nan, -1]], np.float32)
found, runtime = run("Relu", {"x": nan})
check("Relu of NaN", (float(found[0, 0]), bool(np.isnan(runtime[0, 0]))), (0.0, True))
for operator in ("Max", "Min"):
    found, runtime = run(operator, {"x": nan, "other": np.array([[1, np.nan]], np.float32)})
    check(f"{operator} with NaN", (found.tolist(), bool(np.isnan(runtime).all())), ([[1.0, -1.0]], True))
PYTHON
cd "$work"
"$work/venv/bin/python" "$work/layers.py"
echo 'As found: tract runs reversed recurrent layers forward.'
