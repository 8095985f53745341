"""Deletion and insertion scores of heat maps, next to maps that know nothing of the network.

python benchmarks/explain/measure.py MODEL DATA [--photos 200]

Deletion replaces the most marked pixels by the photo's mean color, a twentieth of them at a time, and averages the
score of the class that was best at first over all steps: lower is better. Insertion puts them into an image of the mean
color: higher is better (Petsiuk et al., RISE, arXiv 1806.07421).
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lipsformer import load_checkpoint
from lipsformer.datasets import open_labeled, resolve_dataset
from lipsformer.datasets.spread import spread
from lipsformer.evaluation.heat_maps.contributions import contributions, default_stage
from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.system.hardware import cpu_name
from lipsformer.system.markdown import markdown_table

STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--photos", type=int, default=200)
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.model)
    model, normalize = checkpoint.calibrated().requires_grad_(False), PixelNormalize(checkpoint.preprocessing)
    split = open_labeled(resolve_dataset(options.data), checkpoint.classes)
    places = spread(options.photos, len(split)).tolist()
    pixels = torch.tensor(np.stack([checkpoint.preprocessing.read(split.encoded(place)) for place in places]))
    image = normalize(pixels)
    best = model(image).argmax(dim=1)
    accounted: dict[str, str] = {}
    maps: dict[str, Tensor] = {}
    for stage in range(4):
        found, logits = contributions(model, image, best, stage)
        chosen = logits.gather(1, best[:, None])[:, 0] - model.head.bias[best]
        side = found.shape[1]
        default = ", the default" if stage == default_stage(model.config) else ""
        name = f"stage {stage + 1}, {side}x{side} tokens{default}"
        maps[name] = found
        low, middle, high = np.quantile((found.sum(dim=(1, 2)) / chosen).numpy(), (0.1, 0.5, 0.9))
        accounted[name] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
    maps |= {"edges (no network)": edges(pixels), "distance from the center": center(pixels)}
    maps["random, 8x8"] = torch.rand(len(pixels), 8, 8, generator=torch.Generator().manual_seed(0))
    rows = []
    for name, found in maps.items():
        scores = [score(found, pixels, best, lambda x: model(normalize(x)), insert=insert) for insert in (False, True)]
        rows.append((name, *(f"{value:.3f}" for value in scores), accounted.get(name, "")))
    print(f"{options.model}, {len(pixels)} photos, {cpu_name()}\n")
    print(markdown_table(("map", "deletion", "insertion", "completeness: median (10% to 90%)"), rows, "lrrr"))


def edges(pixels: Tensor) -> Tensor:
    """Differences of neighboring pixels, (N, S, S)."""
    gray = pixels.float().mean(dim=-1)
    across, down = gray.diff(dim=2).abs(), gray.diff(dim=1).abs()
    return F.pad(across, (0, 1)) + F.pad(down, (0, 0, 0, 1))


def center(pixels: Tensor) -> Tensor:
    """Higher the nearer to the center, (N, S, S)."""
    axis = torch.linspace(-1, 1, pixels.shape[1])
    return -(axis[:, None] ** 2 + axis**2).expand(len(pixels), -1, -1)


def score(found: Tensor, pixels: Tensor, best: Tensor, logits: object, *, insert: bool) -> float:
    """The mean softmax score of the classes `best` over all steps and photos."""
    side = pixels.shape[1]
    enlarged = F.interpolate(found[:, None].float(), size=(side, side), mode="bilinear").flatten(1)
    ties = torch.rand(enlarged.shape, generator=torch.Generator().manual_seed(1)) * 1e-6
    order = (enlarged + ties * enlarged.std()).argsort(dim=1, descending=True)
    blank = pixels.float().mean(dim=(1, 2), keepdim=True).expand(-1, side, side, -1)
    means = []
    for step in range(STEPS + 1):
        marked = torch.zeros(enlarged.shape, dtype=torch.bool)
        marked.scatter_(1, order[:, : round(side**2 * step / STEPS)], True)
        shown = marked if insert else ~marked
        seen = torch.where(shown.reshape(-1, side, side, 1), pixels.float(), blank)
        probabilities = logits(seen).softmax(dim=1)  # type: ignore[operator]
        means.append(float(probabilities.gather(1, best[:, None]).mean()))
    return float(np.mean(means))


if __name__ == "__main__":
    main()
