"""A model that computes almost nothing, in a valid bundle: what remains is the server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lipsformer.bundle.manifest import BundleFile, Manifest
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.inference.runtimes import INPUT_NAME, LOGITS_NAME

__all__ = ["IMAGE_SIZE", "write_null_bundle"]

IMAGE_SIZE = 224
CLASSES = 10


def null_graph() -> onnx.ModelProto:
    """uint8 pixels (N, S, S, 3) to logits (N, K): a constant for each image, and no pixel but the first is read."""
    pixels = helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, ["batch", IMAGE_SIZE, IMAGE_SIZE, 3])
    logits = helper.make_tensor_value_info(LOGITS_NAME, TensorProto.FLOAT, ["batch", CLASSES])
    constants: dict[str, np.ndarray] = {
        "zeros": np.zeros(3, np.int64),
        "ones": np.ones(3, np.int64),
        "axes": np.array([1, 2, 3], np.int64),
        "columns": np.array([-1, 1], np.int64),
        "logits_of_all": np.arange(CLASSES, 0, -1, dtype=np.float32)[None],
        "nothing": np.zeros((1, 1), np.float32),
    }
    nodes = [
        helper.make_node("Slice", [INPUT_NAME, "zeros", "ones", "axes"], ["corner"]),
        helper.make_node("Reshape", ["corner", "columns"], ["column"]),
        helper.make_node("Cast", ["column"], ["gray"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["gray", "nothing"], ["zero"]),
        helper.make_node("Add", ["zero", "logits_of_all"], [LOGITS_NAME]),
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "null", [pixels], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_null_bundle(folder: Path) -> None:
    """A bundle that can be served; its manifest says that nothing was proved of it."""
    folder.mkdir(parents=True)
    path = folder / "ort-fp32.onnx"
    onnx.save(null_graph(), path)
    file = BundleFile.describe(path, "onnx", target="ort", precision="fp32", parity={})
    Manifest(
        model={"architecture": "null", "image_size": IMAGE_SIZE, "num_classes": CLASSES},
        classes=tuple(f"class {index}" for index in range(CLASSES)),
        preprocessing=Preprocessing(image_size=IMAGE_SIZE),
        max_batch=16,
        files=(file,),
        checkpoint_sha256="0" * 64,
        metrics={},
        versions={"onnx": onnx.__version__},
        created="1970-01-01T00:00:00+00:00",
    ).write(folder)
