"""What the teacher sees: the student's augmented crop, in the teacher's size, normalization and layout.

Teacher and student see the same pixels ("consistent teaching", Beyer et al. 2022): crop, flip, RandAugment, erasing and
the blend of mixup and CutMix.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipsformer.images.preprocessing import Preprocessing

__all__ = ["InputFormat", "TeacherView"]

Color = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputFormat:
    """The images that a teacher takes: (value - mean) / std, for RGB values from `low` (black) to `high` (white).

    Attributes:
        image_size: side of the square, in pixels.
        mean, std: of each RGB channel.
        low, high: the range of the values.
        interpolation: "bilinear" or "bicubic".
        layout: "nchw" or "nhwc".
        dtype: of the values; uint8 ones are rounded and clamped.
    """

    image_size: int
    mean: Color = (0.0, 0.0, 0.0)
    std: Color = (1.0, 1.0, 1.0)
    low: float = 0.0
    high: float = 1.0
    interpolation: str = "bicubic"
    layout: str = "nchw"
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, preprocessing: Preprocessing, dtype: torch.dtype) -> InputFormat:
        """The normalized images that a PyTorch model with this preprocessing takes."""
        return cls(
            image_size=preprocessing.image_size,
            mean=preprocessing.mean,
            std=preprocessing.std,
            interpolation=preprocessing.interpolation,
            dtype=dtype,
        )

    @classmethod
    def pixels(cls, preprocessing: Preprocessing) -> InputFormat:
        """The uint8 pixels that an exported model with this preprocessing takes."""
        return cls(
            image_size=preprocessing.image_size,
            high=255.0,
            interpolation=preprocessing.interpolation,
            layout="nhwc",
            dtype=torch.uint8,
        )


class TeacherView(nn.Module):
    """Maps a student's normalized images (B, 3, S, S) to what its teacher takes, on the same device.

    If both take the same images, they are passed on unchanged.
    """

    def __init__(self, student: Preprocessing, teacher: InputFormat) -> None:
        super().__init__()
        self.teacher = teacher
        colors = (teacher.mean, teacher.std, student.mean, student.std)
        mean, std, student_mean, student_std = (torch.tensor(color, dtype=torch.float64) for color in colors)
        scale = (teacher.high - teacher.low) / std  # of RGB in 0..1, which is image * student_std + student_mean
        shift = student_mean * scale + (teacher.low - mean) / std
        self.register_buffer("scale", (student_std * scale)[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)
        self.scale: Tensor
        self.shift: Tensor
        one, zero = torch.ones_like(self.scale), torch.zeros_like(self.shift)
        self.same_colors = torch.allclose(self.scale, one) and torch.allclose(self.shift, zero)

    def forward(self, images: Tensor) -> Tensor:
        teacher, size = self.teacher, self.teacher.image_size
        if images.shape[-1] != size:
            images = F.interpolate(images, size=(size, size), mode=teacher.interpolation, antialias=True)
        if not self.same_colors:
            images = images * self.scale.to(images.dtype) + self.shift.to(images.dtype)
        if teacher.dtype == torch.uint8:
            images = images.round().clamp(0, 255)
        images = images.to(teacher.dtype)
        return images.permute(0, 2, 3, 1) if teacher.layout == "nhwc" else images
