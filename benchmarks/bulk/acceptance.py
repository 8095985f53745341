"""The promises of bulk prediction on thousands of images with planted faults, while processes are killed.

    PYTHONPATH=. python benchmarks/bulk/acceptance.py --images 5000 --kills 20

A server gives out the images and counts how often each is fetched, which is how often it is computed. The rows of a
local run, of two merged parts, of a run that is killed again and again, and of two Ray nodes, one of which is killed
like the driver, must have the same bytes. The default size takes minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx

import lipsformer
from lipsformer.export.graph import build_graph
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.bulk.pipeline import IN_FLIGHT
from lipsformer.system.hardware import cores
from tests.support.bulk import forbid_repetition
from tests.support.http.running import running
from tests.support.images.odd import collection
from tests.support.ray_cluster import environment, kill, ray_cluster

TINY = {"image_size": 32, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4)}
BLOCK = 16  # images
FAULTS = 25  # one image in so many cannot be classified
KINDS = ("missing", "unreadable", "empty", "not_an_image", "damaged")  # planted, next to those of the odd collection

Planted = tuple[bytes, frozenset[str]]  # an image, and the statuses that are right for it


def plant(count: int, draw: random.Random) -> list[Planted]:
    """`count` images in random order: photos, the odd collection, and faults of all kinds, one in `FAULTS`."""
    photos = [photo.read_bytes() for photo in sorted(SAMPLES.glob("*.jpg"))]
    contents = {"empty": b"", "not_an_image": b"no image at all", "damaged": photos[0][:4000]}
    odd = collection()
    draw.shuffle(odd)
    found = [
        (one.content, frozenset("ok" if status == "image" else status for status in one.allowed))
        for one in odd[: count // 15]
    ]
    faults = count // FAULTS - sum("ok" not in allowed for _, allowed in found)
    found += [(contents.get(kind, b""), frozenset([kind])) for kind in (KINDS * count)[:faults]]
    found += [(photos[number % len(photos)], frozenset(["ok"])) for number in range(count - len(found))]
    draw.shuffle(found)
    return found


class Images(http.server.ThreadingHTTPServer):
    """Serves the images by number, as /12.jpg, and counts the requests."""

    def __init__(self, images: list[Planted]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.images, self.fetched, self.lock = images, Counter[int](), threading.Lock()

    def reset(self) -> None:
        """Starts to count again."""
        self.fetched = Counter()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers a missing image with 404, and an unreadable one with 500."""

    server: Images

    def do_GET(self) -> None:
        """Counts and answers."""
        number = int(self.path.removeprefix("/").removesuffix(".jpg"))
        with self.server.lock:
            self.server.fetched[number] += 1
        content, allowed = self.server.images[number]
        with contextlib.suppress(ConnectionError):  # the process was killed
            self.send_response({"missing": 404, "unreadable": 500}.get(next(iter(allowed)), 200))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class Acceptance:
    """The runs, which share the images, the model and a folder."""

    def __init__(self, folder: Path, server: Images, url: str, seed: int) -> None:
        self.folder, self.server, self.draw = folder, server, random.Random(seed)  # noqa: S311 - not a secret
        self.names = folder / "names"
        self.names.write_text("\n".join(f"{url}/{number}.jpg" for number in range(len(server.images))))
        model = lipsformer.create_model("lipsformer_swin_nano", 10, **TINY)
        checkpoint = lipsformer.Checkpoint(
            model=model,
            config=model.config,
            classes=tuple(f"class {index}" for index in range(10)),
            preprocessing=lipsformer.Preprocessing(image_size=32),
            metrics={},
        )
        onnx.save(build_graph(checkpoint, max_batch=BLOCK), folder / "model.onnx")

    def start(self, output: str, *words: str) -> subprocess.Popen[bytes]:
        """Starts a prediction in a process group; its messages go to a file."""
        command = [sys.executable, "-m", "lipsformer", "predict", self.folder / "model.onnx", "-", "--features"]
        with self.names.open() as names, (self.folder / f"{output}.log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--output", self.folder / output, *words],
                stdin=names, stdout=log, stderr=log, env=environment(), start_new_session=True,
            )  # fmt: skip

    def run(self, output: str, *words: str) -> None:
        """Predicts to the end."""
        process = self.start(output, *words)
        try:
            check(process.wait() == 0, (self.folder / f"{output}.log").read_text())
        finally:
            kill(process)

    def same(self, output: str) -> None:
        """Checks that the rows are those of the local run."""
        check((self.folder / output).read_bytes() == (self.folder / "local.jsonl").read_bytes(), f"{output} differs")

    def each_once(self) -> None:
        """Checks that each image was computed once."""
        check(set(self.server.fetched.values()) == {1}, f"{self.server.fetched.most_common(3)} were computed again")
        check(len(self.server.fetched) == len(self.server.images), "not all images were computed")

    def local(self) -> str:
        """A local run: a row for each image, with the right status."""
        self.run("local.jsonl")
        self.each_once()
        rows = [json.loads(line) for line in (self.folder / "local.jsonl").read_text().splitlines()]
        check(len(rows) == len(self.server.images), f"{len(rows)} rows")
        for number, (row, (_, allowed)) in enumerate(zip(rows, self.server.images, strict=True)):
            check(row["name"].endswith(f"/{number}.jpg"), f"row {number} is {row['name']}")
            check(row["status"] in allowed, f"row {number} is {row['status']}, not one of {sorted(allowed)}")
        statuses = Counter(row["status"] for row in rows)
        return ", ".join(f"{count:,} {status}" for status, count in statuses.most_common())

    def parts(self) -> str:
        """Two parts, merged."""
        parts = [f"parts.jsonl.part-{number}-of-2" for number in (1, 2)]
        for number in (1, 2):
            self.run("parts.jsonl", "--part", f"{number}/2")
        self.each_once()
        files = [str(self.folder / part) for part in parts]
        command = [sys.executable, "-m", "lipsformer", "predict", "--merge", str(self.folder / "parts.jsonl"), *files]
        subprocess.run(command, check=True, env=environment(), stderr=subprocess.DEVNULL)
        self.same("parts.jsonl")
        return "the same bytes, each image computed once"

    def killed(self, kills: int) -> str:
        """A local run that is killed at random moments: some while it starts, the others while it computes."""
        state = self.folder / "killed.jsonl.partial"
        done = [0]
        for number in range(kills):
            process, before = self.start("killed.jsonl"), self.server.fetched.total()
            if number % 5:
                until(lambda start=before: self.server.fetched.total() > start, process)
                goal = before + self.draw.randrange(2 * len(self.server.images) // (3 * kills))
                until(lambda goal=goal: self.server.fetched.total() >= goal, process)
            else:
                time.sleep(self.draw.uniform(0, 3))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done.append(forbid_repetition(state))  # from now on, a second row of an image is an error
            check(done[-1] < len(self.server.images), "it was done before the last kill")
        check(done == sorted(done), "rows were lost")
        self.run("killed.jsonl")
        self.same("killed.jsonl")
        again = self.server.fetched.total() - len(self.server.images)
        most = IN_FLIGHT * BLOCK * kills
        check(again <= most, f"{again} images were computed again, over the {most} in flight")
        return f"{kills} kills after {done[1:]} rows; the same bytes, {again} images in flight computed again"

    def ray(self) -> str:
        """Two Ray nodes: an undisturbed run, and one that loses its driver and then a node."""
        size = len(self.server.images)
        with ray_cluster(cores()) as (address, other):
            cluster = ("--engine", "ray", "--address", address)
            self.run("ray.jsonl", *cluster)
            self.same("ray.jsonl")
            self.each_once()
            self.server.reset()
            for victim in ("driver", "node"):
                driver, before = self.start("lost.jsonl", *cluster), self.server.fetched.total()
                goal = before + size // 10 + self.draw.randrange(size // 5)
                until(lambda goal=goal: self.server.fetched.total() >= goal, driver)
                kill(driver if victim == "driver" else other)
                if victim == "driver":
                    saved = forbid_repetition(self.folder / "lost.jsonl.partial")
            check(driver.wait() == 0, (self.folder / "lost.jsonl.log").read_text())
        self.same("lost.jsonl")
        again = self.server.fetched.total() - size
        most = 3 * IN_FLIGHT * BLOCK  # of two workers, and of one
        check(again <= most, f"{again} images were computed again, over the {most} in flight")
        return f"the same bytes; the driver killed after {saved} rows, then a node: {again} images computed again"


def until(done: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Waits until something happens, while the process runs."""
    while not done():
        check(process.poll() is None, "the process ended before it was killed")
        time.sleep(0.005)


def check(right: bool, problem: str) -> None:
    """Ends the program with a problem."""
    if not right:
        sys.exit(f"failed: {problem}")


def main() -> None:
    """Runs everything and prints a line for each run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    images = plant(arguments.images, random.Random(arguments.seed))  # noqa: S311 - not a secret
    refused = sum("ok" not in allowed for _, allowed in images)
    print(f"{len(images):,} images, {refused} of which cannot be classified", flush=True)
    server = Images(images)
    with tempfile.TemporaryDirectory() as folder, running(server) as url:
        acceptance = Acceptance(Path(folder), server, url, arguments.seed)
        for name, way in (
            ("local", acceptance.local),
            ("two parts merged", acceptance.parts),
            ("killed", lambda: acceptance.killed(arguments.kills)),
            ("Ray on two nodes", acceptance.ray),
        ):
            server.reset()
            started = time.perf_counter()
            print(f"{name}: {way()} ({time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
