"""Random crops from reduced decodes: the same crop as from the whole photo, to about a gray level."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import ExifTags, Image

from lipsformer.datasets import Split
from lipsformer.datasets.folders.folder import FolderSplit
from lipsformer.datasets.packed_names import PackedNames
from lipsformer.images.open import ORIENTATIONS
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.system.errors import InputError
from lipsformer.train.data.crops import Crops, Shifts, random_box


def split_of(*paths: Path) -> Split:
    return FolderSplit(
        name="train",
        classes=("photo",),
        labels=np.zeros(len(paths), np.int64),
        members=np.arange(len(paths)),
        root=paths[0].parent,
        prefix="",
        files=PackedNames.of(path.name.encode() for path in paths),
    )


def crops_of(
    size: int, scale: tuple[float, float] = (0.2, 1.0), jpeg_scale: Literal["full", "reduced"] = "reduced"
) -> Crops:
    spec = Preprocessing(image_size=size, jpeg_scale=jpeg_scale)
    return Crops(preprocessing=spec, scale=scale, hflip=0.5)


def difference(split: Split, index: int, seed: int, size: int) -> float:
    """The mean difference in gray levels between a crop of a reduced decode and that of the whole photo."""
    reduced, whole = (
        crops_of(size, jpeg_scale=jpeg_scale).read(split, index, np.random.default_rng(seed)).astype(int)
        for jpeg_scale in ("reduced", "full")
    )
    return float(abs(reduced - whole).mean())


@pytest.mark.parametrize("size", [32, 64])
def test_a_crop_of_a_reduced_decode_is_that_of_the_whole_photo(size: int, samples: list[Path]) -> None:
    split = split_of(*samples)
    found = [difference(split, index, seed, size) for index in range(len(split)) for seed in range(4)]
    assert 0 < np.mean(found) < 0.7
    assert max(found) < 1.5


def test_what_is_decoded_is_reduced_as_far_as_the_crop_allows(
    samples: list[Path], decoded_sizes: list[tuple[int, int]]
) -> None:
    split = split_of(samples[0])
    for scale, size in ((1.0, 32), (1.0, 64), (1.0, 224), (0.25, 64), (0.25, 32)):
        pixels = crops_of(size, scale=(scale, scale)).read(split, 0, np.random.default_rng(0))
        assert pixels.shape == (size, size, 3)
    assert decoded_sizes == [(87, 87), (174, 174), (348, 348), (348, 348), (174, 174)]
    decoded_sizes.clear()
    crops_of(32, jpeg_scale="full").read(split, 0, np.random.default_rng(0))
    assert decoded_sizes == [(348, 348)]


def test_what_is_decoded_has_twice_the_pixels_that_the_crop_needs(
    samples: list[Path], decoded_sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = []
    resize = Image.Image.resize

    def resized(image: Image.Image, size: Any, resample: Any, box: Any, reducing_gap: Any) -> Image.Image:
        boxes.append(box)
        return resize(image, size, resample, box, reducing_gap)

    monkeypatch.setattr(Image.Image, "resize", resized)
    split = split_of(*samples)
    for seed in range(60):
        crops_of(24, scale=(0.02, 1.0)).read(split, seed % len(split), np.random.default_rng(seed))
    for (width, _), (left, top, right, bottom) in zip(decoded_sizes, boxes, strict=True):
        side = min(right - left, bottom - top)
        assert side >= 2 * 24 or width == 348
        assert side < 4 * 24 or width == 44  # and no more than twice that, except at an eighth
    assert {width for width, _ in decoded_sizes} >= {87, 174, 348}


def gradient(path: Path, size: tuple[int, int], orientation: int) -> Path:
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    image = Image.fromarray(np.stack([across, down, 255 - down], axis=2).astype(np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=exif, quality=95)
    return path


@pytest.mark.parametrize("orientation", [1, *ORIENTATIONS])
@pytest.mark.parametrize("size", [(640, 400), (637, 399), (131, 999)])
def test_the_crop_lies_where_it_lay(
    size: tuple[int, int], orientation: int, tmp_path: Path, decoded_sizes: list[tuple[int, int]]
) -> None:
    split = split_of(gradient(tmp_path / "photo.jpg", size, orientation))
    # In the direction of its shorter side, the gradient changes by 255 / 131 * 1.5 levels from pixel to pixel at most.
    assert max(difference(split, 0, seed, 16) for seed in range(6)) < 3.0
    assert min(decoded_sizes) < max(decoded_sizes)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (9, 9), (40, 3)])
def test_photos_smaller_than_the_crop(size: tuple[int, int], tmp_path: Path) -> None:
    split = split_of(gradient(tmp_path / "photo.jpg", size, 6))
    for seed in range(20):
        assert crops_of(4, scale=(0.01, 1.0)).read(split, 0, np.random.default_rng(seed)).shape == (4, 4, 3)


def test_other_formats_are_cropped_from_the_whole(samples: list[Path], tmp_path: Path) -> None:
    Image.open(samples[0]).save(tmp_path / "photo.png")
    assert difference(split_of(tmp_path / "photo.png"), 0, 0, 32) == 0.0


def test_an_unreadable_photo_is_named(samples: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(samples[0].read_bytes()[:3000])
    grid = io.BytesIO()
    Image.new("RGB", (4, 4)).save(grid, "PNG")
    (tmp_path / "cut.png").write_bytes(grid.getvalue()[:45])
    split = split_of(tmp_path / "cut.jpg", tmp_path / "cut.png")
    for index in range(2):
        with pytest.raises(InputError) as failure:
            crops_of(32).read(split, index, np.random.default_rng(0))
        assert str(failure.value).startswith(f"{split.where(index)}: damaged")


def test_crops_stay_inside_and_show_the_share_they_should() -> None:
    rng = np.random.default_rng(0)
    for width, height in ((348, 348), (640, 480), (50, 900)):
        for _ in range(300):
            left, top, right, bottom = random_box(rng, (width, height), (0.2, 0.9))
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            share = (right - left) * (bottom - top) / (width * height)
            assert share <= 0.9 + 1e-9
            assert width != height or share > 0.19


def test_a_shift_moves_the_whole_image_and_reflects_its_edges(samples: list[Path]) -> None:
    spec = Preprocessing(image_size=16)
    split, shifts = split_of(*samples[:2]), Shifts(spec, shift=2, hflip=0.5, keep=False)
    padded = np.pad(spec.read(samples[1]), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    moves = [padded[down : down + 16, right : right + 16] for down in range(5) for right in range(5)]
    known = [move.tobytes() for move in (*moves, *(move[:, ::-1] for move in moves))]
    rng = np.random.default_rng(0)
    found = {known.index(shifts.read(split, 1, rng).tobytes()) for _ in range(400)}
    assert len(found) > 45  # of 50, all equally likely


def test_kept_images_are_read_once(samples: list[Path], decoded_sizes: list[tuple[int, int]]) -> None:
    split, rng = split_of(*samples[:2]), np.random.default_rng(0)
    for keep, times in ((True, 2), (False, 6)):
        shifts = Shifts(Preprocessing(image_size=16), shift=2, hflip=0.5, keep=keep)
        for index in (0, 1, 0, 1, 0, 1):
            assert shifts.read(split, index, rng).shape == (16, 16, 3)
        assert len(decoded_sizes) == times
        decoded_sizes.clear()
