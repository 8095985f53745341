"""Certified accuracy, CPU time and size of each precision of a bundle.

    python benchmarks/certified/precisions.py BUNDLE DATA --images 1000

Each graph runs in ONNX Runtime on one thread, in batches of 50; its certificate is the one that `predict` uses.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from lipsformer.bundle.manifest import read_manifest
from lipsformer.datasets import open_labeled, resolve_dataset
from lipsformer.datasets.spread import spread
from lipsformer.inference.runtimes import OnnxRuntime

BATCH = 50
RADII = (18, 36, 72, 108)  # of 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    manifest = read_manifest(options.bundle)
    split = open_labeled(resolve_dataset(options.data), manifest.classes)
    chosen = spread(options.images, len(split))
    pixels = np.stack([manifest.preprocessing.read(split.encoded(int(index))) for index in chosen])
    labels = np.asarray(split.labels)[chosen]
    for precision in manifest.precisions:
        file = manifest.graph(precision)
        certificate = manifest.certificate_of(file)
        if certificate is None:
            raise SystemExit(f"{file.name}: has no certificates")
        runtime = OnnxRuntime(options.bundle / file.name, device="cpu", threads=1)
        seconds, logits = [], np.empty(0)
        for _ in range(3):
            started = time.process_time()
            parts = [runtime.infer(pixels[start : start + BATCH]).logits for start in range(0, len(pixels), BATCH)]
            seconds.append(time.process_time() - started)
            logits = np.concatenate(parts)
        correct = logits.argmax(axis=1) == labels
        radii = np.where(correct, certificate.radii(logits), 0.0)
        found = {
            "precision": precision,
            "images": len(pixels),
            "clean": float(correct.mean()),
            "certified": {f"{radius}/255": float((radii > radius / 255).mean()) for radius in RADII},
            "cpu_ms_per_image": round(1000 * min(seconds) / len(pixels), 3),
            "megabytes": round(file.size / 1e6, 2),
        }
        print(json.dumps(found))


if __name__ == "__main__":
    main()
