"""Bulk prediction: next to its runtime alone, to images one after the other and to Ray Data, and its memory.

    python benchmarks/bulk/measure.py > benchmarks/bulk/README.md

Both ways of a comparison take turns, and a ratio is that within a round. CPU seconds include those of all child
processes, such as decoders and Ray's; other work on the machine affects them little.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import psutil
import ray
from PIL import Image

import lipsformer
from lipsformer.export.graph import build_graph
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.bulk import BulkOptions
from lipsformer.inference.bulk.engine import predict_images
from lipsformer.inference.bulk.pipeline import IN_FLIGHT, Pipeline
from lipsformer.inference.bulk.state import BulkState
from lipsformer.inference.predictor import Predictor
from lipsformer.system.console import quiet
from lipsformer.system.hardware import cores, cpu_name
from lipsformer.system.markdown import markdown_table

BATCHES = (2, 4, 8, 16)
AHEAD = IN_FLIGHT + 1  # blocks that bulk prediction may have decoded when it has the first row
SMALL, LARGE = (160, 160), (4000, 3000)  # pixels; 12 megapixels
TINY = {"image_size": 32, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4)}
PER_FOLDER = 1000
MEMORY = 1024**3  # bytes of Ray's object store
MEMORY_RUNS = {1000: 3, 10_000: 3}  # for so many images; one for more


class Cost(NamedTuple):
    """Seconds for each image: on the wall, and of CPU in this process and the decoders."""

    wall: float
    cpu: float


def cpu_seconds(without: int | None = None) -> float:
    """CPU seconds of this process and those below it so far; `without` is a process that is not counted."""
    own = psutil.Process()
    seconds = 0.0
    for process in [own, *own.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.pid == without:
                continue
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


class Clock:
    """Measures the images after the first `warm_up`, which include the start of the decoders."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.done, self.since = warm_up, 0, 0
        self.start = self.end = (0.0, 0.0)

    def advance(self, images: int, _: str = "") -> None:
        """Counts images that are done."""
        self.done += images
        self.end = (time.perf_counter(), cpu_seconds())
        if not self.since and self.done >= self.warm_up:
            self.since, self.start = self.done, self.end

    def cost(self) -> Cost:
        """The cost of an image."""
        images = self.done - self.since
        return Cost(*((end - start) / images for start, end in zip(self.start, self.end, strict=True)))


def export(path: Path, name: str = "lipsformer_swin_tiny", **settings: object) -> Predictor:
    """The predictor of an exported model with random weights, which do not affect the time."""
    model = lipsformer.create_model(name, 1000 if not settings else 10, **settings)
    checkpoint = lipsformer.Checkpoint(
        model=model,
        config=model.config,
        classes=tuple(f"class {index}" for index in range(model.config.num_classes)),
        preprocessing=lipsformer.Preprocessing(image_size=model.config.image_size, jpeg_scale="reduced"),
        metrics={},
    )
    onnx.save(build_graph(checkpoint, max_batch=max(BATCHES)), path)
    return lipsformer.load_predictor(path)


def photos(folder: Path, size: tuple[int, int], count: int) -> list[str]:
    """JPEGs of this size, made from the sample photos."""
    folder.mkdir()
    sources, names = itertools.cycle(sorted(SAMPLES.glob("*.jpg"))), []
    for number in range(count):
        with Image.open(next(sources)) as photo:
            photo.resize(size).save(folder / f"{number}.jpg", quality=90)
        names.append(str(folder / f"{number}.jpg"))
    return names


def bulk(predictor: Predictor, names: list[str]) -> Cost:
    """Bulk prediction, until all rows are in the state."""
    clock = Clock(AHEAD * predictor.max_batch)
    options = BulkOptions(model="model", sources=tuple(names))
    with tempfile.TemporaryDirectory() as folder, BulkState(Path(folder) / "state") as state:
        predict_images(lambda: Pipeline(predictor, options), state, options, predictor.max_batch, clock.advance)
    return clock.cost()


def one_by_one(predictor: Predictor, names: list[str]) -> Cost:
    """Each image is decoded after the one before, and each batch computed after it was decoded."""
    clock = Clock(predictor.max_batch)
    for _ in predictor.stream(names, batch=predictor.max_batch):
        clock.advance(1)
    return clock.cost()


