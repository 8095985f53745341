"""The page without a server in Chromium, compared with `predict`: 500 photos, and every odd image that both can read.

apt-get install chromium
lipsformer data fetch fruit --output fruit
PYTHONPATH=. python benchmarks/web/measure.py fruit > benchmarks/web/README.md
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
from playwright.sync_api import Browser, sync_playwright

from lipsformer import InputError, load_checkpoint, load_predictor, save_checkpoint
from lipsformer.checkpoints.pretrained import resolve_model
from lipsformer.datasets.spread import spread
from lipsformer.inference.predictor import Predictor
from lipsformer.system.hardware import cores, cpu_name
from lipsformer.system.markdown import markdown_table
from tests.support.http.browser import ARGUMENTS, CHROMIUM
from tests.support.http.local_page import answers, folder_server, loaded
from tests.support.images.odd import collection

MODEL = "lipsformer_cifar10"
PHOTOS = 500
TOGETHER = 50
LOADS = 5


@dataclasses.dataclass
class Tally:
    """How the page's answers compare with those of `predict`."""

    both: int = 0
    same: int = 0
    differences: list[float] = dataclasses.field(default_factory=list)
    only_predict: list[str] = dataclasses.field(default_factory=list)
    only_page: list[str] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str, content: bytes, shown: dict[str, float], predictor: Predictor) -> None:
        try:
            predicted = predictor.predict([content], top_k=len(predictor.classes))[0]
        except InputError:
            if shown:
                self.only_page.append(name)
            return
        if not shown:
            self.only_predict.append(name)
            return
        scores = {entry.label: entry.score for entry in predicted}
        difference = max(abs(score - scores[label]) for label, score in shown.items())
        self.both += 1
        self.differences.append(difference)
        agrees = max(shown, key=shown.__getitem__) == predicted[0].label
        self.same += agrees
        if not agrees or difference > 0.02:
            self.others.append(f"{name}: {difference:.3f}{'' if agrees else ', another class'}")

    def row(self, title: str) -> list[str]:
        ordered = sorted(self.differences)
        return [
            title, str(self.both), f"{100 * self.same / self.both:.1f}%", f"{sum(ordered) / self.both:.4f}",
            f"{ordered[int(0.99 * (self.both - 1))]:.4f}", f"{ordered[-1]:.4f}",
            f"{100 * sum(value <= 0.02 for value in ordered) / self.both:.1f}%",
        ]  # fmt: skip


def compare(browser: Browser, url: str, files: Iterable[tuple[str, bytes]], predictor: Predictor) -> Tally:
    """Asks the page, then `predict`, about each file."""
    tally = Tally()
    page = browser.new_page()
    loaded(page, url)
    page.context.set_offline(True)  # whatever the page needs, it has
    for batch in _batched(files):
        found = answers(page, dict(batch))
        for name, content in batch:
            tally.add(name, content, found[name]["scores"], predictor)
    page.context.close()
    return tally


def _batched(files: Iterable[tuple[str, bytes]]) -> Iterable[list[tuple[str, bytes]]]:
    rest = iter(files)
    while batch := list(itertools.islice(rest, TOGETHER)):
        yield batch


def decoding_in_full(folder: Path) -> Path:
    """A checkpoint of the model for which JPEGs are not reduced while they are decoded."""
    loaded = load_checkpoint(resolve_model(Path(MODEL)))
    save_checkpoint(
        folder / "full.safetensors",
        config=loaded.config,
        weights=loaded.model.state_dict(),
        classes=loaded.classes,
        preprocessing=dataclasses.replace(loaded.preprocessing, jpeg_scale="full"),
        metrics={},
    )
    return folder / "full.safetensors"


def cpu_seconds() -> float:
    """CPU time of this process's children, the browser's processes."""
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def first_answers(browser: Browser, url: str, photo: bytes) -> list[tuple[float, float]]:
    """Wall time and CPU time in seconds from opening the page to its first answer, with an empty cache."""
    times = []
    for _ in range(LOADS):
        page = browser.new_page()
        page.goto("about:blank")
        before, start = cpu_seconds(), time.perf_counter()
        page.goto(url)
        page.set_input_files("#files", [{"name": "photo.jpg", "mimeType": "", "buffer": photo}])
        page.locator(".card[data-state=done]").wait_for(timeout=120_000)
        times.append((time.perf_counter() - start, cpu_seconds() - before))
        page.context.close()
    return times


def main() -> None:
    """Prints the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("fruit", type=Path)
    parser.add_argument("--web-runtime", help="npm's package onnxruntime-web, if it cannot be downloaded")
    options = parser.parse_args()
    photos = sorted(options.fruit.glob("*/*/*"))
    chosen = [photos[position] for position in spread(PHOTOS, len(photos))]
    fruit = [(f"{number}-{path.name}", path.read_bytes()) for number, path in enumerate(chosen)]
    odd = [(entry.name, entry.content) for entry in collection() if entry.allowed == ("image",)]
    load = os.getloadavg()[0]
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        version = browser.version
        full = decoding_in_full(Path(scratch))
        for model, title, files in (
            (MODEL, "fruit photos", fruit),
            (MODEL, "odd images", odd),
            (full, "fruit photos, decoded in full", fruit),
        ):
            bundle, site = (Path(scratch) / f"{name}-{Path(model).stem}" for name in ("bundle", "site"))
            if not site.exists():
                more = ["--web-runtime", options.web_runtime] if options.web_runtime else []
                command = ["export", model, "--output", bundle, "--web", site, *more]
                subprocess.run([sys.executable, "-m", "lipsformer", *command], check=True, stdout=subprocess.DEVNULL)
            with folder_server(site) as url:
                if not tallies:
                    size = sum(path.stat().st_size for path in site.iterdir())
                    times = first_answers(browser, url, fruit[0][1])
                tallies[title] = compare(browser, url, files, load_predictor(bundle, "cpu"))
        browser.close()
    wall, cpu = (sorted(values)[len(values) // 2] for values in zip(*times, strict=True))

    def listed(what: str) -> str:
        return ", ".join(f"`{name}`" for tally in tallies.values() for name in getattr(tally, what)) or "none"

    headings = ["images", "both read", "same top-1", "mean difference", "99% below", "largest", "within 0.02"]
    table = markdown_table(headings, [tally.row(title) for title, tally in tallies.items()], "lrrrrrr")
    print(
        f"""# A page without a server

The page of `lipsformer export {MODEL} --web` in headless Chromium {version}, offline once it was
loaded, compared with `lipsformer predict` of the same bundle. The difference is the largest of the scores that the page
shows, which are rounded to 0.001.

`{MODEL}` takes large JPEGs reduced. `predict` leaves that to libjpeg, and the page computes means of the file's
brightness and colors in full size, which are rounded once more. Decoded in full, Chromium's pixels are those of Pillow.

    apt-get install chromium
    lipsformer data fetch fruit --output fruit
    PYTHONPATH=. python benchmarks/web/measure.py fruit > benchmarks/web/README.md

{table}

- `predict` reads these, and Chromium does not: {listed("only_predict")}.
- Chromium reads these, and `predict` does not: {listed("only_page")}.
- Another class, or a score that is off by more than 0.02: {listed("others")}.

The folder has {size / 1e6:.1f} MB. From opening the page to the first answer, with an empty cache: {wall:.1f} s. All of
Chromium's processes took {cpu:.1f} s of CPU time for it (medians of {LOADS}). {cores()} cores of an {cpu_name()}.
The load average before the measurement was {load:.1f}: anything above 0 is other work on the same cores."""
    )


if __name__ == "__main__":
    main()
