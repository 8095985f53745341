"""A server that gets the photos it was calibrated on stays quiet; one that gets them darkened says so."""

from __future__ import annotations

import asyncio
import io
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from lipsformer import load_checkpoint, load_predictor
from lipsformer.bundle.manifest import read_manifest
from lipsformer.bundle.reference import ReferenceHistograms
from lipsformer.datasets import open_labeled
from lipsformer.evaluation.calibration.calibrate import calibrate
from lipsformer.export import ExportSettings, export_bundle
from lipsformer.images.samples import SAMPLES
from lipsformer.inference.classification import Classification, Prediction
from lipsformer.serving.observability import DriftMonitor, open_metrics
from lipsformer.serving.observability import drift as drift_module
from lipsformer.serving.pipeline.model_manager import ModelManager
from lipsformer.serving.settings import Settings
from tests.support.http.server import app_running
from tests.support.trained import Trained

ALARM = 0.25  # of deploy/prometheus/alerts.yml
CROPS = 10  # of each sample photo


def crops(seed: int) -> list[tuple[str, Image.Image]]:
    """Random crops of the sample photos, with their classes: as many photos as a small dataset has."""
    generator, found = np.random.default_rng(seed), []
    for path in sorted(SAMPLES.glob("*.jpg")):
        with Image.open(path) as photo:
            for _ in range(CROPS):
                side = int(generator.integers(150, 300))
                left, top = (int(generator.integers(0, size - side)) for size in photo.size)
                found.append((path.stem, photo.crop((left, top, left + side, top + side)).resize((48, 48))))
    return found


