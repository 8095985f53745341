"""Two checkouts side by side, so that a change can show that it costs nothing: training, inference and serving.

    python benchmarks/builds/measure.py --old ../old --old-python ../old/.venv/bin/python > benchmarks/builds/README.md

In each round, each build gets fresh processes in its environment. They take turns in an order that alternates; a ratio
is the old time over the new one in the same round (for rates the other way around), so above 1 the new build is faster.
Medians over rounds. Only what both builds share is used: the public API and the commands.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__)
ROOT = HERE.parents[2]
PHOTOS = ROOT / "lipsformer" / "images" / "samples"
COPIES = 40  # of each photo, for an epoch that is long enough to time
CHECKPOINT = """
import pathlib, sys, lipsformer
network = lipsformer.create_model("lipsformer_swin_tiny", num_classes=10)
lipsformer.save_checkpoint(
    pathlib.Path(sys.argv[1]), config=network.config, weights=network.state_dict(), classes=tuple("abcdefghij"),
    preprocessing=lipsformer.Preprocessing(image_size=224), metrics={},
)
"""
NANO = ("--model", "lipsformer_swin_nano", "--set", "model.image_size=64", "--set", "workers=1", "--device", "cpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Build:
    """A checkout and the interpreter that runs it."""

    name: str
    root: Path
    python: str

    @property
    def environment(self) -> dict[str, str]:
        """Finds this checkout before any installed one."""
        return {**os.environ, "PYTHONPATH": str(self.root), "BENTOML_DO_NOT_TRACK": "True"}

    def run(self, *words: object) -> None:
        """Runs the `lipsformer` command.

        Raises:
            subprocess.CalledProcessError: if it fails.
        """
        command = [self.python, "-P", "-m", "lipsformer", *map(str, words)]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)


class Worker:
    """A process of a build that measures what it is asked for: see `work`."""

    def __init__(self, build: Build, bundle: Path) -> None:
        self.process = subprocess.Popen(
            [build.python, "-P", HERE, "--worker", bundle],
            env=build.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def seconds(self, task: str) -> float:
        """Seconds that `task` took."""
        self.process.stdin.write(task + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def tasks(bundle: Path) -> dict[str, Callable[[], object]]:
    """What a worker can time, by the public API."""
    import numpy as np
    import torch

    import lipsformer

    torch.manual_seed(0)
    model = lipsformer.create_model("lipsformer_swin_tiny").train()
    optimizer = torch.optim.AdamW(model.parameters())
    images, labels = torch.randn(4, 3, 224, 224), torch.arange(4)
    predictor = lipsformer.load_predictor(bundle)
    size = predictor.preprocessing.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8)
    photos = sorted(PHOTOS.glob("*.jpg"))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    calls = (
        step,
        lambda: predictor.runtime.infer(pixels[:1]),
        lambda: predictor.runtime.infer(pixels),
        lambda: [predictor.prepare(photo) for photo in photos],
    )
    return dict(zip(TASKS, calls, strict=True))


def work(bundle: Path) -> None:
    """Answers each task named on stdin with the seconds that it took, after one run that does not count."""
    known, warm = tasks(bundle), set()
    for line in sys.stdin:
        task = known[line.strip()]
        if line not in warm:
            task()
            warm.add(line)
        start = time.perf_counter()
        task()
        print(time.perf_counter() - start, flush=True)


def train_rate(build: Build, data: Path, scratch: Path) -> float:
    """Images per second of the second epoch of `lipsformer train`."""
    shutil.rmtree(scratch, ignore_errors=True)
    build.run("train", data, "--output", scratch, "--epochs", 2, *NANO)
    last = json.loads((scratch / "metrics.jsonl").read_text().splitlines()[-1])
    return float(last["images_per_second"])


def serve_rate(build: Build, bundle: Path, expected: dict[str, str], seconds: float, log: Path) -> float:
    """Correct answers per second of a fresh `lipsformer serve` to 16 clients.

    Fresh, since a server chooses its batch size at its start, by what it measures then.
    """
    from load import Load, generate
    from servers import free_port, running

    port = free_port()
    command = [build.python, "-P", "-m", "lipsformer", "serve", str(bundle), "--port", str(port)]
    with running(command, port, log, ready="/readyz", environment=build.environment) as server:
        load = Load(url=server.url, mix={"raw": 1}, expected=expected, seconds=seconds + 1, warm_up=1, clients=16)
        return float(generate(load)["per_second"])


def in_turn(builds: list[Build], number: int, measure: Callable[[Build], float]) -> dict[str, float]:
    """One figure of each build, the first one first in every other round."""
    order = builds if number % 2 == 0 else builds[::-1]
    return {build.name: measure(build) for build in order}


def measure(builds: list[Build], rounds: int, seconds: float, scratch: Path) -> list[list[str]]:
    """A row for each task: what was measured, the medians of both builds, and the ratio with its range."""
    from bodies import expectations

    import lipsformer

    data, model = scratch / "data", scratch / "tiny.safetensors"
    for photo in sorted(PHOTOS.glob("*.jpg"))[:5]:
        (data / "train" / photo.stem).mkdir(parents=True)
        (data / "val" / photo.stem).mkdir(parents=True)
        shutil.copy(photo, data / "val" / photo.stem)
        for number in range(COPIES):
            shutil.copy(photo, data / "train" / photo.stem / f"{number}.jpg")
    # By the old build: a newer one reads its files, not the other way around.
    subprocess.run([builds[0].python, "-P", "-c", CHECKPOINT, model], env=builds[0].environment, check=True)
    for build in builds:
        build.run("export", model, "--output", scratch / f"tiny-{build.name}")
        build.run("export", "lipsformer_cifar10", "--output", scratch / f"cifar10-{build.name}")
    expected = expectations(lipsformer.load_predictor(scratch / "cifar10-new"))
    times: dict[str, list[dict[str, float]]] = {task: [] for task in TASKS}
    for number in range(rounds):
        workers = {build.name: Worker(build, scratch / f"tiny-{build.name}") for build in builds}
        for task in TASKS:
            found = in_turn(builds, number, lambda build: workers[build.name].seconds(task))  # noqa: B023
            times[task].append(found)
        for worker in workers.values():
            worker.close()
    rows = [row(task, "ms", found, 1000) for task, found in times.items()]
    rates = [
        in_turn(builds, number, lambda build: train_rate(build, data, scratch / f"run-{build.name}"))
        for number in range(rounds)
    ]
    rows.append(row("`lipsformer train`, `lipsformer_swin_nano` at 64 px, 200 photos", "images/s", rates))
    rates = [
        in_turn(
            builds,
            number,
            lambda build: serve_rate(build, scratch / f"cifar10-{build.name}", expected, seconds, scratch / "log"),
        )
        for number in range(rounds)
    ]
    rows.append(row("`lipsformer serve`, `lipsformer_cifar10`, 16 clients", "answers/s", rates))
    return rows


def row(task: str, unit: str, found: list[dict[str, float]], scale: float = 1) -> list[str]:
    """The cells of a task's row; a ratio above 1 means that the new build is faster."""
    ratios = [turn["old"] / turn["new"] if unit == "ms" else turn["new"] / turn["old"] for turn in found]
    medians = (f"{scale * statistics.median(turn[name] for turn in found):.1f}" for name in ("old", "new"))
    return [task, unit, *medians, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]


