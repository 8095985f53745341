"""What a server is measured against: the same preprocessing and the same runtime in a plain loop of one process.

    python benchmarks/serving/loop.py BUNDLE fp32 2 16

The arguments are bundle, precision, threads and batch. For each number of seconds on a line of its standard input it
classifies photos for that long and writes how many a second it did, and milliseconds of processor time for one.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["Loop"]


class Loop:
    """A loop in a process of its own, loaded and waiting."""

    def __init__(self, bundle: Path, precision: str, threads: int, batch: int) -> None:
        self.batch = batch
        command = [sys.executable, __file__, str(bundle), precision, str(threads), str(batch)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, seconds: float) -> tuple[float, float]:
        """Runs for that long; photos a second, and milliseconds of processor time a photo."""
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101, PT018 - pipes
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        per_second, milliseconds = self._process.stdout.readline().split()
        return round(float(per_second), 2), round(float(milliseconds), 3)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate(timeout=60)


def main() -> None:
    import numpy as np
    from bodies import images

    from lipsformer.images.samples import SAMPLES
    from lipsformer.inference.predictor import load_predictor

    bundle, precision, threads, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    predictor = load_predictor(bundle, precision=precision, threads=threads)
    photos = itertools.cycle([images()[path.stem] for path in sorted(SAMPLES.glob("*.jpg"))])

    def classify() -> None:
        pixels = np.stack([predictor.prepare(next(photos)) for _ in range(batch)])
        for logits in predictor.runtime.infer(pixels).logits:
            predictor.rank(logits, 5)

    classify()
    for line in sys.stdin:
        start, used, done = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < float(line):
            classify()
            done += batch
        print(done / (time.perf_counter() - start), (time.process_time() - used) / done * 1000, flush=True)


if __name__ == "__main__":
    main()
