"""How fast training data is read on one core: decoding, cropping and flipping, listing, folders and tar shards.

python benchmarks/data/measure.py > benchmarks/data/README.md

The photos are the built-in dataset `fruit`, which is downloaded unless cached. Times are CPU times, which other work on
the machine affects little.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageCms, features

from lipsformer.datasets import Split, open_dataset, resolve_dataset
from lipsformer.datasets import listing_cache as index
from lipsformer.datasets.folders.folder import FolderListing
from lipsformer.images import color
from lipsformer.images.open import open_image
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.train.data.crops import Crops
from lipsformer.train.data.dataset import TrainingImages
from lipsformer.train.recipe import load_recipe

SIZES = (64, 224)
SCALES = ("full", "reduced")
ROUNDS, IMAGES = 9, 150
SIDES = (2, 4)  # photos along a side of the larger ones
FOLDERS, FILES = 1000, 100


def rate(images: TrainingImages) -> float:
    """Crops per second."""
    started = time.process_time()
    for number in range(IMAGES):
        images[0, number, number % len(images.split)]
    return IMAGES / (time.process_time() - started)


def rates(ways: list[TrainingImages]) -> list[float]:
    """Crops per second of each way: the best of interleaved rounds, which other work on the machine affects least."""
    rounds = [[rate(way) for way in ways] for _ in range(ROUNDS)]
    return [max(column) for column in zip(*rounds, strict=True)]


def images_of(split: Split, size: int, jpeg_scale: str = "reduced") -> TrainingImages:
    return TrainingImages(split, load_recipe("default"), Preprocessing(image_size=size, jpeg_scale=jpeg_scale))


def enlarge(split: Split, side: int, root: Path, count: int = 40) -> Split:
    """Photos of `side` by `side` photos of `split` each: large ones, as sharp as small ones. `root` is written to."""
    sources = itertools.cycle(np.random.default_rng(side).permutation(len(split)).tolist())
    for number in range(count):
        sheet = Image.new("RGB", (348 * side, 348 * side))
        for row, column in itertools.product(range(side), range(side)):
            sheet.paste(split.open(next(sources)).convert("RGB").crop((0, 0, 348, 348)), (348 * column, 348 * row))
        path = root / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, quality=90)
    return open_dataset(root).train


def differences(split: Split, other: Crops) -> tuple[float, float, float]:
    """How crops differ from exact ones, in gray levels.

    The mean over the crops, the mean of the worst crop, and the largest of any pixel.
    """
    spec = dataclasses.replace(other.preprocessing, jpeg_scale="full")
    exact = dataclasses.replace(other, preprocessing=spec, reducing_gap=None)
    means, largest = [], 0
    for number in range(IMAGES):
        one, two = (
            way.read(split, number % len(split), np.random.default_rng(number)).astype(int) for way in (exact, other)
        )
        means.append(abs(one - two).mean())
        largest = max(largest, int(abs(one - two).max()))
    return float(np.mean(means)), float(max(means)), largest


def print_speed(sources: dict[str, Split]) -> None:
    print("## Decoded, cropped, flipped\n")
    print("Images per second and core. A reduced decode keeps at least twice the crop's final side.\n")
    print("| photos | crop | whole decode | reduced decode | gain |")
    print("|---|---:|---:|---:|---:|")
    for name, split in sources.items():
        for size in SIZES:
            whole, reduced = rates([images_of(split, size, scale) for scale in SCALES])
            print(f"| {name} | {size} px | {whole:.0f} | {reduced:.0f} | {reduced / whole:.2f} |")


def print_exactness(sources: dict[str, Split]) -> None:
    print("\n## Accuracy of a reduced decode\n")
    print("Difference in gray levels (of 255) from the exact crop (decoded whole, resized in one step): mean over")
    print("all crops / mean of the worst crop / maximum over all pixels. Training always uses Pillow's")
    print("`reducing_gap=2.0`.\n")
    print("| photos | crop | full | reduced |\n|---|---:|---:|---:|")
    for name, split in sources.items():
        for size in SIZES:
            found = [differences(split, images_of(split, size, scale).crops) for scale in SCALES]
            cells = ["{:.2f} / {:.2f} / {}".format(*cell) for cell in found]
            print(f"| {name} | {size} px | {' | '.join(cells)} |")


def seconds(function: Callable[[], object]) -> float:
    """Wall time: the median of five calls."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@contextlib.contextmanager
def cache(folder: Path) -> Iterator[None]:
    """Keeps the listing cache below `folder`."""
    before = os.environ.get("LIPSFORMER_CACHE")
    os.environ["LIPSFORMER_CACHE"] = str(folder)
    yield
    if before is None:
        del os.environ["LIPSFORMER_CACHE"]
    else:
        os.environ["LIPSFORMER_CACHE"] = before


