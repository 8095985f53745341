"""Teachers that LipsFormer did not export: tiny ONNX graphs from images to logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["CLASSES_TABLE", "onnx_weights", "write_classes", "write_onnx"]

Weights = NDArray[np.float32]


def onnx_weights(classes: int) -> Weights:
    """The matrix (3, classes) of `write_onnx`'s graph."""
    return np.random.default_rng(0).normal(size=(3, classes)).astype(np.float32)


def write_onnx(
    path: Path,
    *,
    classes: int = 3,
    size: int = 16,
    batch: int | str = "batch",
    layout: str = "nchw",
    uint8: bool = False,
    pooled: bool = True,
    external: bool = False,
    factor: float = 1.0,
) -> Path:
    """Writes a graph whose logits are the image's mean color times `factor` and `onnx_weights`.

    Without `pooled`, it answers a map of logits. With `external`, the weights lie in another file.
    """
    nchw = layout == "nchw"
    shape = [batch, 3, size, size] if nchw else [batch, size, size, 3]
    nodes = [helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT)]
    if not nchw:
        nodes.append(helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]))
    image = "float" if nchw else "planes"
    if pooled:
        nodes += [
            helper.make_node("GlobalAveragePool", [image], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["color"]),
            helper.make_node("MatMul", ["color", "weights"], ["answer"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", [image], ["answer"]))
    weights = numpy_helper.from_array(onnx_weights(classes) * np.float32(factor), "weights")
    answer: list[int | str] = [batch, classes] if pooled else shape
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("image", TensorProto.UINT8 if uint8 else TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, answer)],
        [weights] if pooled else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return path


def write_classes(path: Path, *names: str) -> Path:
    """Writes a file of class names."""
    path.write_text("".join(f"{name}\n" for name in names))
    return path


CLASSES_TABLE = {"image_size": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