TASKS = (
    "training step, `lipsformer_swin_tiny`, batch 4",
    "inference, `lipsformer_swin_tiny` in ONNX Runtime, batch 1",
    "inference, `lipsformer_swin_tiny` in ONNX Runtime, batch 8",
    "decoding and preprocessing 14 photos",
)


def revision(root: Path) -> str:
    """The commit that a checkout is at."""
    command = [shutil.which("git") or "git", "-C", root, "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def cpu() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Measures and prints the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", type=Path)
    parser.add_argument("--old", type=Path)
    parser.add_argument("--old-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=6, help="of a turn of serving")
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return
    from lipsformer.system.markdown import markdown_table

    sys.path.insert(0, str(ROOT / "benchmarks" / "serving"))
    builds = [
        Build(name="old", root=arguments.old.absolute(), python=arguments.old_python),
        Build(name="new", root=ROOT, python=sys.executable),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(builds, arguments.rounds, arguments.seconds, Path(scratch))
    old, new = (revision(build.root) for build in builds)
    print("# Two builds side by side\n\n" + (__doc__ or "").partition("\n\n")[2])
    print(f"Old `{old}`, new `{new}`; {cpu()}, {os.cpu_count()} virtual cores, {arguments.rounds} rounds.\n")
    print(markdown_table(["", "unit", "old", "new", "ratio", "range"], rows, "llrrrr"))


if __name__ == "__main__":
    main()
