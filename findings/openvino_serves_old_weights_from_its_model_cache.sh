#!/usr/bin/env bash
# OpenVINO's model cache answers with the old weights after the weights were replaced: it looks at the path, the size and the
# second of the graph's file, and not at the file with the weights at all.
#
# openvino 2026.4.1, onnx 1.23.2, on the CPU. A Core with CACHE_DIR compiles a model that is given by its path.
# - A graph with external data (m.onnx, m.data): new weights in m.data, as after more training, leave the old answers, in new
#   processes too. OpenVINO's own .xml and .bin behave alike (seen, but not checked here).
# - A new m.onnx of the same size with the same time of change leaves the old answers. So do two exports within a second, since
#   fractions of a second are cut off, and images or archives that give every file the same time (reproducible builds).
# LOADED_FROM_CACHE is true, and nothing else is said. With compile_model(core.read_model(path)) the weights themselves are
# compared, and every answer is right.
#
# What to do: compile what read_model returns, or keep a cache folder for each version of the model.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'openvino==2026.4.1' 'onnx==1.23.2' 'numpy==2.4.6' 2>/dev/null
mkdir "$work/models"
cd "$work/models"
"$work/venv/bin/python" - <<'PYTHON'
import os
import pathlib
import sys

sys.modules["openvino_telemetry"] = None
import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper

SIDE, DAY = 4096, 1_700_000_000
GRAPH, DATA = pathlib.Path("m.onnx"), pathlib.Path("m.data")
print("openvino", openvino.get_version(), "onnx", onnx.__version__)


def write(weight, changed):
    """A graph that multiplies by `weight`, its weights in a file of their own, and the time of its change."""
    for path in (GRAPH, DATA):
        path.unlink(missing_ok=True)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIDE]) for name in "xy")
    constant = numpy_helper.from_array(np.full(SIDE, weight, np.float32), "w")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["y"])], "scale", [x], [y], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, GRAPH, save_as_external_data=True, location=DATA.name, size_threshold=0)
    os.utime(GRAPH, (changed, changed))


def answer(read):
    core = openvino.Core()
    core.set_property({"CACHE_DIR": "cache"})
    compiled = core.compile_model(core.read_model(GRAPH) if read else GRAPH, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return float(compiled(np.ones(SIDE, np.float32))[0][0]), compiled.get_property("LOADED_FROM_CACHE")


def check(what, by_path, by_read_model):
    found = answer(read=False), answer(read=True)
    print(f"{what}: by path {found[0]}, by read_model {found[1]} (answer, from the cache)")
    if found != (by_path, by_read_model):
        sys.exit("CHANGED: the cache is used otherwise")


write(2, DAY)
check("weights 2, new cache", (2, False), (2, False))
check("weights 2 again", (2, True), (2, True))
DATA.write_bytes(np.full(SIDE, 3, np.float32).tobytes())
check("weights 3 in m.data", (2, True), (3, False))
write(4, DAY)
check("weights 4, both files, same time", (2, True), (4, False))
write(5, DAY + 0.5)
check("weights 5, both files, half a second later", (2, True), (5, False))
write(6, DAY + 1)
check("weights 6, both files, a second later", (6, False), (6, False))
PYTHON
echo 'As found: by path, the old weights answer until the second of the file of the graph changes.'
