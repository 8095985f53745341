"""The teacher sees the student's pixels, in its size and normalization."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lipsformer import Preprocessing
from lipsformer.model.pixel_norm import PixelNormalize
from lipsformer.train.distillation.view import InputFormat, TeacherView

STUDENT = Preprocessing(image_size=24)
OTHER = Preprocessing(image_size=24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_same_format_is_passed_on_unchanged(pixels: torch.Tensor) -> None:
    images = PixelNormalize(STUDENT)(pixels)
    assert TeacherView(STUDENT, InputFormat.of(STUDENT, torch.float32))(images) is images


def test_other_colors_are_renormalized(pixels: torch.Tensor) -> None:
    view = TeacherView(STUDENT, InputFormat.of(OTHER, torch.float32))
    torch.testing.assert_close(view(PixelNormalize(STUDENT)(pixels)), PixelNormalize(OTHER)(pixels))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [10, 40])
def test_another_size_is_resized_with_antialiasing(pixels: torch.Tensor, size: int, interpolation: str) -> None:
    teacher = Preprocessing(image_size=size, mean=OTHER.mean, std=OTHER.std, interpolation=interpolation)
    found = TeacherView(STUDENT, InputFormat.of(teacher, torch.float64))(PixelNormalize(STUDENT).double()(pixels))
    values = F.interpolate(pixels.permute(0, 3, 1, 2).double() / 255, (size, size), mode=interpolation, antialias=True)
    mean, std = (torch.tensor(color).double()[:, None, None] for color in (OTHER.mean, OTHER.std))
    torch.testing.assert_close(found, (values - mean) / std, atol=1e-5, rtol=1e-5)


def test_an_exported_model_gets_its_pixels_back(pixels: torch.Tensor) -> None:
    found = TeacherView(STUDENT, InputFormat.pixels(OTHER))(PixelNormalize(STUDENT)(pixels))
    assert found.dtype == torch.uint8
    assert torch.equal(found, pixels)


def test_values_beyond_the_range_of_pixels_are_clamped() -> None:
    view = TeacherView(STUDENT, InputFormat.pixels(OTHER))
    found = view(torch.tensor([-9.0, 9.0]).repeat(1, 3, 24, 12))
    assert found.unique().tolist() == [0, 255]


def test_an_input_range_comes_before_mean_and_std(pixels: torch.Tensor) -> None:
    teacher = InputFormat(image_size=24, mean=(10.0, 20.0, 30.0), std=(2.0, 3.0, 4.0), low=-1.0, high=255.0)
    found = TeacherView(STUDENT, teacher)(PixelNormalize(STUDENT)(pixels))
    values = pixels.double() / 255 * 256 - 1
    wanted = (values - torch.tensor([10.0, 20, 30])) / torch.tensor([2.0, 3, 4])
    torch.testing.assert_close(found.double(), wanted.permute(0, 3, 1, 2), atol=1e-4, rtol=1e-5)
