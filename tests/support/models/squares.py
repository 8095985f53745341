"""A tiny model that knows the color of a square, and images with such a square in one of four corners."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lipsformer import Preprocessing, create_model
from lipsformer.checkpoints.checkpoint import Checkpoint

__all__ = ["COLORS", "SIDE", "colored_squares", "train_on_squares"]

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SIDE = 32
SQUARE = 10
STEPS = 80


def colored_squares(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gray noise (N, S, S, 3), uint8, with a square in a corner: images, classes, and corners as (row, column)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(90, 160, (count, SIDE, SIDE, 1), generator=generator).expand(-1, -1, -1, 3).clone()
    classes = torch.randint(len(COLORS), (count,), generator=generator)
    corners = torch.randint(2, (count, 2), generator=generator)
    for image, index, (row, column) in zip(images, classes, corners, strict=True):
        top, left = (2 + (SIDE - SQUARE - 4) * int(place) for place in (row, column))
        image[top : top + SQUARE, left : left + SQUARE] = torch.tensor(list(COLORS.values())[int(index)])
    return images.to(torch.uint8), classes, corners


def train_on_squares(name: str, **overrides: object) -> Checkpoint:
    """A checkpoint of variant `name`, trained for two seconds to tell the colors apart, with a temperature of 0.5."""
    from lipsformer.model.pixel_norm import PixelNormalize

    preprocessing = Preprocessing(image_size=SIDE, crop_pct=1.0)
    normalize = PixelNormalize(preprocessing)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model(name, len(COLORS), SIDE, embed_dim=16, depths=(1, 1, 1, 1), **overrides)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(STEPS):
            images, classes, _ = colored_squares(24, seed=step)
            loss = F.cross_entropy(model(normalize(images)), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Checkpoint(
        config=model.config,
        classes=tuple(COLORS),
        preprocessing=preprocessing,
        metrics={},
        temperature=0.5,
        model=model.eval().requires_grad_(False),
    )
