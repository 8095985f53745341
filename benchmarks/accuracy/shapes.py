"""Networks for CIFAR-10 at equal time: what each one learns in so many seconds of one core.

    python benchmarks/accuracy/shapes.py --seconds 150 cifar10 OUTPUT.json "as the recipe" "kernels of 3"

Each trains with Muon in bfloat16, batches of 128, mirrored and moved images, and a learning rate that falls to 0 as the
time runs out. 5,000 of the training images, drawn once, are held out to compare on; no test image is read. OUTPUT.json
gets an entry as each one ends; those that it has are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lipsformer.datasets import Split, open_dataset, resolve_dataset
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.factory import create_model
from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.train import load_recipe
from lipsformer.train.data.crops import Shifts
from lipsformer.train.optim.optimizers import build_optimizers
from lipsformer.train.optim.schedule import learning_rate

HELD_OUT, PARTS, SHIFT = 5000, 10_000, 4
COMMON: dict[str, Any] = {
    "optimizer": "muon",
    "batch_size": 128,
    "label_smoothing": 0.0,
    "model.conv_branches": 2,
}
PATCHES_OF_4: dict[str, Any] = {
    "model.patch_size": 4,
    "model.depths": [3, 3],
    "model.num_heads": [2, 4],
    "model.split_sizes": [2, 4],
}
CHANGES: dict[str, dict[str, Any]] = {
    "as the recipe": {},
    "kernels of 3": {"model.conv_kernel": 3},
    "one convolution branch": {"model.conv_branches": 1},
    "learning rate 6e-3": {"learning_rate": 6e-3},
    "without the last stage": {
        "model.depths": [1, 4, 3],
        "model.num_heads": [2, 2, 4],
        "model.split_sizes": [2, 4, 4],
    },
    "48 channels, 3 stages": {
        "model.embed_dim": 48,
        "model.depths": [2, 3, 2],
        "model.num_heads": [2, 2, 4],
        "model.split_sizes": [2, 4, 4],
    },
    "patches of 4, 64 channels": PATCHES_OF_4 | {"model.embed_dim": 64},
    "patches of 4, 96 channels": PATCHES_OF_4 | {"model.embed_dim": 96},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("output", type=Path)
    parser.add_argument("names", nargs="*", default=list(CHANGES))
    parser.add_argument("--seconds", type=float, default=150, help="of CPU time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(options.output.read_text()) if options.output.is_file() else {}
    split, spec = open_dataset(resolve_dataset(options.data)).train, Preprocessing(image_size=32, crop_pct=1.0)
    order = np.random.default_rng(0).permutation(len(split))
    shifts = Shifts(spec, shift=SHIFT, hflip=0.5, keep=True)
    for name in options.names:
        if name not in found:
            model, done = train(CHANGES[name], split, order[HELD_OUT:], shifts, options.seconds, options.seed)
            right = accuracy(model, split, order[:HELD_OUT], spec)
            found[name] = {"top1": right, **done}
            options.output.write_text(json.dumps(found, indent=2) + "\n")
            print(name, found[name], flush=True)


def train(
    changes: dict[str, Any], split: Split, chosen: np.ndarray[Any, Any], shifts: Shifts, seconds: float, seed: int
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The network after so many seconds of CPU time, and what it took."""
    recipe = load_recipe("cifar10", COMMON | changes)
    torch.manual_seed(seed)
    settings = {key: value for key, value in recipe.model.items() if key != "name"}
    model = create_model(recipe.model["name"], num_classes=10, **settings).train()
    optimizers, normalize = build_optimizers(model, recipe), PixelNormalize(shifts.preprocessing)
    random, labels = np.random.default_rng(seed), np.asarray(split.labels)
    for index in chosen:
        shifts.read(split, int(index), random)  # decoded before the clock starts
    images, started = 0, time.process_time()
    while (gone := (time.process_time() - started) / seconds) < 1:
        batch = random.choice(chosen, recipe.batch_size)
        pixels = torch.from_numpy(np.stack([shifts.read(split, int(index), random) for index in batch]))
        optimizers.set_lr(learning_rate(int(gone * PARTS), PARTS, recipe.peak_rate))
        optimizers.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(normalize(pixels))
        F.cross_entropy(logits.float(), torch.from_numpy(labels[batch])).backward()  # type: ignore[no-untyped-call]
        optimizers.step()
        images += len(batch)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return model.eval(), {"images": images, "images_per_second": round(images / seconds), "parameters": parameters}


@torch.inference_mode()
def accuracy(model: torch.nn.Module, split: Split, chosen: np.ndarray[Any, Any], spec: Preprocessing) -> float:
    normalize, right = PixelNormalize(spec), 0
    for part in np.array_split(chosen, 50):
        pixels = torch.from_numpy(np.stack([spec.read(split.encoded(int(index))) for index in part]))
        right += int((model(normalize(pixels)).argmax(dim=1).numpy() == np.asarray(split.labels)[part]).sum())
    return round(right / len(chosen), 4)


if __name__ == "__main__":
    main()
