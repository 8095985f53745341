"""Searching for duplicates: what counts as one, and that the search misses no pair."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lipsformer.datasets.check import check_dataset
from lipsformer.datasets.check.components import Components
from lipsformer.datasets.check.fingerprint import SCALE, describe, read_photo
from lipsformer.datasets.check.nearby import candidate_pairs, within
from lipsformer.images.open import ORIENTATIONS
from lipsformer.images.samples import SAMPLES
from tests.support.images.files import encode, exif_orientation

SAMPLE = SAMPLES / "Kaiser.jpg"


def distance(one: bytes, other: bytes) -> float:
    """The distance of two encoded images, in units of the radius's."""
    first, second = describe([read_photo(one, "one"), read_photo(other, "other")])["shape"].astype(float)
    return float(np.linalg.norm(first - second)) / SCALE


def directions(count: int, seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.int8]]:
    """Random unit vectors, as fingerprints are kept."""
    vectors = np.random.default_rng(seed).normal(size=(count, 135))
    return (vectors * SCALE / np.linalg.norm(vectors, axis=1)[:, None]).round().astype(np.int8)


def test_the_search_finds_the_pairs_within_the_radius_and_no_others() -> None:
    points = directions(1500)
    shift = np.random.default_rng(1).normal(size=(300, 135))
    lengths = np.linspace(0, 0.25, 300) * SCALE
    points[:300] = (points[300:600] + shift / np.linalg.norm(shift, axis=1)[:, None] * lengths[:, None]).round()
    radius = 0.13 * SCALE
    found = set()
    for i, j in candidate_pairs(points, points):
        close = within(points, points, (i, j), radius) & (i < j)
        found |= set(zip(i[close].tolist(), j[close].tolist(), strict=True))
    exact = points.astype(np.float64)
    squares = (exact**2).sum(1)[:, None] + (exact**2).sum(1) - 2 * exact @ exact.T
    expected = {(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(squares <= radius**2, 1)), strict=True)}
    assert 100 < len(expected) < 200
    assert found <= expected
    assert len(expected - found) <= 1  # at the radius itself, one of a thousand may be missed


def test_components_join_what_edges_join_whatever_their_order() -> None:
    edges = np.array([(0, 9), (8, 9), (3, 4), (5, 4), (2, 2), (7, 5), (0, 8)])
    for seed in range(5):
        parts = Components(10)
        for block in np.array_split(np.random.default_rng(seed).permutation(edges), 3):
            parts.unite(block[:, 0], block[:, 1])
        assert parts.labels.tolist() == [0, 1, 2, 3, 3, 3, 6, 3, 0, 0]


@pytest.mark.parametrize("turn", ORIENTATIONS)
@pytest.mark.parametrize("size", [(348, 348), (331, 203), (1001, 527)])  # reduced decoding pads the last two
def test_a_turned_photo_is_the_same_as_an_upright_one(turn: int, size: tuple[int, int]) -> None:
    with Image.open(SAMPLE) as opened:
        image = opened.convert("RGB").resize(size)
    backwards = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(turn, ORIENTATIONS[turn])
    turned = encode("JPEG", image.transpose(backwards), quality=95, exif=exif_orientation(turn))
    assert distance(encode("PNG", image), turned) < 0.06


@pytest.mark.parametrize(
    "kind", ["two drawings on one background", "two texts on a page", "two noises", "two crops of a photo", "shifted"]
)
def test_different_pictures_are_no_duplicates(kind: str) -> None:
    def draw(number: int) -> Image.Image:
        random = np.random.default_rng(number)
        if kind == "two noises":
            return Image.fromarray(random.integers(0, 256, (128, 128, 3), dtype=np.uint8))
        if kind in ("two crops of a photo", "shifted"):
            step = 60 if kind == "two crops of a photo" else 10
            with Image.open(SAMPLE) as opened:
                return opened.convert("RGB").crop((step * number, 0, step * number + 200, 200))
        image = Image.new("RGB", (160, 160), "white")
        canvas = ImageDraw.Draw(image)
        if kind == "two texts on a page":
            for line in range(8, 150, 9):
                canvas.text((6, line), "".join(map(chr, random.integers(97, 123, 24))), fill="black")
        else:
            canvas.ellipse((40, 40, 120, 120), fill="black")
            x, y = random.integers(55, 90, 2).tolist()
            canvas.ellipse((x, y, x + 16, y + 16), fill="white")
        return image

    assert distance(encode("PNG", draw(0)), encode("PNG", draw(1))) > 0.15


def write(root: Path, **images: Image.Image | bytes) -> None:
    """Writes images as PNG by "class__name"."""
    for name, image in images.items():
        path = root / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image if isinstance(image, bytes) else encode("PNG", image))


def test_blank_images_are_no_near_duplicates_of_each_other(tmp_path: Path) -> None:
    noisy = Image.fromarray(np.random.default_rng(0).integers(250, 254, (64, 64, 3), dtype=np.uint8))
    write(
        tmp_path, a__1=Image.new("RGB", (64, 64), "white"), a__2=Image.new("RGB", (60, 64), "white"), b__1=noisy,
        b__2=Image.new("L", (64, 64)),
    )  # fmt: skip
    found = check_dataset(tmp_path)
    assert found.clusters == []
    assert len(found.odd["blank"]) == 4


def test_pictures_that_differ_in_color_alone_are_different_unless_one_is_gray(tmp_path: Path) -> None:
    def icon(color: str) -> Image.Image:
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).polygon([(10, 50), (32, 8), (58, 40)], fill=color)
        return image

    write(tmp_path, go__a=icon("#008000"), stop__a=icon("#c00000"))
    assert check_dataset(tmp_path).clusters == []
    write(tmp_path, gray__a=icon("#555555"))
    assert [len(cluster.members) for cluster in check_dataset(tmp_path).clusters] == [3]


def test_a_mirrored_copy_is_a_duplicate_but_no_label_conflict(tmp_path: Path) -> None:
    with Image.open(SAMPLE) as opened:
        image = opened.convert("RGB")
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    write(tmp_path, left__a=image, right__a=mirrored)
    (cluster,) = check_dataset(tmp_path).clusters
    assert (cluster.kind, cluster.conflict) == ("mirrored", False)
    write(tmp_path, right__b=image.resize((200, 200)))
    (cluster,) = check_dataset(tmp_path).clusters
    assert (len(cluster.members), cluster.conflict) == (3, True)


def test_many_copies_are_one_cluster_largest_first(tmp_path: Path) -> None:
    photos = [Image.open(path).convert("RGB").resize((64, 64)) for path in sorted(SAMPLES.glob("*.jpg"))[:3]]
    write(tmp_path, **{f"a__{n}": photos[0] for n in range(40)}, **{f"b__{n}": photos[1] for n in range(3)})
    write(tmp_path, c__0=photos[2])
    clusters = check_dataset(tmp_path).clusters
    assert [(len(cluster.members), cluster.kind) for cluster in clusters] == [(40, "exact"), (3, "exact")]
    with pytest.raises(dataclasses.FrozenInstanceError):
        clusters[0].kind = "near"  # type: ignore[misc]
