"""Every extra in a fresh environment: what it brings, its size, and which commands work.

    python benchmarks/install/measure.py > benchmarks/install/README.md

uv installs the versions of constraints.txt into a temporary folder, from its usual configuration: set UV_FIND_LINKS or
UV_EXTRA_INDEX_URL to a source of PyTorch's CPU wheels, or it fetches the CUDA build. A command that does not work must
name the extra that it needs, or this ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from lipsformer.images.samples import SAMPLES
from lipsformer.system.hardware import cores, cpu_name
from lipsformer.system.markdown import markdown_table

ROOT = Path(__file__).parents[2]
PHOTO, TRAINED = SAMPLES / "Kaiser.jpg", "lipsformer_cifar10"
# What is installed next to `cpu`. `gpu` and `trt` need NVIDIA's libraries, several GB.
EXTRAS = (
    "", "serve", "report", "data", "formats", "cloud", "hub", "otlp", "train", "tensorboard", "timm", "export", "all",
    "openvino", "ray", "trt-rtx",
)  # fmt: skip
TINY = ("model.image_size=32", "model.embed_dim=16", "model.depths=[1,1,1,1]", "model.num_heads=[1,1,2,2]", "workers=0")
ROUNDS = 7

TITLE = """# Installation

Each row is a fresh environment with `pip install 'lipsformer[EXTRAS]'`, and what works in it.

    python benchmarks/install/measure.py > benchmarks/install/README.md
"""
NOTES = """
MB are those of `du -sm site-packages`, with bytecode. Bundles: `predict`, `eval` and `verify` of a bundle. Reports:
`eval BUNDLE DATA --output REPORT`. Serve: the server answers a photo. Checkpoints: `predict CHECKPOINT`. Commands whose
cell is blank ended in one line that names the extra to install, with exit status 2. PyTorch is its CPU build. `gpu` and
`trt` were not measured: they bring NVIDIA's libraries, several GB.
"""
SPEED = """
`lipsformer predict BUNDLE PHOTO` with a bundle of `{trained}` took {predict} of CPU, user and
system. Importing NumPy, ONNX Runtime, Pillow, pydantic and typer alone took {imports}. Medians of
{rounds} rounds, in turn, on {cores} cores of {cpu}, at a load of {load:.1f}, which inflates both.
"""


class Environment:
    """A fresh virtual environment with the wheel of this checkout and some extras."""

    def __init__(self, folder: Path, wheel: Path, extras: str) -> None:
        self.folder, self.python = folder, folder / "bin" / "python"
        uv("venv", "--python", sys.executable, folder)
        wanted = f"lipsformer[{extras}] @ {wheel.as_uri()}"
        uv("pip", "install", "--compile-bytecode", "--python", self.python, "-c", ROOT / "constraints.txt", wanted)
        (self.packages,) = folder.glob("lib/python*/site-packages")

    def megabytes(self) -> int:
        """The size of its packages on disk."""
        return blocks(self.packages) // 2048

    def largest(self) -> list[tuple[str, int]]:
        """Its largest packages, with their libraries, and their MB."""
        sizes: dict[str, int] = {}
        for entry in self.packages.iterdir():
            name = entry.name.removesuffix(".libs").partition("-")[0]
            sizes[name] = sizes.get(name, 0) + blocks(entry)
        return [(name, size // 2048) for name, size in sorted(sizes.items(), key=lambda item: -item[1])]

    def count(self) -> int:
        """The number of its distributions."""
        return len(list(self.packages.glob("*.dist-info")))

    def run(self, *words: object) -> bool:
        """Whether a command works; one that does not must say what to install."""
        done = subprocess.run(
            [self.folder / "bin" / "lipsformer", *map(str, words)],
            cwd=self.folder,
            env=clean(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode and not (
            done.returncode == 2 and re.fullmatch(r"lipsformer: .*pip install .*\n", done.stderr)
        ):
            raise SystemExit(f"{self.folder.name}: {words}: {done.returncode}\n{done.stderr}")
        return done.returncode == 0

    def serves(self, bundle: Path) -> bool:
        """Whether it answers a photo over HTTP."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        command = [self.folder / "bin" / "lipsformer", "serve", bundle, "--port", str(port)]
        server = subprocess.Popen(command, cwd=self.folder, env=clean(), stderr=subprocess.PIPE, text=True)
        try:
            while server.poll() is None:
                with contextlib.suppress(OSError):
                    return classifies(port)
                time.sleep(0.2)
            _, reason = server.communicate()
            if "pip install" not in reason:
                raise SystemExit(reason)
            return False
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def blocks(path: Path) -> int:
    """Blocks of 512 bytes that a file or a folder takes on disk, as `du` counts them."""
    return sum(file.lstat().st_blocks for file in (path, *path.rglob("*")))


