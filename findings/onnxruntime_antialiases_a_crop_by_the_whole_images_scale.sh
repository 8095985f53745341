#!/usr/bin/env bash
# ONNX Runtime's Resize with antialias and tf_crop_and_resize filters a crop as wide as the whole image would need.
#
# onnxruntime 1.32.0, on the CPU. The roi decides which positions are sampled. The width of the filter comes from the whole
# input's size: a crop at its own size, which needs no filter, comes out blurred, by 60 levels on average for noise. Without
# antialias the same roi gives back the crop exactly, and with antialias so does a Slice in front of a Resize without a roi.
# There is no error and no warning.
#
# What to do: slice whole pixels first. For a crop at fractions of a pixel, write the weights as a matrix product.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'onnxruntime==1.32.0' 'onnx==1.22.0' 'numpy==2.4.6' 2>/dev/null
"$work/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import parser

SIDE, LOW, CROP = 256, 96, 64  # the crop is rows and columns 96 to 159


def resize(pixels, antialias):
    model = parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        crop (float[1, 1, {SIDE}, {SIDE}] x, float[8] roi) => (float[1, 1, {CROP}, {CROP}] y) {{
            sizes = Constant <value = int64[4] {{1, 1, {CROP}, {CROP}}}> ()
            y = Resize <mode = "linear", antialias = {antialias}, exclude_outside = {antialias},
                coordinate_transformation_mode = "tf_crop_and_resize"> (x, roi, , sizes)
        }}""")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    low, high = LOW / (SIDE - 1), (LOW + CROP - 1) / (SIDE - 1)
    roi = np.array([0, 0, low, low, 1, 1, high, high], np.float32)
    return session.run(None, {"x": pixels[None, None], "roi": roi})[0][0, 0]


print("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__)
pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE)).astype(np.float32)
crop = pixels[LOW : LOW + CROP, LOW : LOW + CROP]
errors = [float(np.abs(resize(pixels, antialias) - crop).mean()) for antialias in (0, 1)]
print(f"a crop of {CROP} x {CROP} at its own size: off by {errors[0]:.3f} levels without antialias, {errors[1]:.1f} with it")
if not (errors[0] < 0.1 and errors[1] > 5):
    sys.exit("CHANGED: antialias takes the crop's scale")
PYTHON
echo 'As found: antialias blurs a crop that needs no filter.'
