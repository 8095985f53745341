"""Short trainings with one choice changed each: what it is worth in certified accuracy.

    python benchmarks/certified/ablations.py --steps 150 cifar10 OUTPUT.json "as the recipe" "no margin loss"

Each starts from the same seed and sees the same images in the same order, mirrored and moved in the same way. Certified
on 2,000 test images, evenly spread. OUTPUT.json gets an entry as each one ends; those that it has are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lipsformer.checkpoints.certificate import bounded_certificate
from lipsformer.checkpoints.checkpoint import Checkpoint
from lipsformer.datasets import Split, open_dataset, resolve_dataset
from lipsformer.datasets.spread import spread
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.model.blocks import LipsFormer
from lipsformer.model.factory import create_model
from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.train import load_recipe
from lipsformer.train.data.crops import Shifts
from lipsformer.train.margin import BOUND_EVERY, add_margin, margin_at, running_bound
from lipsformer.train.optim.optimizers import build_optimizers
from lipsformer.train.optim.schedule import learning_rate
from lipsformer.train.optim.spectral_cap import SpectralCap

RADII = {"36/255": 36 / 255, "72/255": 72 / 255}
CERTIFIED = 2000
WITHOUT_ATTENTION = "no attention"  # its branches get no share, which no configuration says
CHANGES: dict[str, dict[str, Any]] = {
    "as the recipe": {},
    "learned kernels": {"model.shift_conv": False},
    "all shares start at 0.5": {"model.initial_shares": [0.5, 0.5, 0.5]},
    "attention keeps a share of 0.2": {
        "model.learned_shares": False,
        "model.initial_shares": [0.998, 0.2, 0.5],
        "model.epsilon": 100.0,  # with 1, values are 1 long next to tokens of 10
        "model.value_scale": 10.0,
    },
    "learning rate 0.01": {"learning_rate": 0.01},
    "margin 0.28": {"margin": 0.28},
    "AdamW for Muon": {"optimizer": "adamw"},
    "no margin loss": {"loss": "cross_entropy"},
    "no spectral cap": {"spectral_cap": 0.0},
    "weighted residuals": {"model.residual": "weighted"},
    "GELU": {"model.activation": "gelu"},
    "mean pooling": {"model.pooling": "mean"},
    "no convolution branch": {"model.conv_branches": 0},
    WITHOUT_ATTENTION: {},
    "two blocks": {"model.depths": [2]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("output", type=Path)
    parser.add_argument("names", nargs="*", default=list(CHANGES))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(options.output.read_text()) if options.output.is_file() else {}
    dataset = open_dataset(resolve_dataset(options.data))
    spec = Preprocessing(image_size=32, crop_pct=1.0)
    recipe = load_recipe("cifar10_certified")
    train = TrainingPhotos(dataset.train, Shifts(spec, shift=recipe.shift, hflip=recipe.hflip, keep=True))
    test = read(dataset.validation, spec, CERTIFIED)
    for name in options.names:
        if name not in found:
            found[name] = measure(name, train, test, spec, options.steps, options.seed)
            options.output.write_text(json.dumps(found, indent=2) + "\n")
            print(name, found[name], flush=True)


class TrainingPhotos(NamedTuple):
    """The images to train on, and how they are read."""

    split: Split
    shifts: Shifts

    def batch(self, size: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Pixels (size, S, S, 3) and labels (size,) of images drawn at random."""
        chosen = random.integers(0, len(self.split), size)
        pixels = [self.shifts.read(self.split, int(index), random) for index in chosen]
        return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.asarray(self.split.labels)[chosen])


def read(split: Split, spec: Preprocessing, count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    chosen = spread(count, len(split))
    return np.stack([spec.read(split.encoded(int(i))) for i in chosen]), np.asarray(split.labels)[chosen]


def measure(name: str, train: TrainingPhotos, test: Any, spec: Preprocessing, steps: int, seed: int) -> dict[str, Any]:
    """Trains and certifies one network."""
    recipe = load_recipe("cifar10_certified", CHANGES[name])
    torch.manual_seed(seed)
    settings = {key: value for key, value in recipe.model.items() if key != "name"}
    model = create_model(recipe.model["name"], num_classes=10, **settings).train()
    if name == WITHOUT_ATTENTION:
        remove_attention(model)
    if recipe.spectral_cap:
        SpectralCap(model, recipe.spectral_cap).start()
    optimizers, normalize = build_optimizers(model, recipe), PixelNormalize(spec)
    random, started, bound = np.random.default_rng(seed), time.process_time(), 0.0
    for step in range(steps):
        batch, truth = train.batch(recipe.batch_size, random)
        optimizers.set_lr(learning_rate(step, steps, recipe.peak_rate))
        optimizers.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocasts(batch.device)):
            logits = model(normalize(batch))
        logits = logits.float()
        if recipe.loss == "margin":
            if step % BOUND_EVERY == 0:
                bound = running_bound(model, spec.std)
            reach = bound * margin_at(step, steps, recipe.margin, recipe.margin_ramp)
            logits = add_margin(logits, truth, model.head.weight, reach)
        F.cross_entropy(logits, truth).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
        optimizers.step()
    checkpoint = Checkpoint(
        model=model.eval(), config=model.config, classes=tuple("0123456789"), preprocessing=spec, metrics={}
    )
    certificate = bounded_certificate(checkpoint)
    with torch.inference_mode():
        answers = torch.cat([model(normalize(torch.from_numpy(part))) for part in np.array_split(test[0], 20)]).numpy()
    correct = answers.argmax(axis=1) == test[1]
    radii = np.zeros(len(answers)) if certificate is None else np.where(correct, certificate.radii(answers), 0.0)
    return {
        "images": steps * recipe.batch_size,
        "clean": float(correct.mean()),
        **{name: float((radii > radius).mean()) for name, radius in RADII.items()},
        "lipschitz": None if certificate is None else certificate.lipschitz,
        "cpu_seconds": round(time.process_time() - started),
    }


@torch.no_grad()
def remove_attention(model: LipsFormer) -> None:
    """Gives the branches of attention a share of 1e-13, which stays."""
    for name, logit in model.named_parameters():
        if name.endswith("alpha1.logit"):
            logit.fill_(-30.0).requires_grad_(False)


if __name__ == "__main__":
    main()