def darkened(photo: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(photo).enhance(0.2)


@pytest.fixture(scope="module")
def calibrated(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose checkpoint was calibrated on crops of the sample photos."""
    root = tmp_path_factory.mktemp("drift")
    for number, (name, photo) in enumerate(crops(1)):
        (root / "data" / name).mkdir(parents=True, exist_ok=True)
        photo.save(root / "data" / name / f"{number}.png")
    checkpoint = root / "calibrated.safetensors"
    calibrate(trained.checkpoint, checkpoint, open_labeled(root / "data", trained.classes), device="cpu")
    export_bundle(checkpoint, root / "bundle", ExportSettings(parity_images=14))
    return root / "bundle"


def drift(client: httpx.Client) -> dict[str, float]:
    """The indices in the metrics, and the number of answers that they are of."""
    text = client.get("/metrics").text
    found = {name: float(value) for name, value in re.findall(r'^lipsformer_drift\{of="(\w+)"\} (\S+)', text, re.M)}
    answers = re.search(r"^lipsformer_drift_answers (\S+)", text, re.M)
    return {**found, "answers": float(answers[1]) if answers else 0.0}


def drift_after(client: httpx.Client, photos: Sequence[Image.Image]) -> dict[str, float]:
    """Sends photos as PNG, and gives the indices after that."""
    for first in range(0, len(photos), 50):
        files = []
        for photo in photos[first : first + 50]:
            photo.save(content := io.BytesIO(), "PNG")
            files.append(("images", content.getvalue()))
        assert client.post("/classify_batch", files=files).status_code == 200
    return drift(client)


def test_photos_like_those_of_the_calibration_are_no_drift_and_darkened_ones_are(
    calibrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_module, "PUBLISH_SECONDS", 0.0)
    photos = [photo for _, photo in crops(2)]  # others than those of the calibration
    with (
        app_running(calibrated, DRIFT_WINDOW="140") as app,
        httpx.Client(base_url=app.url, timeout=60) as client,
    ):
        quiet = drift_after(client, photos)
        assert quiet["answers"] == 140
        assert max(quiet["classes"], quiet["scores"]) < ALARM
        alarmed = drift_after(client, [darkened(photo) for photo in photos])
        assert alarmed["answers"] == 140  # the window has forgotten the others
        assert max(alarmed["classes"], alarmed["scores"]) > ALARM
        assert drift_after(client, photos) == quiet


def test_the_reference_travels_from_the_calibration_into_the_manifest(calibrated: Path) -> None:
    reference = read_manifest(calibrated).reference
    assert reference == load_checkpoint(calibrated.parent / "calibrated.safetensors").reference
    assert reference is not None
    assert reference.distances is None  # it was not calibrated to refuse answers
    photos = [photo for _, photo in crops(1)]
    answers = load_predictor(calibrated).predict(photos, 1)
    found = np.bincount([answer[0].index for answer in answers], minlength=14)
    assert np.abs(found - reference.classes.counts).sum() <= 2  # rounding may move one photo from a class to another


def test_export_makes_a_reference_of_the_photos_that_it_is_given(trained: Trained, tmp_path: Path) -> None:
    assert read_manifest(trained.bundle).reference is None
    export_bundle(trained.checkpoint, tmp_path / "b", ExportSettings(parity_data=trained.data, parity_images=14))
    reference = read_manifest(tmp_path / "b").reference
    answers = load_predictor(trained.checkpoint).predict(sorted(trained.data.rglob("*.jpg")), 1)
    assert reference is not None
    assert reference.classes.counts == tuple(np.bincount([answer[0].index for answer in answers], minlength=14))


def classification(index: int, score: float, distance: float, *, accepted: bool) -> Classification:
    best = Prediction(label=str(index), index=index, score=score)
    return Classification(predictions=(best,), accepted=accepted, distance=distance)


def monitored(put: Callable[[DriftMonitor], None]) -> dict[str, float]:
    """What a monitor of 40 answers publishes after `put`."""
    metrics = open_metrics()
    reference = ReferenceHistograms.of(
        np.arange(200) % 4, np.linspace(0.5, 0.9, 200), np.linspace(0.8, 1.2, 200), classes=4
    )
    assert reference is not None

    async def main() -> None:
        monitor = DriftMonitor(reference, metrics, window=40)
        put(monitor)
        monitor._publish()

    asyncio.run(main())
    text = metrics.exposition().decode()
    rows = re.findall(r'^lipsformer_drift_?(?:\{of=")?(\w+)"?\}? (\S+)', text, re.M)
    return {name: float(value) for name, value in rows}


def usual(monitor: DriftMonitor) -> None:
    for number in range(40):
        monitor.put(classification(number % 4, 0.5 + number / 100, 0.8 + number / 100, accepted=number % 10 > 0))


def far(monitor: DriftMonitor) -> None:
    usual(monitor)
    for number in range(40):
        monitor.put(classification(number % 4, 0.5 + number / 100, 2.0, accepted=False))


def closed(monitor: DriftMonitor) -> None:
    far(monitor)
    monitor.close()
    usual(monitor)


def test_distances_and_answers_that_are_not_accepted_are_of_the_latest_answers() -> None:
    assert monitored(usual) == {
        "classes": 0, "scores": pytest.approx(0, abs=0.05), "distances": pytest.approx(0, abs=0.05), "answers": 40,
        "not_accepted": pytest.approx(0.1),
    }  # fmt: skip
    found = monitored(far)
    assert found["distances"] > 1
    assert found["classes"] == 0
    assert (found["answers"], found["not_accepted"]) == (40, 1)


def test_a_monitor_that_is_closed_withdraws_what_it_published() -> None:
    assert set(monitored(closed).values()) == {0}


def test_a_swap_to_a_bundle_without_a_reference_ends_the_watch(
    calibrated: Path, trained: Trained, tmp_path: Path
) -> None:
    shutil.copytree(calibrated, tmp_path / "bundle")
    settings = Settings.from_environment({"LIPSFORMER_BUNDLE": str(tmp_path / "bundle"), "LIPSFORMER_THREADS": "1"})

    async def main() -> None:
        models = ModelManager(settings, open_metrics(), on_lost=lambda: None)
        await models.start()
        monitor = models.pipeline.drift
        assert monitor is not None
        usual(monitor)
        shutil.rmtree(tmp_path / "bundle")
        shutil.copytree(trained.bundle, tmp_path / "bundle")
        assert await models.reload()
        assert models.pipeline.drift is None
        await models.close()

    asyncio.run(main())
    assert "lipsformer_drift_answers 0.0" in open_metrics().exposition().decode()
