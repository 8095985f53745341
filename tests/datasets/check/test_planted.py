"""`data check` on a dataset with planted faults of all kinds: it finds all of them, and nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, ImageCms, ImageEnhance, ImageFilter

from lipsformer.datasets.check import check_dataset, write_check
from lipsformer.datasets.options import DatasetOptions
from lipsformer.images.samples import SAMPLES
from tests.support.http.browser import browser, watched_page
from tests.support.images.files import exif_orientation

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["browser"]

PARTS = {  # classes and splits of the clean photos
    "train/apple": 15,
    "train/pear": 15,
    "train/plum": 3,
    "test/apple": 6,
    "test/pear": 8,
}


def clean_photos() -> list[Image.Image]:
    """56 different photos: the quarters of the samples."""
    found = []
    for path in sorted(SAMPLES.glob("*.jpg")):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        width, height = image.width // 2, image.height // 2
        found += [image.crop((x, y, x + width, y + height)) for x in (0, width) for y in (0, height)]
    return found


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def deep(image: Image.Image) -> bytes:
    """A 16-bit TIFF with values up to 255, as from a microscope."""
    return encode(image.convert("L").convert("I").convert("I;16"), "TIFF")


def turned(image: Image.Image) -> bytes:
    """Stored on its side, with the EXIF orientation that turns it upright."""
    return encode(image.transpose(Image.Transpose.ROTATE_90), quality=80, exif=exif_orientation(6))


def resized(width: int, height: int, kind: str = "JPEG") -> Callable[[Image.Image], bytes]:
    return lambda image: encode(image.resize((width, height)), kind)


NEAR: dict[str, Callable[[Image.Image], bytes]] = {
    "q30.jpg": lambda image: encode(image, quality=30),
    "q10.jpg": lambda image: encode(image, quality=10),
    "progressive.jpg": lambda image: encode(image, quality=60, progressive=True),
    "half.jpg": resized(87, 87),
    "squashed.png": resized(120, 90, "PNG"),
    "enlarged.jpg": resized(333, 333),
    "bright.jpg": lambda image: encode(ImageEnhance.Brightness(image).enhance(1.1)),
    "faded.jpg": lambda image: encode(ImageEnhance.Contrast(image).enhance(0.7)),
    "vivid.jpg": lambda image: encode(ImageEnhance.Color(image).enhance(1.3)),
    "blurred.jpg": lambda image: encode(image.filter(ImageFilter.GaussianBlur(1.5))),
    "gray.jpg": lambda image: encode(image.convert("L")),
    "photo.webp": lambda image: encode(image, "WEBP", quality=60),
    "palette.gif": lambda image: encode(image, "GIF"),
    "turned.jpg": turned,
    "deep.tif": deep,
}


def plant(root: Path) -> dict[str, set[frozenset[str]]]:
    """Writes the dataset; returns the clusters of duplicates that it holds, by kind."""
    photos = iter(clean_photos())
    written: dict[str, list[tuple[str, Image.Image]]] = {}
    for folder, number in PARTS.items():
        (root / folder).mkdir(parents=True)
        for index in range(number):
            name, content = f"{folder}/{index:02}.jpg", encode(next(photos), quality=92)
            (root / name).write_bytes(content)
            written.setdefault(folder, []).append((name, Image.open(io.BytesIO(content)).convert("RGB")))

    def copy(source: tuple[str, Image.Image], target: str, content: bytes) -> frozenset[str]:
        (root / target).write_bytes(content)
        return frozenset({source[0], target})

    clusters: dict[str, set[frozenset[str]]] = {"exact": set(), "near": set(), "mirrored": set()}
    apples, pears = written["train/apple"], written["train/pear"]
    folders = ("test/apple", "train/apple")  # across splits, and inside
    for index, ((ending, change), source) in enumerate(zip(NEAR.items(), apples, strict=True)):
        clusters["near"].add(copy(source, f"{folders[index % 2]}/near-{ending}", change(source[1])))
    for folder, source in zip(("test/pear", "train/pear", "train/apple"), pears, strict=False):  # the last: a conflict
        clusters["exact"].add(copy(source, f"{folder}/copy.jpg", (root / source[0]).read_bytes()))
    conflict = copy(pears[3], "test/apple/other-label.jpg", encode(pears[3][1], quality=50))
    clusters["near"].add(conflict)
    flipped = pears[4][1].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    clusters["mirrored"].add(copy(pears[4], "test/pear/mirrored.jpg", encode(flipped)))
    plant_odd(root, photos.__next__)
    return clusters


def plant_odd(root: Path, photo: Callable[[], Image.Image]) -> None:
    """Files that are odd, unreadable or left out."""
    folder = root / "train/pear"
    content = encode(photo())
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.jpg").touch()
    (folder / "page.jpg").write_text("<html>not found</html>")
    Image.new("RGB", (174, 174), (40, 90, 200)).save(folder / "blank.png")
    photo().resize((20, 20)).save(folder / "thumb.png")
    photo().resize((800, 800)).save(folder / "large.jpg")
    photo().crop((0, 0, 174, 50)).resize((520, 150)).save(folder / "narrow.jpg")
    photo().convert("CMYK").save(folder / "print.jpg")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    photo().save(folder / "profiled.jpg", icc_profile=profile)
    (folder / "case-17-front.jpg").write_bytes(encode(photo()))
    (root / "test/pear/case-17-back.jpg").write_bytes(encode(photo()))
    (folder / "notes.txt").write_text("notes")
    (folder / ".hidden.jpg").write_bytes(content)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, set[frozenset[str]]]]:
    root = tmp_path_factory.mktemp("planted") / "photos"
    return root, plant(root)


@pytest.fixture(scope="module")
def found(planted: tuple[Path, Any]) -> dict[str, Any]:
    return check_dataset(planted[0], DatasetOptions(group=r"^(?:.*?(?=case-))?(case-\d+|.+)")).to_dict()


def names(cluster: dict[str, Any]) -> frozenset[str]:
    return frozenset(image["image"] for image in cluster["images"])


@pytest.mark.parametrize("kind", ["exact", "near", "mirrored"])
def test_all_planted_duplicates_are_found_and_no_others(
    kind: str, planted: tuple[Path, dict[str, set[frozenset[str]]]], found: dict[str, Any]
) -> None:
    clusters = {names(cluster) for cluster in found["duplicates"] if cluster["kind"] == kind}
    assert clusters == planted[1][kind]


def test_leaks_and_conflicts_are_those_of_the_planted_ones(found: dict[str, Any]) -> None:
    for cluster in found["duplicates"]:
        images = cluster["images"]
        assert cluster["across_splits"] == (len({image["split"] for image in images}) == 2)
        assert cluster["label_conflict"] == (len({image["class"] for image in images}) == 2)
    conflicts = [names(cluster) for cluster in found["duplicates"] if cluster["label_conflict"]]
    assert conflicts == [
        {"train/apple/copy.jpg", "train/pear/02.jpg"}, {"test/apple/other-label.jpg", "train/pear/03.jpg"}
    ]  # fmt: skip
    assert found["leakage"]["duplicates"] == 8 + 1 + 1 + 1  # near, exact, conflict, mirrored


def test_all_odd_and_unreadable_files_are_found_and_no_others(found: dict[str, Any]) -> None:
    folder = "train/pear"
    assert {what: set(images) for what, images in found["odd"].items()} == {
        "blank": {f"{folder}/blank.png"},
        "small": {f"{folder}/thumb.png"},
        "large": {f"{folder}/large.jpg"},
        "narrow": {f"{folder}/narrow.jpg"},
        "rare_mode": {
            f"{folder}/print.jpg",
            *(f"test/apple/near-{name}" for name in ("gray.jpg", "palette.gif", "deep.tif")),
        },
        "rare_profile": {f"{folder}/profiled.jpg"},
    }
    unreadable = {reason: [entry["image"] for entry in images] for reason, images in found["unreadable"].items()}
    assert unreadable == {
        "damaged": [f"{folder}/cut.jpg"], "empty": [f"{folder}/empty.jpg"], "not_an_image": [f"{folder}/page.jpg"]
    }  # fmt: skip
    assert {reason: entry["count"] for reason, entry in found["left_out"].items()} == {"extension": 1, "hidden": 1}
    assert found["small_classes"] == [{"name": "plum", "split": "train", "images": 3}]
    assert found["turned_by_exif"] == 1
    groups = found["groups_across_splits"]
    assert groups.keys() == {"case-17"}
    assert [image["split"] for image in groups["case-17"]] == ["train", "test"]


@pytest.mark.slow
def test_a_browser_shows_the_page_and_asks_for_nothing(
    planted: tuple[Path, Any], tmp_path: Path, browser: Browser
) -> None:
    write_check(check_dataset(planted[0]), tmp_path / "report")
    with watched_page(browser, viewport={"width": 390, "height": 844}) as watched:
        watched.page.goto((tmp_path / "report" / "index.html").as_uri())
        loaded = watched.page.evaluate("[...document.images].map((image) => image.naturalWidth > 0)")
        assert len(loaded) > 40
        assert all(loaded)
        assert watched.breaches("") == []
        assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert watched.page.evaluate("getComputedStyle(document.querySelector('.dot')).width").startswith(
            "11."
        )  # styled
