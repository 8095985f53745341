"""Pixel normalization in PyTorch: the first layer of every model, in training, checkpoints and exported graphs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lipsformer.images.preprocessing import Preprocessing

__all__ = ["PixelNormalize"]


class PixelNormalize(nn.Module):
    """Maps uint8 pixels (B, S, S, 3) to float images (B, 3, S, S): (pixels / 255 - mean) / std per channel.

    Returns a channels-last view: changing the layout costs no copy.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("offset", mean * 255.0, persistent=False)
        self.register_buffer("divisor", std * 255.0, persistent=False)
        self.offset: Tensor
        self.divisor: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        return ((pixels.float() - self.offset) / self.divisor).permute(0, 3, 1, 2)