def print_listing(scratch: Path) -> None:
    for folder in range(FOLDERS):
        for file in range(FILES):
            path = scratch / "many" / f"n{folder:08}" / f"n{folder:08}_{file}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    time.sleep(index.SETTLED_NS / 1e9 + 0.5)

    def measured() -> list[float]:
        return [seconds(lambda way=way: way(scratch / "many")) for way in (FolderListing.open, open_dataset)]

    (scratch / "a file, so that nothing is kept").touch()
    with cache(scratch / "a file, so that nothing is kept"):
        walked = measured()
    with cache(scratch / "cache"):
        open_dataset(scratch / "many")
        indexed = measured()
    print(f"\n## Opening {FOLDERS * FILES:,} files in {FOLDERS:,} folders\n")
    print("Seconds, with the names in the system's cache. Opening a dataset without splits also holds out a tenth,")
    print("by hash.\n")
    print("| | walked | from the index |\n|---|---:|---:|")
    for what, before, after in zip(("listing", "dataset"), walked, indexed, strict=True):
        print(f"| {what} | {before:.3f} | {after:.3f} |")


def write_shards(folder: Path, split: Split) -> None:
    for start in range(0, len(split), 100):
        folder.mkdir(exist_ok=True)
        with tarfile.open(folder / f"train-{start // 100:03}.tar", "w") as tar:
            for number in range(start, min(start + 100, len(split))):
                contents = (".jpg", Path(split.where(number)).read_bytes()), (".cls", b"%d" % split.labels[number])
                for ending, content in contents:
                    member = tarfile.TarInfo(f"{number:06}{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def print_shards(scratch: Path, split: Split) -> None:
    write_shards(scratch / "shards", split)
    shards = open_dataset(scratch / "shards").train
    print("\n## Tar shards and files\n")
    print("Images per second and core: fruit photos in random order, reduced decode.\n")
    print("| crop | files | tar shards |\n|---:|---:|---:|")
    for size in SIZES:
        order = np.random.default_rng(0).permutation(len(shards))
        files, tars = rates([images_of(which.select(order), size) for which in (split, shards)])
        print(f"| {size} px | {files:.0f} | {tars:.0f} |")


def cpu_ms(function: Callable[[], object], rounds: int) -> float:
    """CPU time of a call in ms: the best of `rounds`."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        function()
        times.append((time.process_time() - started) * 1000)
    return min(times)


def other_profile() -> bytes:
    """A profile of sRGB whose red is another one."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entry = profile.index(b"rXYZ")
    at = int.from_bytes(profile[entry + 4 : entry + 8]) + 8
    profile[at : at + 4] = (33_000).to_bytes(4)
    return bytes(profile)


def print_profiles() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3)).astype(np.uint8)
    photo = Image.fromarray(noise).resize((3000, 2000), Image.Resampling.BOX)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=90)
    photo.info["icc_profile"] = other_profile()
    crop = photo.resize((224, 224))

    def first() -> None:
        color._transform.cache_clear()
        color.to_srgb(crop)

    start, small = cpu_ms(first, 20), cpu_ms(lambda: color.to_srgb(crop), 100)
    whole = cpu_ms(lambda: color.to_srgb(photo), 5)
    decoded = cpu_ms(lambda: open_image(buffer.getvalue()), 5)
    print("\n## Color profiles\n")
    print(
        "CPU time of the conversion to sRGB in ms. It takes place once a photo is resized, so it does not depend on the"
    )
    print("photo's size; the last two rows are for comparison.\n")
    print("| | ms |\n|---|---:|")
    print(f"| a crop of 224 px | {small:.1f} |")
    print(f"| the first crop with a profile | {start:.1f} |")
    print(f"| a whole photo of 6 megapixels | {whole:.0f} |")
    print(f"| decoding that photo, of pure noise | {decoded:.0f} |")


def main() -> None:
    fruit = open_dataset(resolve_dataset("fruit")).train
    with tempfile.TemporaryDirectory(prefix="lipsformer-") as folder:
        scratch = Path(folder)
        sources = {"fruit, 348 px": fruit} | {
            f"{side} x {side} of them, {348 * side} px": enlarge(fruit, side, scratch / f"large{side}")
            for side in SIDES
        }
        versions = f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"
        print("# Reading training data\n")
        print(f"Measured with `TrainingImages` of `train/data/dataset.py` and the recipe `default`: best of {ROUNDS}")
        print(f"interleaved rounds of {IMAGES} images. {versions}, one of {os.cpu_count()} virtual cores.\n")
        print("    python benchmarks/data/measure.py > benchmarks/data/README.md\n")
        print_speed(sources)
        print_exactness(sources)
        print_listing(scratch)
        print_shards(scratch, fruit)
        print_profiles()


if __name__ == "__main__":
    main()
