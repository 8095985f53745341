#!/usr/bin/env bash
# TensorRT for RTX cannot build attention in stripes whose query, key and value products have no bias.
#
# tensorrt-rtx 1.7.1.116, building for compute capability 8.6; no GPU is needed. The graph is window attention as in CSwin:
# Q, K and V are products of one map, cut into windows and heads; softmax(Q K') V; and back to a map. The ONNX checker and
# TensorRT's parser accept it. With windows one token wide and no bias on Q, K and V, the build ends with an internal error
# of Myelin ("Inconsistent strides"). It builds with a bias, even of zeros, on V or on Q and K; and with windows that are two or
# four tokens wide. So a model can build until an optimizer removes its zero biases, or folding makes them vanish.
#
# What to do: keep a bias on one of the three products.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet 'tensorrt-rtx==1.7.1.116' 'onnx==1.23.2' 'numpy==2.4.6' 2>/dev/null
"$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import numpy as np
import onnx
import tensorrt_rtx as trt
from onnx import TensorProto, helper, numpy_helper

SIDE, HEADS, DEPTH = 16, 2, 8
CHANNELS = HEADS * DEPTH
RANDOM = np.random.default_rng(0)


def attention(width, biases):
    nodes, constants = [], {}

    def constant(name, value):
        constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def node(operator, output, *inputs, **attributes):
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def product(name):
        weights = RANDOM.standard_normal((CHANNELS, CHANNELS)).astype(np.float32) / 4
        found = node("MatMul", f"{name}.product", "x", constant(f"{name}.weight", weights))
        if name not in biases:
            return found
        return node("Add", f"{name}.biased", found, constant(f"{name}.bias", np.zeros(CHANNELS, np.float32)))

    def reshape(name, value, *shape):
        return node("Reshape", name, value, constant(f"{name}.shape", np.array(shape, np.int64)))

    def by_heads(name):
        cut = reshape(f"{name}.cut", product(name), -1, 1, SIDE, SIDE // width, width, HEADS, DEPTH)
        moved = node("Transpose", f"{name}.moved", cut, perm=[0, 1, 3, 5, 2, 4, 6])
        return reshape(name, moved, -1, HEADS, SIDE * width, DEPTH)

    query, key, value = (by_heads(name) for name in "qkv")
    scores = node("MatMul", "scores", query, node("Transpose", "keys", key, perm=[0, 1, 3, 2]))
    out = node("MatMul", "out", node("Softmax", "shares", scores, axis=-1), value)
    out = reshape("out.cut", out, -1, 1, SIDE // width, HEADS, SIDE, width, DEPTH)
    reshape("y", node("Transpose", "out.moved", out, perm=[0, 1, 4, 2, 5, 3, 6]), -1, SIDE, SIDE, CHANNELS)
    shape = ["batch", SIDE, SIDE, CHANNELS]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph(nodes, "attention", [x], [y], [*constants.values()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


class Log(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.errors = []

    def log(self, severity, message):
        if severity <= trt.ILogger.Severity.ERROR:
            self.errors.append(message)


def build(model):
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if not trt.OnnxParser(network, log).parse(model.SerializeToString()):
        sys.exit(f"CHANGED: the parser refuses the graph: {log.errors}")
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", *((batch, SIDE, SIDE, CHANNELS) for batch in (1, 4, 8)))
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None, log.errors


print("tensorrt-rtx", trt.__version__)
for width, biases, wanted in ((1, "", False), (1, "v", True), (1, "qk", True), (1, "qkv", True), (2, "", True), (4, "", True)):
    built, errors = build(attention(width, biases))
    result = "built" if built else errors[0].partition(" In compileGraph")[0][-80:]
    print(f"windows of {SIDE} x {width}, biases on '{biases}': {result}")
    if built != wanted or (not built and "Inconsistent strides" not in errors[0]):
        sys.exit("CHANGED: it builds otherwise")
PYTHON
echo 'As found: stripes one token wide need a bias on V, or on Q and K.'
