"""A checkpoint run by PyTorch: the reference for every other runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lipsformer.system.hardware import torch_device

from .base import Outputs, Pixels

if TYPE_CHECKING:
    from lipsformer.checkpoints.checkpoint import Checkpoint

__all__ = ["TorchRuntime"]


class TorchRuntime:
    """Runs a checkpoint in float32 on `device`: "auto" (CUDA if available), "cpu" or "cuda".

    On CUDA, it turns off TF32 in the float32 convolutions of this process: cuDNN would use it by default.

    Raises:
        InputError: if the device is not available.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        import torch

        from lipsformer.model.pixel_norm import PixelNormalize

        self.device = torch_device(device)
        if self.device.type == "cuda":  # TF32 has fp16's ten bits; matrix products are in float32 by default
            torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        self.provider = f"torch-{self.device.type}"
        self.normalize = PixelNormalize(checkpoint.preprocessing).to(self.device)
        self.model = checkpoint.calibrated().to(self.device)

    def infer(self, pixels: Pixels) -> Outputs:
        """Calibrated logits (N, K) and features (N, C) of pixels (N, S, S, 3)."""
        import torch

        with torch.inference_mode():
            features = self.model.forward_features(self.normalize(torch.tensor(pixels, device=self.device)))
            return Outputs(self.model.head(features).cpu().numpy(), features.cpu().numpy())
