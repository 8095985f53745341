"""bf16 in OpenVINO next to fp32 and int8 in ONNX Runtime: speed, alone and next to a busy process, and agreement.

    lipsformer data fetch cifar10 --output cifar10
    python benchmarks/bf16/measure.py --cifar10 cifar10 > benchmarks/bf16/README.md

The runtimes take turns in an order that alternates, in one process: their threads sleep during the others' turns.
"""

from __future__ import annotations

import argparse
import os
import runpy
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

import lipsformer
from lipsformer.export.graph import build_graph
from lipsformer.export.int8.quantize import quantize
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.runtimes import OnnxRuntime, Pixels, Runtime
from lipsformer.inference.runtimes.openvino import OpenVinoRuntime
from lipsformer.system.hardware import bf16_instructions, cores, cpu_name, installed_versions
from lipsformer.system.markdown import markdown_table

FP32, INT8, BF16 = "ONNX Runtime fp32", "ONNX Runtime int8", "OpenVINO bf16"
BATCHES, NEIGHBORS = (1, 8), (0, 1)
LEAST_SECONDS = 0.4  # of a turn
PAUSE = 0.15  # longer than the threads of the one before spin
# The busy process and the graph of the benchmark next to busy processes.
CONTENTION = runpy.run_path(str(Path(__file__).parents[1] / "contention" / "measure.py"), run_name="contention")


def open_runtimes(folder: Path) -> dict[str, Runtime]:
    """Swin-Tiny in each runtime."""
    graph, quantized = CONTENTION["export_tiny"](folder / "fp32.onnx"), folder / "int8.onnx"
    photos = sample_photos(lipsformer.Preprocessing(image_size=224))
    calibration = np.concatenate([photos, photos[:, :, ::-1]])
    onnx.save(quantize(onnx.load(graph), calibration, target="ort"), quantized)
    return {FP32: OnnxRuntime(graph, "cpu"), INT8: OnnxRuntime(quantized, "cpu"), BF16: OpenVinoRuntime(graph)}


def sample_photos(preprocessing: lipsformer.Preprocessing) -> Pixels:
    """The sample photos of the package (14, S, S, 3)."""
    return np.stack([preprocessing.read(path) for path in sorted(SAMPLES.glob("*.jpg"))])


def turn(runtime: Runtime, pixels: Pixels) -> float:
    """The median of a turn's calls in milliseconds."""
    time.sleep(PAUSE)
    runtime.infer(pixels)  # not timed: the caches hold another runtime's data
    times: list[float] = []
    end = time.perf_counter() + LEAST_SECONDS
    while not times or time.perf_counter() < end:
        started = time.perf_counter()
        runtime.infer(pixels)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def measure(runtimes: dict[str, Runtime], rounds: int) -> list[list[str]]:
    """A row for each number of busy processes and batch size."""
    photos = sample_photos(lipsformer.Preprocessing(image_size=224))
    rows = []
    for number in NEIGHBORS:
        with CONTENTION["busy"](number):
            for batch in BATCHES:
                order, turns = list(runtimes), []
                for _ in range(rounds):
                    turns.append({way: turn(runtimes[way], photos[:batch]) for way in order})
                    order.reverse()
                medians = [f"{statistics.median(each[way] for each in turns):.0f}" for way in runtimes]
                ratios = [each[BF16] / each[FP32] for each in turns]
                span = f"{min(ratios):.2f} to {max(ratios):.2f}"
                against_int8 = statistics.median(each[BF16] / each[INT8] for each in turns)
                ratio = f"**{statistics.median(ratios):.2f}**"
                rows.append([str(number), str(batch), *medians, ratio, span, f"{against_int8:.2f}"])
    return rows


def agreement(data: Path, folder: Path) -> str:
    """What bf16 changes in the answers of the included model to CIFAR-10's test images, in a sentence."""
    checkpoint = lipsformer.load_checkpoint("lipsformer_cifar10")
    graph = folder / "cifar10.onnx"
    onnx.save(build_graph(checkpoint, max_batch=16), graph)
    files = sorted((data / "test").glob("*/*.png"))
    labels = np.array([checkpoint.classes.index(file.parent.name) for file in files])
    pixels = np.stack([checkpoint.preprocessing.read(file) for file in files])
    exact, found = (
        np.concatenate([runtime.infer(pixels[start : start + 16]).logits for start in range(0, len(pixels), 16)])
        for runtime in (OnnxRuntime(graph, "cpu"), OpenVinoRuntime(graph))
    )
    errors = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)
    same = (exact.argmax(1) == found.argmax(1)).mean()
    before, after = ((logits.argmax(1) == labels).mean() for logits in (exact, found))
    return (
        f"Of CIFAR-10's {len(files):,} test images, `lipsformer_cifar10` gives {same:.2%} the same top-1 class in\n"
        f"bf16 as in fp32, and classifies {after:.2%} correctly (fp32: {before:.2%}). The relative L2 error\n"
        f"of the logits is {errors.mean():.1e} on average and {errors.max():.1e} for the worst image."
    )


def main() -> None:
    """Measures and prints the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cifar10", type=Path, required=True, help="the dataset's folder")
    parser.add_argument("--rounds", type=int, default=9)
    arguments, load = parser.parse_args(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(open_runtimes(Path(folder)), arguments.rounds)
        answers = agreement(arguments.cifar10, Path(folder))
    versions = installed_versions(("onnxruntime", "openvino"))
    machine = f"{cores()} cores of an {cpu_name()} with {bf16_instructions()}"
    print(HEADING.format(rounds=arguments.rounds, machine=machine, load=load, **versions))
    headings = ["busy processes", "batch", FP32, INT8, BF16, "bf16 / fp32", "lowest to highest", "bf16 / int8"]
    print(markdown_table(headings, rows, "r" * len(headings)))
    print(f"\n{answers}")


HEADING = """# bf16 on CPUs

Milliseconds per call of `lipsformer_swin_tiny` at 224 pixels (random weights, which do not affect the time), alone and
next to a process that uses as much of a core as it gets. Medians of {rounds} interleaved rounds, and the ratio within a
round. {machine}; ONNX Runtime {onnxruntime}, OpenVINO {openvino}.
The load average before the measurement was {load:.1f}: anything above 0 is other work on the same cores.

    lipsformer data fetch cifar10 --output cifar10
    python benchmarks/bf16/measure.py --cifar10 cifar10 > benchmarks/bf16/README.md
"""

if __name__ == "__main__":
    main()
