"""Attacks images at their own certified radius: none may change. Enlarged radii by the measured slope do break.

    python benchmarks/certified/attack.py MODEL DATA --images 200 --steps 100 --restarts 5

Each image whose answer is right is attacked by PGD within its certified radius, in float32 and in float64. For comparison
the radius is computed again with the gradient's length at the image instead of the bound, and enlarged by 10%: a
measured slope is no bound, and the attack finds that out.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch

from lipsformer.checkpoints.certificate import certificate_of
from lipsformer.checkpoints.checkpoint import load_checkpoint
from lipsformer.datasets import open_labeled, resolve_dataset
from lipsformer.datasets.spread import spread
from lipsformer.evaluation.certified.attacks import lead, pgd
from lipsformer.evaluation.certified.certify import network_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--batch", type=int, default=100)
    options = parser.parse_args()
    started = time.process_time()
    checkpoint = load_checkpoint(options.model)
    certificate = certificate_of(checkpoint)
    if certificate is None:
        raise SystemExit(f"{options.model}: has no certificates")
    split = open_labeled(resolve_dataset(options.data), checkpoint.classes)
    chosen = spread(options.images, len(split))
    pixels = np.stack([checkpoint.preprocessing.read(split.encoded(int(index))) for index in chosen])
    images, labels = torch.from_numpy(pixels).double() / 255, torch.from_numpy(np.asarray(split.labels)[chosen])
    found: dict[str, float] = {"images": len(images)}
    for dtype in (torch.float32, torch.float64):
        network = network_of(checkpoint, dtype)
        x = images.to(dtype)
        with torch.no_grad():
            logits = network(x)
        radii = torch.from_numpy(certificate.radii(logits.numpy())).to(dtype)
        kept = (logits.argmax(dim=1) == labels) & (radii > 0)
        x, y, radii = x[kept], labels[kept], radii[kept]
        name = str(dtype).removeprefix("torch.")
        found[f"attacked_{name}"] = len(x)
        found[f"changed_{name}"] = broken(network, x, y, radii, options)
        found[f"median_radius_{name}"] = float(radii.median())
        if dtype == torch.float32:
            x.requires_grad_(True)
            ahead = lead(network(x), y)
            (slope,) = torch.autograd.grad(ahead.sum(), x)
            by_slope = 1.1 * ahead.detach() / slope.flatten(1).norm(dim=1)
            found["changed_by_measured_slope"] = broken(network, x.detach(), y, by_slope, options)
            found["median_radius_by_measured_slope"] = float(by_slope.median())
    found["cpu_seconds"] = round(time.process_time() - started, 1)
    print(json.dumps(found, indent=2))
    if found["changed_float32"] or found["changed_float64"]:
        raise SystemExit("a certificate was broken")


def broken(network, x, y, radii, options) -> int:  # type: ignore[no-untyped-def]
    """How many of the images the attack changes."""
    count = 0
    for start in range(0, len(x), options.batch):
        part = slice(start, start + options.batch)
        change = pgd(network, x[part], y[part], radii[part], steps=options.steps, restarts=options.restarts)
        with torch.no_grad():
            count += int((lead(network(x[part] + change), y[part]) <= 0).sum())
    return count


if __name__ == "__main__":
    main()
