"""A shadow counts and logs where a second bundle answers differently, and touches no answer."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lipsformer import InputError, load_checkpoint, load_predictor, save_checkpoint
from lipsformer.bundle.manifest import _sealed
from lipsformer.export import export_bundle
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.classification import Prediction
from lipsformer.serving.launch import serve
from lipsformer.serving.observability import open_metrics
from lipsformer.serving.pipeline.fault_isolation import IsolatingRuntime, Outcome
from lipsformer.serving.pipeline.loaded_bundle import LoadedBundle
from lipsformer.serving.pipeline.shadow import WAITING_IMAGES, Shadow
from lipsformer.serving.settings import Settings
from tests.support.http.server import app_running
from tests.support.trained import Trained

PHOTOS = sorted(SAMPLES.glob("*.jpg"))


@pytest.fixture(scope="module")
def turned(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a model that sees the same pixels, and takes every class for its neighbor but three."""
    folder = tmp_path_factory.mktemp("turned")
    checkpoint = load_checkpoint(trained.checkpoint)
    classes = checkpoint.classes
    save_checkpoint(
        folder / "model.safetensors",
        config=checkpoint.config,
        weights=checkpoint.model.state_dict(),
        classes=(*classes[:3], *classes[4:], classes[3]),
        preprocessing=checkpoint.preprocessing,
        metrics={},
    )
    export_bundle(folder / "model.safetensors", folder / "bundle")
    return folder / "bundle"


def outcomes(text: str | None = None) -> dict[str, float]:
    text = open_metrics().exposition().decode() if text is None else text
    return {name: float(n) for name, n in re.findall(r'^lipsformer_shadow_total\{outcome="(\w+)"\} (\S+)', text, re.M)}


def growth(before: dict[str, float], wanted: float) -> dict[str, float]:
    """What was counted since `before`, once that is `wanted` images."""
    deadline = time.monotonic() + 20
    while True:
        found = {name: count - before.get(name, 0) for name, count in outcomes().items()}
        if sum(found.values()) == wanted:
            return {name: count for name, count in found.items() if count}
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def test_disagreements_are_counted_and_logged_and_the_answers_are_those_of_the_first(
    trained: Trained, turned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = [load_predictor(bundle).predict(PHOTOS, 1) for bundle in (trained.bundle, turned)]
    pairs = [(first[0].label, second[0].label) for first, second in zip(*labels, strict=True)]
    differing = {photo.stem: pair for photo, pair in zip(PHOTOS, pairs, strict=True) if pair[0] != pair[1]}
    assert 0 < len(differing) < len(PHOTOS)
    before = outcomes()
    with (
        caplog.at_level(logging.INFO, "lipsformer.serving"),
        app_running(trained.bundle, SHADOW=str(turned), SHADOW_SHARE="1") as app,
    ):
        for number, (photo, (label, _)) in enumerate(zip(PHOTOS, pairs, strict=True)):
            answer = httpx.post(
                f"{app.url}/classify", files={"image": photo.read_bytes()}, headers={"X-Request-ID": photo.stem}
            )
            assert answer.json()["predictions"][0]["label"] == label
            growth(before, number + 1)  # each before the next, so that none finds the queue full
    counted = growth(before, len(PHOTOS))
    assert counted == {"agreed": len(PHOTOS) - len(differing), "disagreed": len(differing)}
    lines: list[dict[str, Any]] = [record.__dict__["fields"] for record in caplog.records if "shadow" in record.msg]
    assert {line["request_id"]: (line["label"], line["shadow_label"]) for line in lines} == differing


@dataclasses.dataclass
class Stuck:
    """A runtime that computes nothing until it may, and then fails."""

    release: threading.Event

    def run(self, _: Sequence[np.ndarray]) -> list[Outcome]:
        self.release.wait(20)
        raise RuntimeError("broken")


def stuck_shadow(trained: Trained, share: float) -> tuple[Shadow, threading.Event]:
    settings = Settings.from_environment({"LIPSFORMER_BUNDLE": str(trained.bundle), "LIPSFORMER_THREADS": "1"})
    loaded = LoadedBundle.load(settings.model_copy(update={"max_batch": 1}), lambda _: None)
    release = threading.Event()
    runtime: Any = Stuck(release)
    return Shadow(dataclasses.replace(loaded, runtime=runtime), share=share, metrics=open_metrics()), release


def test_a_shadow_that_is_stuck_or_fails_takes_no_more_than_a_few_images(trained: Trained) -> None:
    shadow, release = stuck_shadow(trained, 1.0)
    pixels, answer = np.zeros((32, 32, 3), np.uint8), Prediction(label="a", index=0, score=1.0)
    before, started = outcomes(), time.monotonic()
    for _ in range(100):
        shadow.offer(pixels, answer, "id")
    assert time.monotonic() - started < 10  # while the shadow would hold up an answer for 20 s
    dropped = outcomes().get("dropped", 0) - before.get("dropped", 0)
    assert 100 - 2 * WAITING_IMAGES - 1 <= dropped < 100
    release.set()
    assert growth(before, 100) == {"dropped": dropped, "failed": 100 - dropped}
    shadow.close()


def test_it_sees_its_share_of_the_images(trained: Trained) -> None:
    shadow, release = stuck_shadow(trained, 0.1)
    release.set()
    pixels, answer = np.zeros((32, 32, 3), np.uint8), Prediction(label="a", index=0, score=1.0)
    before = outcomes()
    for _ in range(95):
        shadow.offer(pixels, answer, "id")
    growth(before, 9)
    shadow.close()


def test_it_rests_after_an_image_that_took_long(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipsformer.serving.pipeline.shadow.LOAD", 1e-4)  # 0.1 s of work for 1000 s
    shadow, release = stuck_shadow(trained, 1.0)
    pixels, answer = np.zeros((32, 32, 3), np.uint8), Prediction(label="a", index=0, score=1.0)
    before = outcomes()
    shadow.offer(pixels, answer, "id")
    time.sleep(0.5)
    release.set()
    growth(before, 1)
    shadow.offer(pixels, answer, "id")
    assert growth(before, 2) == {"failed": 1, "dropped": 1}
    shadow.close()


def test_answers_do_not_depend_on_a_shadow_that_fails(
    trained: Trained, turned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = IsolatingRuntime.run

    def broken(self: IsolatingRuntime, images: Sequence[np.ndarray]) -> list[Outcome]:
        if threading.current_thread().name == "shadow":
            raise RuntimeError("the shadow is broken")
        return run(self, images)

    monkeypatch.setattr(IsolatingRuntime, "run", broken)
    before = outcomes()
    with app_running(trained.bundle, SHADOW=str(turned), SHADOW_SHARE="1") as app:
        for photo in PHOTOS[:3]:
            assert httpx.post(f"{app.url}/classify", files={"image": photo.read_bytes()}).status_code == 200
        assert growth(before, 3).keys() <= {"failed", "dropped"}


def test_a_shadow_that_sees_other_pixels_is_refused_before_the_server_starts(
    trained: Trained, turned: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(turned, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["preprocessing"]["crop_pct"] = 0.5
    (other / "manifest.json").write_text(_sealed(manifest))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(InputError, match=r"LIPSFORMER_SHADOW=.*: its preprocessing is not that of the served bundle"):
        serve(trained.bundle, host="127.0.0.1", port=port, shadow=other)
    with pytest.raises(InputError, match="not a bundle"):
        serve(trained.bundle, host="127.0.0.1", port=port, shadow=tmp_path)
