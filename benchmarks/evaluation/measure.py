"""The report of `lipsformer eval --output`, with 10, 10,000 and 21,841 classes: its CPU seconds and its peak memory.

    python benchmarks/evaluation/measure.py

Each row is the fastest of three processes. Of 100,000 images, 30% are classified as a random class, so that there are
as many different mistakes as can be. The report is classes.md, both plots, the JSON and the text for the terminal. To
measure another checkout, put its folder into PYTHONPATH. One that keeps whole matrices needs over 15 GB.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lipsformer.datasets import Split
from lipsformer.evaluation.evaluate import Evaluation, format_evaluation
from lipsformer.evaluation.predictions import Predictions
from lipsformer.evaluation.report.write import write_report
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.images.samples import SAMPLES

IMAGES = 100_000
RUNS = 3
CLASSES = (10, 10_000, 21_841)
PHOTOS = sorted(SAMPLES.glob("*.jpg"))
SPEC = Preprocessing(image_size=224)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SampleSplit(Split):
    """Any number of images, each one of the package's sample photos."""

    def image_name(self, index: int) -> str:
        """The name of image `index`."""
        return f"{index}.jpg"

    def where(self, index: int) -> str:
        """The name of image `index`: there is no file."""
        return self.image_name(index)

    def encoded(self, index: int) -> bytes:
        """One of the sample photos."""
        return PHOTOS[index % len(PHOTOS)].read_bytes()


def memory(field: str) -> float:
    """A field of this process's memory in MB: VmRSS (now) or VmHWM (its peak)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def measure(count: int) -> dict[str, float]:
    """CPU seconds of a report of `count` classes, and the memory before it and at its peak."""
    rng = np.random.default_rng(0)
    labels = rng.integers(count, size=IMAGES)
    wrong = rng.random(IMAGES) < 0.3
    predicted = np.where(wrong, rng.integers(count, size=IMAGES), labels)
    loss, confidence = rng.random(IMAGES), rng.random(IMAGES)
    rank = (predicted != labels).astype(np.int64)
    found = Predictions(labels=labels, predicted=predicted, rank=rank, loss=loss, confidence=confidence, classes=count)
    names = tuple(f"n{number:08d} some kind of thing" for number in range(count))
    split = SampleSplit(name="val", classes=names, labels=labels, members=np.arange(IMAGES))
    result = Evaluation(
        split="val",
        predictions=found,
        uncalibrated=None,
        refusals=None,
        unreadable=(),
        classes=names,
        seconds=1.0,
        provider="none",
    )
    with tempfile.TemporaryDirectory() as folder:
        # A report of two classes first: fonts and imports are not what is measured.
        write_report(Path(folder), Predictions.of(np.eye(2), [0, 1]), split, names, SPEC, "warm-up")
        before, started = memory("VmRSS"), time.process_time()
        write_report(Path(folder), found, split, names, SPEC, "a model on data")
        text = json.dumps(result.to_dict(), indent=2) + format_evaluation(result)
        seconds = time.process_time() - started
        size = len(text) + sum(file.stat().st_size for file in Path(folder).iterdir())
    return {"seconds": seconds, "before": before, "peak": memory("VmHWM"), "size": size / 1e6}


def main() -> None:
    """Print the table; with the number of classes as the argument, only measure that."""
    if sys.argv[1:]:
        print(json.dumps(measure(int(sys.argv[1]))))
        return
    print("| classes | CPU seconds | memory before (MB) | peak (MB) | the report takes (MB) | its size (MB) |")
    print("|---:|---:|---:|---:|---:|---:|")
    for count in CLASSES:
        command = [sys.executable, __file__, str(count)]
        runs = [json.loads(subprocess.check_output(command)) for _ in range(RUNS)]
        row = min(runs, key=lambda run: run["seconds"])
        taken = row["peak"] - row["before"]
        print(
            f"| {count:,} | {row['seconds']:.1f} | {row['before']:.0f} | {row['peak']:.0f} | {taken:.0f} "
            f"| {row['size']:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
