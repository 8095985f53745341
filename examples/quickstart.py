"""From real photos to an HTTP answer: data, train, export, serve, classify. `make quickstart` runs it.

Each step prints the `lipsformer` command that you would type, then runs it. Results of an earlier run are reused.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

PHOTOS_PER_CLASS = 3
LIPSFORMER = Path(sys.executable).with_name("lipsformer")


def lipsformer(*arguments: object) -> str:
    """Runs one command, showing it first; returns its stdout."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ lipsformer {shlex.join(words)}", flush=True)
    done = subprocess.run([LIPSFORMER, *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    print(done.stdout, end="", flush=True)
    return done.stdout


def free_port() -> int:
    """A free port of the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, server: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Waits until the server is ready; exits if the server stops or takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit(f"the server stopped with status {server.returncode}; see its log")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    sys.exit(f"the server was not ready within {seconds:.0f} s")


def classify(url: str, photo: Path) -> dict[str, Any]:
    """The top-1 prediction for a photo: POST /classify with the file as the body."""
    request = urllib.request.Request(
        f"{url}/classify?top_k=1", data=photo.read_bytes(), headers={"Content-Type": "image/jpeg"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        best: dict[str, Any] = json.load(response)["predictions"][0]
    return best


def classify_over_http(bundle: Path, photos: list[Path]) -> float:
    """Serves the bundle, sends it the photos, and prints each answer next to the true class; returns the accuracy."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [LIPSFORMER, "serve", bundle, "--port", str(port)]
    log = bundle.parent / "server.log"
    print(f"\n$ {shlex.join(['lipsformer', *map(str, command[1:])])} 2> {log} &", flush=True)
    with log.open("wb") as sink:
        server = subprocess.Popen(command, stdout=sink, stderr=sink)
    try:
        wait_until_ready(url, server)
        print(f"\n$ curl -F image=@{photos[0]} '{url}/classify?top_k=1'   # and so on for {len(photos)} photos\n")
        right = 0
        for photo in photos:
            best = classify(url, photo)
            truth = photo.parent.name
            right += best["label"] == truth
            mark = "right" if best["label"] == truth else "WRONG"
            print(f"  {mark}  {truth:18} answered {best['label']:18} {best['score']:6.1%}  {photo.name}")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    return right / len(photos)


def main() -> None:
    """Runs all steps; see the module's docstring."""
    parser = argparse.ArgumentParser(description="From real photos to an HTTP answer.")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="folder for all results")
    parser.add_argument("--epochs", type=int, help="override the recipe's epochs, for a faster, less accurate model")
    options = parser.parse_args()
    root: Path = options.output
    photos, run, bundle = root / "fruit", root / "run", root / "bundle"
    started = time.monotonic()

    if not photos.is_dir():
        lipsformer("data", "fruit", "--output", photos)
    fetched = time.monotonic()

    epochs = ["--epochs", options.epochs] if options.epochs else []
    lipsformer("train", photos, "--recipe", "fruit", "--output", run, *epochs)

    checkpoint = run / "last.safetensors"
    if bundle.is_dir() and (bundle / "manifest.json").stat().st_mtime < checkpoint.stat().st_mtime:
        shutil.rmtree(bundle)  # it belongs to an older training
    if not bundle.is_dir():
        lipsformer("export", checkpoint, "--output", bundle)

    held_out = [
        p for folder in sorted((photos / "test").iterdir()) for p in sorted(folder.iterdir())[:PHOTOS_PER_CLASS]
    ]
    over_http = classify_over_http(bundle, held_out)
    print(
        f"\n{over_http:.0%} of {len(held_out)} held-out photos classified correctly over HTTP; chance is 7%, 1 in 14."
    )
    lipsformer("eval", bundle, photos)
    print(f"\nTook {time.monotonic() - fetched:.0f} s, and {fetched - started:.0f} s to fetch the photos.")
    print(f"""
Look at      {run / "curves.png"}
             {run / "confusion.png"}
             {bundle / "parity.png"}
Try next     lipsformer serve {bundle}                  and drop a photo on http://127.0.0.1:3000
             lipsformer predict {bundle} PHOTO.jpg                 or several
             lipsformer train PHOTOS --model lipsformer_swin_nano --output runs/mine       your PHOTOS/<class>/*.jpg
(The commands are in .venv/bin: `. .venv/bin/activate` first.)""")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)  # the interrupted step has printed its message; run the quickstart again to resume
