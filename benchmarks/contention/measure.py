"""Inference next to busy processes: ONNX Runtime's defaults, without spinning, on one thread, and our runtime.

    python benchmarks/contention/measure.py > benchmarks/contention/README.md

It takes about 15 minutes. Each way to run the graph has its own process, and they take turns in an order that
alternates. A busy process only spins.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

import lipsformer
from lipsformer.export.graph import build_graph
from lipsformer.inference.runtimes import INPUT_NAME, OnnxRuntime
from lipsformer.system.hardware import cores, cpu_name
from lipsformer.system.markdown import markdown_table

DEFAULT, OURS = "default", "ours"
OTHERS = {
    "no spinning": {"session.intra_op.allow_spinning": "0"},
    "1 thread": {},
}
WAYS = (DEFAULT, *OTHERS, OURS)
BATCHES, NEIGHBOURS = (1, 3, 8), (0, 1, 2)
LEAST_SECONDS = 0.4  # of a turn
PAUSE = 0.15  # longer than the threads of the one before spin
NEIGHBOUR = [sys.executable, "-S", "-c", "while True: pass"]


def open_way(way: str, graph: Path) -> tuple[Callable[[Any], object], int]:
    """A function that runs the graph in this way, and the size of its images."""
    if way == OURS:
        runtime = OnnxRuntime(graph, "cpu")
        return runtime.infer, runtime.image_size
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1 if way == "1 thread" else cores()
    for key, value in OTHERS.get(way, {}).items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(os.fspath(graph), options, ["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {INPUT_NAME: pixels}), session.get_inputs()[0].shape[1]


def work(way: str, graph: Path) -> None:
    """Answers each batch size on stdin with the milliseconds of each call in a turn."""
    infer, size = open_way(way, graph)
    pixels = np.random.default_rng(0).integers(0, 256, (max(BATCHES), size, size, 3), np.uint8)
    for line in sys.stdin:
        batch, times = pixels[: int(line)], []
        infer(batch)  # not timed: the caches hold another process's data
        end = time.perf_counter() + LEAST_SECONDS
        while not times or time.perf_counter() < end:
            started = time.perf_counter()
            infer(batch)
            times.append(1000 * (time.perf_counter() - started))
        print(json.dumps(times), flush=True)


class Worker:
    """A process that runs the graph in one way."""

    def __init__(self, way: str, graph: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", way, "--graph", graph],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def turn(self, batch: int) -> float:
        """The median of a turn's calls in milliseconds."""
        time.sleep(PAUSE)
        self.process.stdin.write(f"{batch}\n")
        self.process.stdin.flush()
        return statistics.median(json.loads(self.process.stdout.readline()))


@contextlib.contextmanager
def busy(number: int) -> Iterator[None]:
    """That many busy processes."""
    processes = [subprocess.Popen(NEIGHBOUR) for _ in range(number)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(graph: Path, rounds: int) -> list[list[str]]:
    """A row for each number of busy processes and batch size."""
    workers = {way: Worker(way, graph) for way in WAYS}
    for worker in workers.values():
        for batch in BATCHES:
            worker.turn(batch)
    rows, quiet = [], {}
    for number in NEIGHBOURS:
        with busy(number):
            for batch in BATCHES:
                turns = [
                    {way: workers[way].turn(batch) for way in (WAYS if turn % 2 == 0 else WAYS[::-1])}
                    for turn in range(rounds)
                ]
                medians = {way: statistics.median(turn[way] for turn in turns) for way in WAYS}
                quiet.setdefault(batch, medians[OURS])
                share = quiet[batch] * (cores() + number) / cores()
                ratios = [turn[OURS] / turn[DEFAULT] for turn in turns]
                span = f"{min(ratios):.2f} to {max(ratios):.2f}"
                milliseconds = [f"{value:.0f}" for value in (*medians.values(), share)]
                rows.append([str(number), str(batch), *milliseconds, f"**{statistics.median(ratios):.2f}**", span])
                print(f"{number} busy processes, batch {batch}: ours / default {span}", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.process.communicate()
    return rows


def export_tiny(path: Path) -> Path:
    """Writes the graph of `lipsformer_swin_tiny` with random weights, which do not affect the time."""
    model = lipsformer.create_model("lipsformer_swin_tiny")
    checkpoint = lipsformer.Checkpoint(
        model=model,
        config=model.config,
        classes=tuple(f"class {index}" for index in range(model.config.num_classes)),
        preprocessing=lipsformer.Preprocessing(image_size=model.config.image_size),
        metrics={},
    )
    onnx.save(build_graph(checkpoint, max_batch=max(BATCHES)), path)
    return path


def main() -> None:
    """Measures and prints the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--graph", type=Path, help="an exported .onnx file instead of lipsformer_swin_tiny")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.graph)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments.graph or export_tiny(Path(folder) / "tiny.onnx"), arguments.rounds)
    headings = ["busy processes", "batch", *WAYS, "ours by share", "ours / default", "lowest to highest"]
    print(HEADING.format(rounds=arguments.rounds, cores=cores(), cpu=cpu_name(), version=onnxruntime.__version__))
    print(markdown_table(headings, rows, "r" * len(headings)))
    print(NOTE)


HEADING = """# Next to busy processes

Milliseconds per call of `lipsformer_swin_tiny` at 224 pixels in float32, quiet and next to processes that use as much
of a core as they get: ONNX Runtime by default, without spinning and on one thread, and our runtime. Medians of {rounds}
interleaved rounds, and the ratio within a round. {cores} cores of an {cpu}, ONNX Runtime {version}.

    python benchmarks/contention/measure.py > benchmarks/contention/README.md
"""
NOTE = """
By default, ONNX Runtime's threads share every operator and wait for each other after it. A thread that a busy process
has displaced delays the others hundreds of times per image. Our runtime gives each thread whole images of a batch and
waits once. For a single image, threads still share operators, but spin for 20 microseconds instead of tens of
milliseconds, and a thread that is behind takes fewer blocks (`session.intra_op.spin_duration_us`,
`session.dynamic_block_base`).

No way can beat its share of the cores: two threads next to one busy process get two thirds of two cores, next to two
half of them. "Ours by share" is what our quiet time would become if nothing else were lost. Batches of 8 are there, so
"ours / default" cannot fall further on this machine; single images take about a quarter more.

The graph is in memory twice for that. Loading and running `lipsformer_swin_tiny` (float32, 127 MB) takes 365 instead of
172 MB at batch 1, and 557 instead of 323 MB at batch 8.
"""

if __name__ == "__main__":
    main()
