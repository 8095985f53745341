"""The check of a whole-image graph: the same answers as the graph behind it gives for pixels that Pillow resized."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from lipsformer.export.parity.metrics import relative_l2, top1_agrees
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.runtimes import IMAGES_NAME, LOGITS_NAME, OnnxRuntime, open_session

__all__ = ["WholeImageParity", "check_whole_image"]

# Width and height relative to the network's side. In the second portrait, Pillow 13 resizes columns first.
SHAPES = ((1, 1), (1.5, 1), (1, 1.5), (2.7, 4.1), (5.3, 3), (0.4, 0.3), (0.7, 1.9), (1.9, 0.7), (9, 1.1), (1.1, 9))
THIN = ((1, 1), (1, 40), (40, 1), (3, 5))  # in pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeImageParity:
    """How a whole-image graph compares with the graph behind it, over `images` images, each of a different size.

    `relative_l2` is that of the worst image, `top1_agreement` the share of images with the same top-1 class, and
    `limit` that of `relative_l2`.
    """

    images: int
    relative_l2: float
    top1_agreement: float
    limit: float

    @property
    def failure(self) -> str | None:
        """Why it fails, or None if it passes."""
        if self.relative_l2 <= self.limit and self.top1_agreement == 1:  # false for NaN
            return None
        return (
            f"its answers are not those of the graph behind it: relative_l2 {self.relative_l2:.2g}, limit "
            f"{self.limit:g}, top1_agreement {self.top1_agreement:.4g}, limit 1"
        )

    def summary(self) -> dict[str, Any]:
        """The manifest's entry."""
        return {"passed": self.failure is None, **dataclasses.asdict(self)}


def check_whole_image(whole: Path, graph: Path, preprocessing: Preprocessing, limit: float) -> WholeImageParity:
    """Compare the logits of both on the CPU, for sample photos in 14 sizes: portraits, panoramas, and tiny ones.

    Args:
        whole: the whole-image graph.
        graph: the graph that takes the network's pixels.
        limit: of the relative L2 error of an image. The pixels are equal, so it only has to cover rounding.

    Raises:
        InputError: if one of them cannot be loaded.
    """
    session, runtime = open_session(whole, cuda=False), OnnxRuntime(graph, "cpu")
    wanted, found = [], []
    for image in _images(preprocessing.image_size):
        wanted.append(runtime.infer(preprocessing.apply(image)[np.newaxis]).logits)
        found.extend(session.run([LOGITS_NAME], {IMAGES_NAME: np.asarray(image)[np.newaxis]}))
    a, b = np.concatenate(wanted), np.concatenate(found)
    return WholeImageParity(
        images=len(a),
        relative_l2=float(relative_l2(a, b).max()),
        top1_agreement=float(top1_agrees(a, b).mean()),
        limit=limit,
    )


def _images(side: int) -> Iterator[Image.Image]:
    """Sample photos, cut so that the fruit reaches every border, in different sizes."""
    sizes = [(max(1, round(width * side)), max(1, round(height * side))) for width, height in SHAPES]
    for path, size in zip(sorted(SAMPLES.glob("*.jpg")), [*sizes, *THIN], strict=True):
        with Image.open(path) as photo:
            yield ImageOps.fit(photo.convert("RGB"), size, Image.Resampling.BICUBIC)
