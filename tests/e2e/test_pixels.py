"""Deep pixels and color profiles on the whole way: training, export, prediction and a server."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image, ImageCms

from lipsformer import load_checkpoint, load_predictor, save_checkpoint
from lipsformer.export import ExportSettings, export_bundle, verify_bundle
from lipsformer.images.samples import SAMPLES
from tests.support.http.server import app_running
from tests.support.images.deep import deep_png
from tests.support.images.files import encode
from tests.support.images.profiles import ADOBE_RGB, DISPLAY_P3, SWAPPED, matrix_profile
from tests.support.tiny_training import train_tiny
from tests.support.trained import Trained

SPACES = {"Display P3": DISPLAY_P3, "Adobe RGB": ADOBE_RGB, "red and green swapped": SWAPPED}
WITHIN = 0.02
CALMER = 0.1  # times the logits of the model, which is too sure of its answers for its scores to differ


def scores(client: httpx.Client, content: bytes) -> dict[str, float]:
    response = client.post("/classify", params={"top_k": 99}, content=content, headers={"Content-Type": "image/png"})
    assert response.status_code == 200, response.text
    return {found["label"]: found["score"] for found in response.json()["predictions"]}


def predicted(model: Path, content: bytes, scratch: Path) -> dict[str, float]:
    path = scratch / "image.png"
    path.write_bytes(content)
    return {found.label: found.score for found in load_predictor(model).predict([path], 99)[0]}


def furthest(one: dict[str, float], other: dict[str, float]) -> float:
    assert one.keys() == other.keys()
    return max(abs(one[label] - other[label]) for label in one)


def photo_and_twin(name: str, profile: bytes) -> tuple[bytes, bytes, bytes]:
    """A photo in sRGB, the same colors with `profile`, and those without the profile."""
    with Image.open(SAMPLES / f"{name}.jpg") as photo:
        muted = photo.convert("RGB").point(lambda level: 40 + level * 2 // 3)  # inside of every space
    buffer = ImageCms.getOpenProfile(io.BytesIO(profile))
    other = ImageCms.profileToProfile(muted, ImageCms.createProfile("sRGB"), buffer)
    assert other is not None
    other.info.clear()
    return encode("PNG", muted), encode("PNG", other, icc_profile=profile), encode("PNG", other)


@pytest.mark.slow
def test_an_image_in_another_space_gets_the_scores_of_its_twin(trained: Trained, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained.checkpoint)
    checkpoint.model.head.weight.data.mul_(CALMER)
    managed = tmp_path / "managed.safetensors"
    save_checkpoint(
        managed,
        config=checkpoint.config,
        weights=checkpoint.model.state_dict(),
        classes=checkpoint.classes,
        preprocessing=dataclasses.replace(checkpoint.preprocessing, color_management=True, pixel_range="full"),
        metrics={},
    )
    export_bundle(managed, tmp_path / "bundle")
    assert verify_bundle(tmp_path / "bundle").parity.failures == []
    (graph,) = (tmp_path / "bundle").glob("ort-fp32.onnx")
    different, matching = [], []
    with (
        app_running(tmp_path / "bundle") as app,
        httpx.Client(base_url=app.url, timeout=20) as client,
    ):
        assert client.get("/info").json()["preprocessing"]["color_management"] is True
        for space, primaries in SPACES.items():
            for name in ("Kaiser", "Orange", "Red-Delicious"):
                plain, twin, stripped = photo_and_twin(name, matrix_profile(primaries))
                expected = scores(client, plain)
                assert furthest(scores(client, twin), expected) <= WITHIN, space
                for model in (managed, graph, tmp_path / "bundle"):
                    assert furthest(predicted(model, twin, tmp_path), expected) <= WITHIN, space
                different.append(furthest(scores(client, stripped), expected))
                matching.append(furthest(scores(client, twin), expected))
                # A model from before keeps what it was trained with.
                old = predicted(trained.checkpoint, twin, tmp_path)
                assert old == predicted(trained.checkpoint, stripped, tmp_path)
    assert max(different) > 10 * WITHIN  # the model does see colors
    assert max(matching) < max(different) / 30


def write_textures(root: Path, *, bits: int) -> None:
    """Gray images of four kinds of stripes under noise, of values of `bits` bits: the same pictures for any number."""
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :40] / 40
    for split, count in (("train", 24), ("val", 50)):
        for label, wave in {"a": columns * 3, "b": rows * 3, "c": columns + rows, "d": (columns + rows) * 5}.items():
            for number in range(count):
                picture = 0.5 + 0.2 * np.sin(2 * np.pi * (wave + draw.random())) + draw.normal(0, 0.12, (40, 40))
                values = (np.clip(picture, 0, 1) * 4095).astype(np.uint16)
                path = root / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                if bits == 8:
                    Image.fromarray((values >> 4).astype(np.uint8)).save(path)
                else:
                    path.write_bytes(deep_png(values))


@pytest.mark.slow
def test_twelve_bits_train_as_well_as_their_twin_of_eight(tmp_path: Path) -> None:
    accuracy = {}
    for bits in (8, 12):
        write_textures(tmp_path / f"{bits}", bits=bits)
        recipe = ("batch_size=16", "model.drop_path=0.0", "learning_rate=3e-3", "label_smoothing=0.0", "hflip=0.0")
        best = train_tiny(tmp_path / f"{bits}", tmp_path / f"run{bits}", *recipe, epochs=16)
        lines = (best.parent / "metrics.jsonl").read_text().splitlines()
        accuracy[bits] = max(json.loads(line)["val_top1"] for line in lines)
    assert load_checkpoint(tmp_path / "run12" / "best.safetensors").preprocessing.pixel_range == (0, 4095)
    assert accuracy[8] > 0.6, accuracy  # of four classes: something was learned
    assert abs(accuracy[12] - accuracy[8]) <= 0.02, accuracy

    settings = ExportSettings(parity_data=tmp_path / "12")
    export_bundle(tmp_path / "run12" / "best.safetensors", tmp_path / "bundle", settings)
    verify_bundle(tmp_path / "bundle")
    paths, correct = sorted((tmp_path / "12" / "val").rglob("*.png")), []
    alone = load_predictor(tmp_path / "bundle").predict(paths, 99)
    with (
        app_running(tmp_path / "bundle") as app,
        httpx.Client(base_url=app.url, timeout=20) as client,
    ):
        for path, answer in zip(paths, alone, strict=True):
            found = scores(client, path.read_bytes())
            assert furthest(found, {prediction.label: prediction.score for prediction in answer}) < 1e-3
            correct.append(max(found, key=found.__getitem__) == path.parent.name)
    assert abs(np.mean(correct) - accuracy[12]) <= 0.02


@pytest.mark.slow
def test_jpegs_are_reduced_on_every_hop(trained: Trained, tmp_path: Path) -> None:
    """Both ways of decoding give the same from training to the server, and differ from each other."""
    for path in sorted(tmp_path / "data" / part / name for part in ("train", "val") for name in ("Kaiser", "Orange")):
        path.mkdir(parents=True)
        for number in range(2):
            with Image.open(SAMPLES / f"{path.name}.jpg") as photo:
                large = photo.resize((700 + number, 600), Image.Resampling.BICUBIC)
            large.save(path / f"{number}.jpg", quality=95)
    checkpoint = load_checkpoint(trained.checkpoint)
    checkpoint.model.head.weight.data.mul_(CALMER)
    photo, found = tmp_path / "data" / "val" / "Kaiser" / "1.jpg", {}
    for jpeg_scale in ("reduced", "full"):
        options = () if jpeg_scale == "reduced" else ("jpeg_scale=full",)
        run = train_tiny(tmp_path / "data", tmp_path / f"run-{jpeg_scale}", *options, epochs=1)
        model, bundle = tmp_path / f"{jpeg_scale}.safetensors", tmp_path / jpeg_scale
        save_checkpoint(
            model,
            config=checkpoint.config,
            weights=checkpoint.model.state_dict(),
            classes=checkpoint.classes,
            preprocessing=load_checkpoint(run).preprocessing,
            metrics={},
        )
        export_bundle(model, bundle, ExportSettings(parity_data=tmp_path / "data"))
        assert verify_bundle(bundle).parity.failures == []
        (graph,) = bundle.glob("ort-fp32.onnx")
        hops = [load_predictor(path) for path in (model, graph, bundle)]
        assert [hop.preprocessing.jpeg_scale for hop in hops] == [jpeg_scale] * 3
        pixels = hops[0].prepare(photo)
        assert all(np.array_equal(hop.prepare(photo.read_bytes()), pixels) for hop in hops)
        expected = [{answer.label: answer.score for answer in hop.predict([photo], 99)[0]} for hop in hops]
        with app_running(bundle) as app, httpx.Client(base_url=app.url, timeout=20) as client:
            assert client.get("/info").json()["preprocessing"]["jpeg_scale"] == jpeg_scale
            expected.append(scores(client, photo.read_bytes()))
        assert max(furthest(answer, expected[0]) for answer in expected) < 1e-5
        found[jpeg_scale] = pixels.astype(int), expected[0]
    assert 0 < np.abs(found["reduced"][0] - found["full"][0]).mean() < 1
    assert furthest(found["reduced"][1], found["full"][1]) > 2e-5