def classifies(port: int) -> bool:
    """Whether a server gives an answer with predictions; raises OSError until it listens."""
    url, headers = f"http://127.0.0.1:{port}/classify", {"Content-Type": "image/jpeg"}
    request = urllib.request.Request(url, data=PHOTO.read_bytes(), headers=headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return bool(json.load(response)["predictions"])


def clean() -> dict[str, str]:
    """The environment variables without this checkout and this program's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LIPSFORMER"))}


def uv(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "uv", "--quiet", *map(str, words)], check=True, cwd=ROOT)


def works(environment: Environment, bundle: Path, photos: Path) -> list[bool]:
    """Whether a bundle is predicted, evaluated and verified; reports; serving; checkpoints; training; export."""
    run, room = environment.run, environment.folder
    return [
        all([run("predict", bundle, PHOTO), run("eval", bundle, photos), run("verify", bundle)]),
        run("eval", bundle, photos, "--output", room / "report"),
        environment.serves(bundle),
        run("predict", TRAINED, PHOTO),
        run("train", photos, "--output", room / "run", "--model", "lipsformer_swin_nano", "--epochs", 1, *settings()),
        run("export", TRAINED, "--output", room / "bundle"),
    ]


def settings() -> Iterator[str]:
    for setting in TINY:
        yield from ("--set", setting)


def cpu_seconds(command: Sequence[object]) -> float:
    """User and system time of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*map(str, command)], env=clean(), check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def predicting(environment: Environment, bundle: Path) -> str:
    """A sentence: CPU seconds of a prediction, and of the imports that it cannot do without."""
    cases = {
        "predict": [environment.folder / "bin" / "lipsformer", "predict", bundle, PHOTO],
        "imports": [environment.python, "-c", "import numpy, onnxruntime, PIL.Image, pydantic, typer"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, command in cases.items():
            seconds[name].append(cpu_seconds(command))
    predict, imports = (f"{statistics.median(found):.2f} s (least {min(found):.2f} s)" for found in seconds.values())
    return SPEED.format(
        trained=TRAINED,
        predict=predict,
        imports=imports,
        rounds=ROUNDS,
        cores=cores(),
        cpu=cpu_name(),
        load=os.getloadavg()[0],
    )


def main() -> None:
    print(TITLE)
    rows, speed, parts = [], "", ""
    with tempfile.TemporaryDirectory(prefix="lipsformer-install-") as name:
        folder = Path(name)
        uv("build", "--wheel", "--out-dir", folder, ROOT)
        (wheel,) = folder.glob("*.whl")
        bundle, photos = folder / "bundle", folder / "photos"
        export = [sys.executable, "-m", "lipsformer", "export", TRAINED, "--output", str(bundle), "--quiet"]
        subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
        for split in ("train", "test"):
            for label in ("frog", "bird"):  # classes of the model, which are all that `eval` needs
                (photos / split / label).mkdir(parents=True)
                for number, photo in enumerate(sorted(SAMPLES.glob("*.jpg"))[:4]):
                    shutil.copy(photo, photos / split / label / f"{number}.jpg")
        for extra in EXTRAS:
            extras = f"{extra},cpu" if extra else "cpu"
            environment = Environment(folder / (extra or "core"), wheel, extras)
            size, largest = environment.megabytes(), environment.largest()
            found = works(environment, bundle, photos)
            brings = ", ".join(f"{part} {megabytes}" for part, megabytes in largest[:4])
            rows.append(
                [f"`{extras}`", str(size), str(environment.count()), brings, *("yes" if ok else "" for ok in found)]
            )
            if extra == "serve":
                speed = predicting(environment, bundle)
                parts = ", ".join(f"{part} {megabytes}" for part, megabytes in largest[:8])
            print(rows[-1], file=sys.stderr)
            shutil.rmtree(environment.folder)
    headings = ["extras", "MB", "packages", "largest", "bundles", "reports", "serve", "checkpoints", "train", "export"]
    print(markdown_table(headings, rows, "lrrl"))
    print(f"{NOTES}\nThe largest parts of `serve,cpu`, in MB: {parts}.\n{speed}", end="")


if __name__ == "__main__":
    main()
