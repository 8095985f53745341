"""The graph with the resize inside, compared with `predict`: 300 images of 50 sizes.

    python benchmarks/whole_image/measure.py > benchmarks/whole_image/README.md

The images are sample photos of the package, cut so that the fruit reaches every border, with noise on every third.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import PIL
from PIL import Image, ImageOps

from lipsformer import load_predictor
from lipsformer.export import ExportSettings, export_bundle
from lipsformer.images.samples import SAMPLES
from lipsformer.system.hardware import cores, cpu_name
from lipsformer.system.markdown import markdown_table

MODEL = Path("lipsformer_cifar10")
COUNT = 300
SIZES = [
    (1, 1), (1, 64), (64, 1), (2, 3), (7, 5), (8, 8), (16, 16), (20, 31), (31, 20), (31, 31), (32, 32), (33, 33),
    (32, 100), (100, 32), (48, 36), (64, 64), (65, 63), (90, 160), (160, 90), (128, 128), (200, 150), (150, 200),
    (224, 224), (256, 256), (240, 320), (320, 240), (348, 348), (300, 1200), (1200, 300), (100, 1000), (1000, 100),
    (400, 900), (900, 400), (512, 512), (480, 640), (640, 480), (640, 360), (360, 640), (799, 601), (601, 799),
    (800, 600), (1024, 768), (768, 1024), (1280, 720), (720, 1280), (1500, 1500), (1920, 1080), (1080, 1920),
    (2048, 300), (3000, 2000),
]  # width, height  # fmt: skip
TIMED = ((348, 348), (1280, 720), (1080, 1920), (4000, 3000))


def images() -> Iterator[Image.Image]:
    """Six of each size."""
    random = np.random.default_rng(0)
    photos = itertools.cycle(sorted(SAMPLES.glob("*.jpg")))
    for number, size in enumerate(SIZES * (COUNT // len(SIZES))):
        with Image.open(next(photos)) as photo:
            image = ImageOps.fit(photo.convert("RGB"), size, Image.Resampling.BICUBIC)
        if number % 3 == 0:
            noisy = np.asarray(image) + random.normal(0, 40, (*image.size[::-1], 3))
            image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
        yield image


def cpu_milliseconds(call: Callable[[], object]) -> float:
    """The median of five calls, in CPU time, after a first one."""
    times = []
    for _ in range(6):
        start = time.process_time()
        call()
        times.append(1000 * (time.process_time() - start))
    return float(np.median(times[1:]))


def main() -> None:
    """Prints the report."""
    load = os.getloadavg()[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        export_bundle(MODEL, bundle, ExportSettings(whole_image=True))
        predictor = load_predictor(bundle, "cpu")
        session = onnxruntime.InferenceSession(bundle / "whole-image.onnx", options, providers=["CPUExecutionProvider"])

    def whole(image: Image.Image) -> np.ndarray:
        (logits,) = session.run(["logits"], {"images": np.asarray(image)[np.newaxis]})
        exponentials = np.exp(logits[0] - logits[0].max())
        return exponentials / exponentials.sum()

    same, furthest, count = 0, 0.0, 0
    for image in images():
        predicted = predictor.predict([image], top_k=5)[0]
        scores = whole(image)
        count += 1
        same += int(scores.argmax()) == predicted[0].index
        furthest = max(furthest, *(abs(float(scores[entry.index]) - entry.score) for entry in predicted))
    rows = []
    for size in TIMED:
        image = Image.effect_noise(size, 60).convert("RGB")
        pixels = predictor.preprocessing.apply(image)[np.newaxis]
        graph = cpu_milliseconds(partial(predictor.runtime.infer, pixels))
        resize = cpu_milliseconds(partial(predictor.preprocessing.apply, image))
        inside = cpu_milliseconds(partial(whole, image)) - graph
        rows.append([f"{size[0]} x {size[1]}", f"{resize:.0f}", f"{inside:.0f}"])
    print(
        f"""# The resize in the graph

`whole-image.onnx` of `lipsformer_cifar10`, compared with `predict` of the same bundle on {count} images of
{len(SIZES)} sizes, from 1 x 1 to 3000 x 2000: portraits, panoramas, and images smaller than the network's 32 pixels.
The images are sample photos of the package, cut so that the fruit reaches every border, with noise on every third.

    python benchmarks/whole_image/measure.py > benchmarks/whole_image/README.md

- {same} of {count} have the same top-1 class.
- The largest difference of a score is {furthest:.1e}.

CPU time of the resize in milliseconds, with Pillow {PIL.__version__} and inside the graph (the time of the whole graph
minus that of the network). {cores()} cores of an {cpu_name()}, ONNX Runtime {onnxruntime.__version__}, one thread.
The load average before the measurement was {load:.1f}: anything above 0 is other work on the same cores.

{markdown_table(["image", "Pillow", "in the graph"], rows)}"""
    )


if __name__ == "__main__":
    main()
