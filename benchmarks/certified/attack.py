"""Attacks images at their own certified radius: none may change. Enlarged radii by the measured slope do break.

    python benchmarks/certified/attack.py MODEL DATA --images 2000 --steps 100 --restarts 5

Each image is attacked by PGD within its certified radius, in float32 and in float64: its answer, right or wrong, must
stay. For comparison the radius is computed again with the gradient's length at the image instead of the bound, and
enlarged by 10%: a measured slope is no bound, and the attack finds that out. `--processes` share the images, a thread
each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time

import numpy as np
import torch
from torch import Tensor

from lipsformer.checkpoints.certificate import certificate_of
from lipsformer.checkpoints.checkpoint import Checkpoint, load_checkpoint
from lipsformer.datasets import open_labeled, resolve_dataset
from lipsformer.datasets.spread import spread
from lipsformer.evaluation.certified.attacks import Logits, lead, pgd
from lipsformer.evaluation.certified.certify import network_of

BATCH = 25  # images whose activations fit into a core's own cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    chosen = spread(options.images, len(images_of(options, load_checkpoint(options.model))))
    shares = [(options, chosen[start :: options.processes]) for start in range(options.processes)]
    if options.processes == 1:
        results = [attack(*shares[0])]
    else:
        with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
            results = pool.starmap(attack, shares)
    found: dict[str, float] = {"images": len(chosen)}
    for name in results[0]:
        parts = np.concatenate([result[name] for result in results])
        found[name] = float(np.median(parts)) if name.startswith("median") else round(float(parts.sum()), 1)
    print(json.dumps(found, indent=2))
    if found["changed_float32"] or found["changed_float64"]:
        raise SystemExit("a certificate was broken")


def images_of(options: argparse.Namespace, checkpoint: Checkpoint):  # type: ignore[no-untyped-def]
    return open_labeled(resolve_dataset(options.data), checkpoint.classes)


def attack(options: argparse.Namespace, chosen: np.ndarray) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Attacks the images `chosen` on one thread. Of each number of the result, what to sum or to take the median of."""
    torch.set_num_threads(1)
    started = time.process_time()
    checkpoint = load_checkpoint(options.model)
    certificate, split = certificate_of(checkpoint), images_of(options, checkpoint)
    if certificate is None:
        raise SystemExit(f"{options.model}: has no certificates")
    pixels = np.stack([checkpoint.preprocessing.read(split.encoded(int(index))) for index in chosen])
    images = torch.from_numpy(pixels).double() / 255
    found = {}
    for dtype in (torch.float32, torch.float64):
        network, x = network_of(checkpoint, dtype), images.to(dtype)
        with torch.no_grad():
            logits = torch.cat([network(part) for part in x.split(BATCH)])
        radii = torch.from_numpy(certificate.radii(logits.numpy())).to(dtype)
        kept = radii > 0
        x, y, radii = x[kept], logits[kept].argmax(dim=1), radii[kept]
        name = str(dtype).removeprefix("torch.")
        found[f"attacked_{name}"] = np.ones(len(x))
        found[f"changed_{name}"] = changed(network, x, y, radii, options)
        found[f"median_radius_{name}"] = radii.numpy()
        if dtype == torch.float32:
            by_slope = 1.1 * reach(network, x, y)
            found["changed_by_measured_slope"] = changed(network, x, y, by_slope, options)
            found["median_radius_by_measured_slope"] = by_slope.numpy()
    found["cpu_seconds"] = np.array([time.process_time() - started])
    return found


def reach(network: Logits, x: Tensor, y: Tensor) -> Tensor:
    """How far the image would have to move if the slope at it were that everywhere, (N,)."""
    found = []
    for image, label in zip(x.split(BATCH), y.split(BATCH), strict=True):
        image.requires_grad_(True)
        ahead = lead(network(image), label)
        (slope,) = torch.autograd.grad(ahead.sum(), image)
        found.append(ahead.detach() / slope.flatten(1).norm(dim=1))
    return torch.cat(found)


def changed(network: Logits, x: Tensor, y: Tensor, radii: Tensor, options: argparse.Namespace):  # type: ignore[no-untyped-def]
    """For each image whether the attack changes it."""
    found = []
    for start in range(0, len(x), BATCH):
        part = slice(start, start + BATCH)
        change = pgd(network, x[part], y[part], radii[part], steps=options.steps, restarts=options.restarts)
        with torch.no_grad():
            found.append((lead(network(x[part] + change), y[part]) <= 0).numpy())
        print(f"{x.dtype}: {start + len(x[part])} of {len(x)} images attacked", file=sys.stderr, flush=True)
    return np.concatenate(found)


if __name__ == "__main__":
    main()
