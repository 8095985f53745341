"""The range of deep pixels: measured when a training starts, said, saved with its state, and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from lipsformer import InputError, load_checkpoint
from lipsformer.datasets import Split, open_dataset
from lipsformer.images.open import open_image
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.train import load_recipe, run
from lipsformer.train.data import pixel_range
from lipsformer.train.data.dataset import ValidationImages
from lipsformer.train.data.pixel_range import measure_pixel_range
from lipsformer.train.recipe import Recipe
from lipsformer.train.state import METADATA_KEY, _digest, read_state
from tests.support.images.deep import deep_png, deep_tiff
from tests.support.images.files import encode, exif_orientation, gradient
from tests.support.tiny_training import contents, states, train_tiny

Write = Callable[[np.ndarray], bytes]


def png_of_bytes(values: np.ndarray) -> bytes:
    return deep_png(values.astype(np.uint16))


def folder(root: Path, write: Write, low: float, high: float, *, ending: str = ".png", count: int = 6) -> Path:
    """train/ and val/ of two classes; the images of each class range from `low` to `high`."""
    for number in range(count):
        values = np.linspace(low, high, 40 * 40).reshape(40, 40)
        for label, turned in (("across", values), ("down", values.T)):
            for split in ("train", "val"):
                path = root / split / label / f"{number}{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(write(turned))
    return root


def split_of(root: Path) -> Split:
    return open_dataset(root).train


def of_kind(kind: str) -> Write:
    return lambda values: deep_tiff(values.astype(kind))


def color(values: np.ndarray) -> bytes:
    return png_of_bytes(np.stack([values, values[::-1], values], -1))


@pytest.mark.parametrize(
    ("write", "low", "high", "expected"),
    [
        (png_of_bytes, 0, 4090, (0, 4095)),
        (png_of_bytes, 3, 255, (0, 255)),
        (png_of_bytes, 0, 60_000, (0, 65535)),
        (png_of_bytes, 29_000, 31_000, (29_000, 31_000)),  # a thermal camera
        (color, 0, 1000, (0, 1023)),
        (of_kind("u2"), 0, 16_000, (0, 16_383)),
        (of_kind("i2"), -1024, 3071, (-1024, 3071)),  # computed tomography
        (of_kind(">i2"), -1024, 3071, (-1024, 3071)),
        (of_kind("i4"), 0, 4000, (0, 4095)),
        (of_kind("f4"), 0.01, 0.98, (0, 1)),
        (of_kind("f4"), 250.5, 310.25, (250.5, 310.25)),
        (of_kind("f4"), 0.5, 240.5, (0, 255)),
        (of_kind("u2"), 7, 7, (7, 8)),
    ],
)
def test_the_range_holds_all_values(
    write: Write, low: float, high: float, expected: tuple[float, float], tmp_path: Path
) -> None:
    found = measure_pixel_range(split_of(folder(tmp_path, write, low, high, ending=".tif")))
    assert found.pixel_range == expected
    assert found.note.startswith("deep pixels in 12 of 12 sampled images: values ")
    assert f"read as {expected[0]:g} (black) to {expected[1]:g} (white)" in found.note
    assert "outliers" not in found.note
    assert "8 bits" not in found.note


def test_color_whose_lower_bytes_cannot_be_read_is_not_measured(tmp_path: Path) -> None:
    def planes(values: np.ndarray) -> bytes:
        return deep_tiff(np.stack([values] * 3, -1).astype(np.uint16), planes=True, deflate=True)

    split = split_of(folder(tmp_path, planes, 0, 4000, ending=".tif"))
    assert measure_pixel_range(split).pixel_range == "full"
    message = ValidationImages(split, Preprocessing(image_size=16, pixel_range="full"))[0].unreadable[0]
    assert message.startswith(f"{split.where(0)}: only the upper bytes of its separate 16-bit planes can be read")


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif"])
def test_without_deep_images_there_is_nothing_to_say(ending: str, tmp_path: Path) -> None:
    def write(values: np.ndarray) -> bytes:
        path = tmp_path / f"image{ending}"
        Image.fromarray(values.astype(np.uint8)).save(path)
        return path.read_bytes()

    found = measure_pixel_range(split_of(folder(tmp_path / "data", write, 0, 255, ending=ending)))
    assert (found.pixel_range, found.note) == ("full", "")


def test_a_mixed_set_is_said(tmp_path: Path) -> None:
    folder(tmp_path, png_of_bytes, 0, 4000)
    for path in sorted((tmp_path / "train" / "down").iterdir())[:4]:
        Image.new("L", (8, 8), 200).save(path)
    (tmp_path / "train" / "down" / "5.png").write_bytes(b"no image")
    found = measure_pixel_range(split_of(tmp_path))
    assert found.pixel_range == (0, 4095)
    assert "in 7 of 11 sampled images" in found.note
    assert "the others have 8 bits and are read as they are" in found.note


def test_a_few_deep_files_among_many_photos_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_range, "LOOKED_AT", 2)
    folder(tmp_path, png_of_bytes, 0, 1000, ending=".tiff", count=1)
    for number in range(30):
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / "across" / f"{number}.jpg")
    assert measure_pixel_range(split_of(tmp_path)).pixel_range == (0, 1023)


@pytest.mark.parametrize(("value", "within"), [(65535, "29000"), (0, "29000"), (40_000, None)])
def test_outliers_decide_the_range_but_not_silently(value: int, within: str | None, tmp_path: Path) -> None:
    folder(tmp_path, png_of_bytes, 29_000, 31_000 if within else 39_000)
    values = np.full((40, 40), 30_000, np.uint16)
    values[0, 0] = value
    (tmp_path / "train" / "down" / "hot.png").write_bytes(deep_png(values))
    found = measure_pixel_range(split_of(tmp_path))
    low, high = found.pixel_range
    assert isinstance(low, float)
    assert low <= value <= high  # type: ignore[operator]
    hint = "if the others are outliers, --set 'pixel_range=["
    assert (hint in found.note) == bool(within)
    if within:
        assert "99.9% of the values are within 29" in found.note


def test_a_large_set_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_range, "LOOKED_AT", 2)
    monkeypatch.setattr(pixel_range, "MEASURED", 5)
    split = split_of(folder(tmp_path, png_of_bytes, 0, 4000, count=20))
    opened = []
    open_image_of = type(split).open

    def recorded(split: Split, index: int, **options: Any) -> Image.Image:
        opened.append(index)
        return open_image_of(split, index, **options)

    monkeypatch.setattr(type(split), "open", recorded)
    first = measure_pixel_range(split)
    assert len(set(opened)) == len(opened) <= 7
    assert measure_pixel_range(split) == first


@pytest.mark.slow
def test_a_training_says_the_range_and_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder(tmp_path / "data", png_of_bytes, 0, 4000)
    train_tiny(data, tmp_path / "run", epochs=2)
    said = capsys.readouterr().err
    assert "deep pixels in 12 of 12 sampled images: values 0 to 4000, read as 0 (black) to 4095 (white)" in said
    spec = load_checkpoint(tmp_path / "run" / "last.safetensors").preprocessing
    assert (spec.pixel_range, spec.color_management, spec.jpeg_scale) == ((0, 4095), True, "reduced")
    states(tmp_path / "run")[-1].unlink()  # as if it had been stopped after the first epoch
    before = contents(tmp_path / "run")[0]["last/head.weight"]
    monkeypatch.setattr(run, "measure_pixel_range", lambda _: pytest.fail("it was measured again"))
    train_tiny(data, tmp_path / "run", epochs=2)
    assert "deep pixels are read as 0 (black) to 4095 (white)" in capsys.readouterr().err
    assert (contents(tmp_path / "run")[0]["last/head.weight"] == before).all()


@pytest.mark.parametrize(
    ("setting", "expected"), [('"full"', "full"), ("[0, 1000]", (0, 1000)), ("[-5.5, 1e3]", (-5.5, 1000))]
)
def test_a_given_range_is_not_measured(
    setting: str, expected: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "measure_pixel_range", lambda _: pytest.fail("it was measured"))
    data = folder(tmp_path / "data", png_of_bytes, 0, 4000, count=2)
    best = train_tiny(
        data, tmp_path / "run", f"pixel_range={setting}", "color_management=false", "jpeg_scale=full", epochs=1
    )
    spec = load_checkpoint(best).preprocessing
    assert (spec.pixel_range, spec.color_management, spec.jpeg_scale) == (expected, False, "full")
    with pytest.raises(InputError, match=r"pixel_range was .*, is \[0.0, 7.0\]"):
        train_tiny(data, tmp_path / "run", "pixel_range=[0, 7]", "color_management=false", epochs=1)


@pytest.mark.parametrize("setting", ["[5, 5]", "[5, 1]", "[1]", '"wide"', "3", "[0, inf]", "[0, nan]"])
def test_a_wrong_range_is_refused(setting: str) -> None:
    with pytest.raises(InputError, match="pixel_range") as failure:
        load_recipe("default", [f"pixel_range={setting}"])
    assert len(str(failure.value).splitlines()) == 1


def make_older(path: Path) -> None:
    """Rewrites a state as a version without pixel ranges, color profiles and JPEG scales wrote it."""
    content = path.read_bytes()
    tensors = load_tensors(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    metadata = json.loads(header[METADATA_KEY])
    for owner, key in ((metadata, "sha256"), (metadata, "preprocessing"), (metadata["recipe"], "pixel_range"),
                       (metadata["recipe"], "color_management"), (metadata["recipe"], "jpeg_scale")):  # fmt: skip
        del owner[key]
    signed = {**metadata, "sha256": _digest(metadata, tensors)}
    path.write_bytes(save_tensors(tensors, {METADATA_KEY: json.dumps(signed)}))


def test_an_older_run_is_resumed_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder(tmp_path / "data", png_of_bytes, 0, 60_000)
    train_tiny(data, tmp_path / "run", epochs=2)
    states(tmp_path / "run")[-1].unlink()
    make_older(states(tmp_path / "run")[-1])
    assert read_state(tmp_path, states(tmp_path / "run")[-1].read_bytes()).preprocessing is None
    monkeypatch.setattr(run, "measure_pixel_range", lambda _: pytest.fail("it was measured"))
    spec = load_checkpoint(train_tiny(data, tmp_path / "run", epochs=2).with_name("last.safetensors")).preprocessing
    assert (spec.pixel_range, spec.color_management, spec.jpeg_scale) == (None, False, "full")


def test_a_recipe_without_the_settings_is_complete() -> None:
    data = load_recipe("default").to_dict()
    older = {key: value for key, value in data.items() if key not in ("pixel_range", "color_management", "jpeg_scale")}
    assert Recipe.from_dict(older) == load_recipe("default")


def test_validation_sees_a_sideways_photo_upright(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(encode("JPEG", gradient((80, 40)), exif=exif_orientation(6)))
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "data" / label / f"{number}.jpg").write_bytes((tmp_path / "photo.jpg").read_bytes())
    spec = Preprocessing(image_size=16)
    image = ValidationImages(open_dataset(tmp_path / "data").validation, spec)[0]
    assert np.array_equal(image.pixels, spec.apply(open_image(tmp_path / "photo.jpg")))
