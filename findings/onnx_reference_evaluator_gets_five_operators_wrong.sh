#!/usr/bin/env bash
# onnx.reference.ReferenceEvaluator, which runtimes are tested against, computes five operators of the standard set otherwise than
# their definition, without an error. ONNX Runtime follows the definition in all five. Where the two disagree, do not assume that
# the reference is right.
#
# onnx 1.23.2, onnxruntime 1.32.0, float32, opset 20; the definitions are written out in NumPy below:
# - LRN: of six channels only the first is right; the others sum the squares of too few channels.
# - LpNormalization with p = 1 divides by the sum of the values, not of their absolute values: signs flip.
# - Resize, cubic with "pytorch_half_pixel" to a single pixel: the definition takes the first pixel; here it is a mixture.
# - MaxPool with auto_pad SAME_LOWER: an output of floor(size / stride) where it should be the ceiling. SAME_UPPER is right.
# - LogSoftmax: the logarithm of a rounded softmax, so -inf where the definition gives -200.
#
# A sixth is a matter of reading. GridSample, cubic with padding_mode "border": PyTorch and ONNX Runtime clamp each of the 16 pixels that
# are read, the reference clamps the point, and the text of the operator says neither. The values near the edges differ by 0.2.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export ORT_DISABLE_TELEMETRY=1
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'onnx==1.23.2' 'onnxruntime==1.32.0' 'numpy==2.4.6' 2>/dev/null
cat > "$work/operators.py" <<'PYTHON'
import math
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

warnings.simplefilter("ignore")  # the reference divides by zero in LogSoftmax
RANDOM = np.random.default_rng(0)


def answers(operator, inputs, constants=None, **attributes):
    """What the reference and ONNX Runtime compute."""
    constants = constants or {}
    node = helper.make_node(operator, [*inputs, *constants], ["y"], **attributes)
    described = [helper.make_tensor_value_info(key, TensorProto.FLOAT, value.shape) for key, value in inputs.items()]
    weights = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    graph = helper.make_graph([node], "g", described, [helper.make_empty_tensor_value_info("y")], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return ReferenceEvaluator(model).run(None, inputs)[0], session.run(None, inputs)[0]


def equal(found, wanted):
    return found.shape == wanted.shape and np.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def check(name, both, wanted, reference_right=False, what="as defined"):
    reference, runtime = both
    found = f"reference {equal(reference, wanted)}, ONNX Runtime {equal(runtime, wanted)}"
    print(f"{name}: {what}: {found}")
    if found != f"reference {reference_right}, ONNX Runtime True":
        sys.exit(f"CHANGED: {name}")


def lrn(x, size, alpha, beta, bias):
    squares = np.zeros_like(x)
    for channel in range(x.shape[1]):
        first, last = channel - (size - 1) // 2, channel + math.ceil((size - 1) / 2)
        squares[:, channel] = (x[:, max(0, first) : last + 1] ** 2).sum(axis=1)
    return x / (bias + alpha / size * squares) ** beta


def cubic(t, a=-0.75):
    """The four weights of Keys' kernel around a point that is t past the second pixel."""
    near, far = lambda d: (a + 2) * d**3 - (a + 3) * d**2 + 1, lambda d: a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.array([far(1 + t), near(t), near(1 - t), far(2 - t)])


def sample_cubic_border(x, grid):
    """GridSample as PyTorch reads it, for align_corners 1: each pixel beyond the edge is that of the edge."""
    _, channels, height, width = x.shape
    out = np.zeros((1, channels, *grid.shape[1:3]))
    for i, j in np.ndindex(*grid.shape[1:3]):
        across, down = (grid[0, i, j] + 1) / 2 * [width - 1, height - 1]
        left, top = math.floor(across), math.floor(down)
        columns = np.clip(np.arange(left - 1, left + 3), 0, width - 1)
        rows = np.clip(np.arange(top - 1, top + 3), 0, height - 1)
        out[0, :, i, j] = cubic(down - top) @ x[0][:, rows][:, :, columns] @ cubic(across - left)
    return out


print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
x = RANDOM.normal(size=(1, 6, 7, 8)).astype(np.float32)
both = answers("LRN", {"x": x}, size=3, alpha=0.5, beta=0.75, bias=1.0)
check("LRN", both, lrn(x, 3, 0.5, 0.75, 1.0))
first = [bool(equal(both[0][:, channel], both[1][:, channel])) for channel in range(6)]
print(f"  channels of the reference that are right: {first}")
check("LpNormalization, p = 1", answers("LpNormalization", {"x": x}, axis=1, p=1), x / abs(x).sum(axis=1, keepdims=True))
check("LpNormalization, p = 2", answers("LpNormalization", {"x": x}, axis=1, p=2), x / np.linalg.norm(x, axis=1, keepdims=True), True)
none, size = np.array([], np.float32), np.array([1, 6, 1, 1])
both = answers("Resize", {"x": x}, {"roi": none, "scales": none, "sizes": size}, mode="cubic", coordinate_transformation_mode="pytorch_half_pixel")
check("Resize, cubic, pytorch_half_pixel, one pixel", both, x[:, :, :1, :1])
padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 0)), constant_values=-np.inf)  # one more in front, where they do not divide
windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(4, 5))
check("MaxPool, SAME_LOWER", answers("MaxPool", {"x": x}, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER"), windows)
logits = np.array([[100, -100, 0, 99]], np.float32)
exact = logits.astype(np.float64)
check("LogSoftmax", answers("LogSoftmax", {"x": logits}, axis=1), exact - np.log(np.exp(exact).sum()))
grid = RANDOM.uniform(-1.3, 1.3, (1, 5, 5, 2)).astype(np.float32)
both = answers("GridSample", {"x": x, "grid": grid}, mode="cubic", padding_mode="border", align_corners=1)
check("GridSample, cubic, border", both, sample_cubic_border(x, grid.astype(np.float64)), what="as PyTorch")
PYTHON
"$work/venv/bin/python" "$work/operators.py"
echo 'As found: the reference evaluator gets five operators wrong.'
