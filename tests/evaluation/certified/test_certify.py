"""Certificates hold against attacks, wrong ones are seen, and all who give a radius agree."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lipsformer import load_predictor
from lipsformer.bundle.certificate import Certificate
from lipsformer.bundle.manifest import read_manifest
from lipsformer.checkpoints.certificate import certificate_of
from lipsformer.checkpoints.checkpoint import load_checkpoint
from lipsformer.evaluation.certified.attacks import lead, pgd, random_search
from lipsformer.evaluation.certified.certify import network_of, parse_radii
from lipsformer.export import ExportSettings, export_bundle
from lipsformer.system.errors import InputError
from tests.support.command import Run, run
from tests.support.models.certified import make_certified, make_labeled_photos
from tests.support.tiny_training import one_thread

__all__ = ["run"]  # a fixture


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certified(tmp_path_factory.mktemp("certified") / "model.safetensors", temperature=0.5)


@pytest.fixture(scope="module")
def photos(checkpoint: Path) -> Path:
    return make_labeled_photos(checkpoint.parent / "photos", checkpoint)


FEW = ("--attacked", 6, "--steps", 4, "--queries", 6, "--radii", "1/255,0.5,300")


def test_certified_is_below_attacked_is_below_clean(checkpoint: Path, photos: Path, run: Run, tmp_path: Path) -> None:
    status, out, _ = run("certify", checkpoint, photos, *FEW, "--output", tmp_path / "out", "--json")
    assert status == 0
    found = json.loads(out)
    assert found == json.loads((tmp_path / "out" / "certified.json").read_text())
    assert found["clean"] == 1.0
    assert found["certified"]["1/255"] > 0 == found["certified"]["300"]
    assert found["rows"]["300"]["attacked_pgd"] < 1
    assert found["measured_rounding"] <= found["rounding"] < 1e-3
    assert (tmp_path / "out" / "certified.png").stat().st_size > 1000
    assert "| 1/255" in (tmp_path / "out" / "certified.md").read_text()
    bounds = json.loads(run("lipschitz", checkpoint, "--data", photos, "--images", 1, "--json")[1])
    assert found["lipschitz"] == pytest.approx(10 ** bounds["pixels_to_features"])


def test_a_weight_above_the_cap_is_seen(checkpoint: Path, tmp_path: Path) -> None:
    edited = make_certified(tmp_path / "edited.safetensors", edit=3.0)
    before, after = (certificate_of(load_checkpoint(path)) for path in (checkpoint, edited))
    assert before is not None
    assert after is not None
    assert after.lipschitz == pytest.approx(3 * before.lipschitz)


def test_a_bound_that_is_too_small_fails_the_command(
    checkpoint: Path, photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = certificate_of(load_checkpoint(checkpoint))
    assert right is not None
    wrong = Certificate(lipschitz=right.lipschitz / 1e6, distances=right.distances, error=right.error)
    monkeypatch.setattr("lipsformer.evaluation.certified.certify.certificate_of", lambda _: wrong)
    status, _, error = run("certify", checkpoint, photos, *FEW)
    assert status == 1
    assert "certificates do not hold: radius 300: " in error


def test_a_model_without_certificates_is_refused(
    checkpoint: Path, photos: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert certificate_of(load_checkpoint("lipsformer_cifar10")) is None
    monkeypatch.setattr("lipsformer.evaluation.certified.certify.certificate_of", lambda _: None)
    status, _, error = run("certify", checkpoint, photos)
    assert status == 2
    assert "has no certificates; train with --recipe cifar10_certified" in error


@pytest.mark.parametrize("text", ["", "a", "1/0", "-1", "0", "36/255,,"])
def test_a_bad_radius_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--radii"):
        parse_radii(text)


def test_attacks_stay_in_the_ball_and_lower_the_lead(checkpoint: Path) -> None:
    network = network_of(load_checkpoint(checkpoint), torch.float32)
    images = torch.rand(4, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    labels = network(images).argmax(dim=1)
    radius = torch.tensor([0.1, 0.5, 1.0, 2.0])
    before = lead(network(images), labels)
    gained = []
    for change in (
        pgd(network, images, labels, radius, steps=6, restarts=2),
        random_search(network, images, labels, radius, queries=12),
    ):
        assert (change.flatten(1).norm(dim=1) <= radius * (1 + 1e-5)).all()
        gained.append(before - lead(network(images + change), labels))
        assert (gained[-1] >= 0).all()
        assert float(gained[-1].max()) > 0
    assert (gained[0] >= gained[1]).all()  # gradients are worth more than queries


def test_the_radius_is_the_smallest_over_the_other_classes() -> None:
    certificate = Certificate(lipschitz=2.0, distances=((0.0, 1.0, 4.0), (1.0, 0.0, 1.0), (4.0, 1.0, 0.0)), error=0.5)
    logits = np.array([[5.0, 3.0, 0.0], [1.0, 1.2, 0.0], [np.nan, 0.0, 1.0]])
    radii = certificate.radii(logits)
    assert radii[0] == pytest.approx(min((2 - 0.5) / 2, (5 - 0.5) / 8))
    assert radii[0] < min((2 - 0.5) / 2, (5 - 0.5) / 8)  # outward
    assert radii[1:].tolist() == [0.0, 0.0]


def test_every_way_to_an_answer_gives_a_radius_and_no_export_a_larger_one(
    checkpoint: Path, photos: Path, tmp_path: Path, run: Run
) -> None:
    files = sorted(photos.rglob("*.png"))
    with one_thread():
        own = [answer.certified_radius for answer in load_predictor(checkpoint, "cpu").predict(files)]
        manifest = export_bundle(checkpoint, tmp_path / "bundle", ExportSettings(max_batch=2, parity_images=4))
        exported = load_predictor(tmp_path / "bundle", "cpu").predict(files)
    certificate = certificate_of(load_checkpoint(checkpoint))
    assert manifest.certificate == read_manifest(tmp_path / "bundle").certificate == certificate
    for radius, answer in zip(own, exported, strict=True):
        assert radius is not None
        assert answer.certified_radius is not None
        assert 0.9 * radius - 1e-3 < answer.certified_radius <= radius
        assert answer.to_dict()["certified_radius"] == answer.certified_radius
    assert any(own)
    (answer,) = json.loads(run("predict", checkpoint, files[0], "--json")[1])
    assert answer["certified_radius"] == pytest.approx(own[0])
    assert run("predict", tmp_path / "bundle", photos, "--output", tmp_path / "rows.jsonl")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["name"].rpartition("/")[2]: row["certified_radius"] for row in rows} == pytest.approx(
        {file.name: answer.certified_radius for file, answer in zip(files, exported, strict=True)}
    )


def test_what_the_gate_measures_is_subtracted() -> None:
    certificate = Certificate(lipschitz=1.0, distances=((0.0, 1.0), (1.0, 0.0)), error=0.0)
    logits = np.array([[1.0, 0.0]])
    assert certificate.radii(logits)[0] == pytest.approx(1.0)
    assert certificate.loosened(0.01).radii(logits)[0] == pytest.approx(1 - 4 * 4 * 0.01)
    assert certificate.loosened(1.0).radii(logits)[0] == 0.0
    assert math.isfinite(certificate.loosened(1.0).error)
