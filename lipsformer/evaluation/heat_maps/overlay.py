"""A heat map over its image: orange where pixels spoke for the class, blue where they spoke against it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsformer.images.preprocessing import Pixels
from lipsformer.inference.heat_map import HeatMap

__all__ = ["overlay"]

# Two hues that color-blind readers distinguish, over a gray image: the more color, the larger the contribution.
FOR, AGAINST = (255.0, 120.0, 0.0), (20.0, 110.0, 255.0)
MOST = 0.85  # opacity of the largest contribution
CONTRAST = 0.75  # of the gray image, which is lightened, so that both colors stand out
LUMA = (0.299, 0.587, 0.114)


def overlay(pixels: Pixels, heat_map: HeatMap) -> Pixels:
    """The image (S, S, 3) in gray, colored by the contributions relative to the largest one, smoothly enlarged."""
    found = heat_map.contributions
    shares = found / max(float(np.abs(found).max()), float(np.finfo(np.float32).tiny))
    size = (pixels.shape[1], pixels.shape[0])
    enlarged = np.asarray(Image.fromarray(shares.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    gray = 255 * (1 - CONTRAST) / 2 + CONTRAST * (pixels @ np.array(LUMA))[..., None]  # (S, S, 1)
    alpha = MOST * np.abs(enlarged)[..., None]
    color: NDArray[np.float64] = np.where(enlarged[..., None] > 0, FOR, AGAINST)
    drawn: Pixels = (gray * (1 - alpha) + color * alpha).round().astype(np.uint8)
    return drawn