class Classify:
    """A graph on Ray Data: an actor with one CPU of Ray's count, and threads on all cores."""

    def __init__(self, graph: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.ready = (time.time(), time.process_time())

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The class of each image; and the seconds on the wall and of CPU when this was ready, and now."""
        logits = self.session.run(None, {self.session.get_inputs()[0].name: batch["image"]})[0]
        facts = [*self.ready, time.time(), time.process_time(), os.getpid()]
        return {"index": logits.argmax(axis=1), "facts": np.tile(facts, (len(logits), 1))}


def ray_data(predictor: Predictor, names: list[str]) -> Cost:
    """Ray Data's `read_images` and `map_batches` with the same graph. One CPU is left to read: with none, it stands.

    The clock starts when the actor has loaded the graph; images that were read before are a gift, as those of `Clock`.
    """
    size = predictor.preprocessing.image_size
    ray.init(
        num_cpus=cores(),
        object_store_memory=MEMORY,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
    )
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        start = cpu_seconds()
        images = ray.data.read_images(names, size=(size, size), mode="RGB")
        answers = images.map_batches(
            Classify,
            fn_constructor_args=(str(predictor.file),),
            batch_size=predictor.max_batch,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        facts = np.concatenate([batch["facts"] for batch in answers.iter_batches(batch_size=predictor.max_batch)])
        ready, cpu_ready, end, cpu_end, actor = facts.max(axis=0)
        others = cpu_seconds(without=int(actor)) - start
    finally:
        ray.shutdown()
    return Cost(wall=(end - ready) / len(facts), cpu=(cpu_end - cpu_ready + others) / len(facts))


def alone(predictor: Predictor, pixels: np.ndarray, batch: int, images: int) -> Cost:
    """The runtime with batches of pixels that are ready."""
    clock = Clock(batch)
    for _ in range(images // batch):
        predictor.runtime.infer(pixels[:batch])
        clock.advance(batch)
    return clock.cost()


def compare(ways: tuple[Callable[[], Cost], Callable[[], Cost]], rounds: int) -> list[tuple[Cost, Cost]]:
    """The costs of two ways in each round, whose order alternates."""
    found = []
    for number in range(rounds):
        first, second = (way() for way in (ways if number % 2 == 0 else ways[::-1]))
        found.append((first, second) if number % 2 == 0 else (second, first))
    return found


def row(name: str, images: int, found: list[tuple[Cost, Cost]]) -> list[str]:
    """A row: rates, and the ratio of bulk prediction's (the second way) to the other's."""
    rates = [statistics.median(1 / way.wall for way in column) for column in zip(*found, strict=True)]
    cells = []
    for kind in range(2):
        ratios = [one[kind] / two[kind] for one, two in found]
        cells += [f"**{statistics.median(ratios):.2f}**", f"{min(ratios):.2f} to {max(ratios):.2f}"]
    return [name, str(images), *(f"{rate:.1f}" for rate in rates), *cells]


def rates(folder: Path, images: int, large: int, rounds: int) -> Iterator[list[str]]:
    """The rows of the table of rates."""
    predictor = export(folder / "tiny.onnx")
    small = photos(folder / "small", SMALL, images)
    pixels = np.stack([predictor.prepare(Path(name)) for name in small[: max(BATCHES)]])
    predictor.runtime.infer(pixels)
    batch = min(BATCHES, key=lambda size: alone(predictor, pixels, size, 8 * max(BATCHES)).wall)
    found = compare((lambda: alone(predictor, pixels, batch, images), lambda: bulk(predictor, small)), rounds)
    yield row(f"runtime alone, batch {batch}, pixels ready", images, found)
    found = compare((lambda: ray_data(predictor, small), lambda: bulk(predictor, small)), rounds)
    yield row("Ray Data, small photos", images, found)
    names = photos(folder / "large", LARGE, large)
    found = compare((lambda: one_by_one(predictor, names), lambda: bulk(predictor, names)), rounds)
    yield row("one by one, 12 megapixels", large, found)
    found = compare((lambda: ray_data(predictor, names), lambda: bulk(predictor, names)), rounds)
    yield row("Ray Data, 12 megapixels", large, found)


def memory(folder: Path, counts: tuple[int, ...]) -> Iterator[list[str]]:
    """A row for each number of images: the peak memory of `lipsformer predict` itself, and its rate."""
    export(folder / "nano.onnx", "lipsformer_swin_nano", **TINY)
    buffer = io.BytesIO()
    Image.new("RGB", (48, 48), (200, 120, 40)).save(buffer, "JPEG")
    for count in counts:
        tree = folder / str(count)
        for number in range(count):
            link = tree / f"{number // PER_FOLDER:03d}" / f"{number % PER_FOLDER:06d}.jpg"
            if number % PER_FOLDER == 0:
                link.parent.mkdir(parents=True)
            if number % 10_000 == 0:
                photo = folder / f"photo-{count}-{number}.jpg"  # a file has at most 65,000 links
                photo.write_bytes(buffer.getvalue())
            os.link(photo, link)
        command = [sys.executable, "-m", "lipsformer", "predict", folder / "nano.onnx", tree, "--features", "--output"]
        runs = [peak_of([*command, folder / f"{count}-{run}.parquet"]) for run in range(MEMORY_RUNS.get(count, 1))]
        peak, seconds = map(statistics.median, zip(*runs, strict=True))
        yield [f"{count:,}", str(len(runs)), f"{peak / 1024:.1f}", f"{seconds:.0f}", f"{count / seconds:.0f}"]


def peak_of(command: list[str | Path]) -> tuple[int, float]:
    """The peak resident memory of a command in KiB, and its seconds."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_kib(process.pid))
        time.sleep(0.02)
    assert process.returncode == 0  # noqa: S101 - a benchmark
    return peak, time.perf_counter() - started


def peak_kib(pid: int) -> int:
    """The peak resident memory of a process in KiB so far; getrusage would count that of its parent at the fork."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def main() -> None:
    """Measures and prints the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=256, help="small photos")
    parser.add_argument("--large", type=int, default=160, help="photos of 12 megapixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000], help="images, for the memory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, quiet():
        compared = list(rates(Path(folder), arguments.images, arguments.large, arguments.rounds))
        peaks = list(memory(Path(folder), tuple(arguments.rows)))
    growth = float(peaks[-1][2]) / float(peaks[0][2]) - 1
    print(
        HEADING.format(rounds=arguments.rounds, cores=cores(), cpu=cpu_name(), version=onnxruntime.__version__,
                       load=os.getloadavg()[2], ahead=AHEAD * max(BATCHES))
    )  # fmt: skip
    headings = ["compared with", "images", "images/s", "bulk", "ratio", "lowest to highest", "CPU", "lowest to highest"]
    print(markdown_table(headings, compared, "lrrrrrrr"))
    hours = ", ".join(
        f"{1e6 / float(one[3]) / 3600:.1f} hours ({kind})"
        for kind, one in zip(("small photos", "12 megapixels"), compared[1::2], strict=True)
    )
    print(NOTE.format(ray=ray.__version__, hours=hours) + MEMORY_NOTE.format(growth=growth))
    print(markdown_table(["images", "runs", "peak, MiB", "seconds", "images/s"], peaks, "rrrrr"))


HEADING = """# Bulk prediction

    python benchmarks/bulk/measure.py > benchmarks/bulk/README.md

`lipsformer_swin_tiny` at 224 pixels, float32, ONNX Runtime {version}, {cores} cores of an {cpu}. Medians of {rounds}
interleaved rounds. Other work ran on the machine (15-minute load average {load:.1f}), so read the ratios: images per
second of bulk prediction, divided by those of the other way in the same round, and the other way's CPU seconds divided
by those of bulk prediction. The clock starts when the decoders run and bulk prediction has its first {ahead} images.
Small photos are JPEGs of 160 by 160 pixels.
"""
NOTE = """
The CPU ratio says what reading, decoding, and saving rows cost on top of inference. "One by one" is what `predict` did
before: it decodes an image after the other, and computes a batch when all its images are decoded. Ray Data runs its own
`read_images` and `map_batches` with the same graph, the same batch and as many threads, on Ray {ray}. Its clock starts
when the graph is loaded; its CPU seconds include the start of the processes that read. More cores were not measured.

At the rates of the column "bulk", a million images take {hours}.
[What they cost](../../docs/bulk.md#cost) is that times the price of an hour.
"""
MEMORY_NOTE = """
## Memory

Peak of `lipsformer predict FOLDER --features --output rows.parquet` with a tiny model at 32 pixels, as the median of
the runs. The decoder processes are not in it; each has a limit. Between the first row and the last, it grows by
{growth:.1%}.
"""

if __name__ == "__main__":
    main()
