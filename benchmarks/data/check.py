"""What `lipsformer data check` costs compared with decoding the photos: CPU time, wall time and memory.

python benchmarks/data/check.py > benchmarks/data/check.md

The photos are made of the sample photos: random crops, scaled to 500 by 375 pixels, JPEG quality 60 to 95. Each
measurement is a process of its own with as many threads.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, features

from lipsformer.datasets import DatasetOptions, Split
from lipsformer.datasets.check import check_dataset
from lipsformer.datasets.check.fingerprint import DECODED, RECORD
from lipsformer.datasets.check.scan import CHUNK, read_splits
from lipsformer.images.samples import SAMPLES
from lipsformer.system.hardware import cores

SIZE = (500, 375)
CLASSES = 20
COUNTS = (2_000, 20_000)
ROUNDS = 2


def make(root: Path, count: int, sources: list[Image.Image]) -> None:
    """Writes `count` photos as class folders in train/ and test/."""

    def write(number: int) -> None:
        draw = np.random.default_rng(number)
        source = sources[number % len(sources)]
        side = draw.uniform(0.4, 0.9) * min(source.size)
        width, height = side, side * SIZE[1] / SIZE[0]
        left, top = draw.uniform(0, source.width - width), draw.uniform(0, source.height - height)
        photo = source.resize(SIZE, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        buffer = io.BytesIO()
        photo.save(buffer, "JPEG", quality=int(draw.integers(60, 96)))
        folder = root / ("test" if number % 5 == 0 else "train") / f"class{number % CLASSES:02}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06}.jpg").write_bytes(buffer.getvalue())

    with ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(write, range(count)):
            pass


def decode(root: Path, reduced: bool) -> None:
    """Decodes every photo, as data check does: threads, chunks of as many photos."""

    def chunk(split: Split, start: int) -> None:
        for position in range(start, min(start + CHUNK, len(split))):
            split.open(position, smallest=(lambda _: (DECODED, DECODED)) if reduced else None)

    with ThreadPoolExecutor(cores()) as pool:
        for split in read_splits(root, DatasetOptions())[0]:
            list(pool.map(lambda start, split=split: chunk(split, start), range(0, len(split), CHUNK)))


WAYS: dict[str, Callable[[Path], object]] = {
    "decode": lambda root: decode(root, reduced=False),
    "reduced": lambda root: decode(root, reduced=True),
    "check": lambda root: check_dataset(root),
}


def measure(way: str, root: Path) -> dict[str, float]:
    """CPU seconds, wall seconds and peak memory in MiB of one way in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, way, str(root)], check=True, capture_output=True, text=True, env=environment
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def worker(way: str, root: Path) -> None:
    started, cpu = time.perf_counter(), time.process_time()
    WAYS[way](root)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - started
    # Not getrusage's ru_maxrss: it starts with the memory of the process that started this one.
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(json.dumps({"cpu": cpu, "wall": wall, "peak": int(peak) / 1024}))


def main() -> None:
    sources = [Image.open(path).convert("RGB") for path in sorted(SAMPLES.glob("*.jpg"))]
    print("# Checking a dataset\n")
    print("    python benchmarks/data/check.py > benchmarks/data/check.md\n")
    print(f"`lipsformer data check` on photos of {SIZE[0]} by {SIZE[1]} pixels made of the sample photos, compared")
    print(f"with decoding them alone, with the same threads: the best of {ROUNDS} interleaved rounds of CPU time, and")
    print(f"the wall time of that round. Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')},")
    print(f"{cores()} virtual cores, other work on them. Decoding at a fraction of the size is what data check does.\n")
    print("| photos | | CPU seconds | wall seconds | peak memory, MiB | CPU relative to decoding |")
    print("|---:|---|---:|---:|---:|---:|")
    for count in COUNTS:
        with tempfile.TemporaryDirectory(prefix="lipsformer-") as folder:
            make(Path(folder), count, sources)
            rounds = [{way: measure(way, Path(folder)) for way in WAYS} for _ in range(ROUNDS)]
        best = {way: min((one[way] for one in rounds), key=lambda found: found["cpu"]) for way in WAYS}
        names = {"decode": "decoding", "reduced": "decoding at a fraction", "check": "data check"}
        for way, found in best.items():
            ratio = found["cpu"] / best["decode"]["cpu"]
            cells = f"{found['cpu']:.1f} | {found['wall']:.1f} | {found['peak']:.0f} | {ratio:.2f}"
            print(f"| {count:,} | {names[way]} | {cells} |", flush=True)
    print(
        f"\nWhat is kept of each image are {RECORD.itemsize} bytes for its content, 14 for its format, mode, profile,"
    )
    print("class and split, and its name. Photos are not kept. The rest of the difference are copies of these while")
    print("duplicates are searched: about 1 KB for each image in all.")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        worker(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
