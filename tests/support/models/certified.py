"""A tiny network with a certificate, and photos that it classifies correctly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lipsformer import Preprocessing, save_checkpoint
from lipsformer.checkpoints.checkpoint import load_checkpoint
from lipsformer.inference.runtimes import TorchRuntime
from lipsformer.model.blocks import LipsFormer
from lipsformer.model.factory import build_model
from lipsformer.model.init_weights import init_weights
from lipsformer.train.optim.spectral_cap import SpectralCap

from .small_models import CERTIFIED

__all__ = ["NAMES", "make_certified", "make_labeled_photos"]

NAMES = tuple("abcde")


def make_certified(path: Path, *, temperature: float = 1.0, edit: float = 1.0) -> Path:
    """Writes a checkpoint of random weights below the cap; `edit` multiplies one matrix afterwards."""
    torch.manual_seed(0)
    model: LipsFormer = build_model(CERTIFIED)
    init_weights(model, "orthogonal")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        model.head.bias.zero_()
    SpectralCap(model, 1.0).start()
    with torch.no_grad():
        model.patch_embed.proj.weight *= edit
    save_checkpoint(
        path, config=CERTIFIED, weights=model.state_dict(), classes=NAMES,
        preprocessing=Preprocessing(image_size=32, crop_pct=1.0), metrics={}, temperature=temperature,
    )  # fmt: skip
    return path


def make_labeled_photos(folder: Path, checkpoint: Path, count: int = 12) -> Path:
    """Writes PNGs of colored squares into the folders of the classes that the checkpoint sees in them."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    pixels = coarse.repeat(8, axis=1).repeat(8, axis=2)
    found = TorchRuntime(load_checkpoint(checkpoint)).infer(pixels).logits.argmax(axis=1)
    for number, (image, label) in enumerate(zip(pixels, found, strict=True)):
        target = folder / "test" / NAMES[label]
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target / f"{number}.png")
    return folder
