"""The pretrained model that ships: small, true to its card, and usable by its name everywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lipsformer import load_checkpoint, load_predictor
from lipsformer.checkpoints.pretrained import PRETRAINED, resolve_model
from lipsformer.export import cached_bundle
from lipsformer.model.variants import make_config
from tests.support.http.server import serving
from tests.support.trained import Trained

NAME = "lipsformer_cifar10"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def test_is_small_trained_and_true_to_its_card() -> None:
    path = PRETRAINED[NAME]
    assert path.stat().st_size <= 12_000_000
    checkpoint = load_checkpoint(NAME)
    assert checkpoint.classes == CLASSES
    assert checkpoint.config == make_config("lipsformer_nano", num_classes=10)
    assert checkpoint.temperature != 1
    assert checkpoint.metrics["dataset"] == "cifar10"
    assert checkpoint.metrics["top1"] >= 0.85
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert f"**{checkpoint.metrics['top1']:.2%}**" in card
    for picture in re.findall(r"!\[[^]]*]\(([^)]+)\)", card):
        assert (path.parent / picture).is_file()


def test_a_file_of_that_name_goes_first(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_model(NAME) == PRETRAINED[NAME]
    Path(NAME).symlink_to(trained.bundle)
    assert load_predictor(NAME).classes == trained.classes


@pytest.fixture(scope="module")
def served(samples: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Answers of a server that was started by the model's name; its export stays in the cache."""
    root = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIPSFORMER_CACHE", str(root / "cache"))
        with serving(NAME, root / "server.log") as (url, _):
            info = httpx.get(f"{url}/info").json()
            answer = httpx.post(f"{url}/classify", files={"image": samples[0].read_bytes()}, timeout=30).json()
        yield {"info": info, "answer": answer, "log": (root / "server.log").read_text()}


@pytest.mark.slow
def test_answers_alike_as_checkpoint_and_as_bundle(samples: list[Path], served: dict[str, Any]) -> None:
    checkpoint, bundle = load_predictor(NAME), load_predictor(cached_bundle(PRETRAINED[NAME]))
    pixels = np.stack([checkpoint.prepare(sample) for sample in samples])
    np.testing.assert_allclose(
        bundle.runtime.infer(pixels).logits, checkpoint.runtime.infer(pixels).logits, rtol=0, atol=1e-4
    )


@pytest.mark.slow
def test_is_exported_once_and_served_by_its_name(served: dict[str, Any]) -> None:
    assert tuple(served["info"]["classes"]) == CLASSES
    assert {p["label"] for p in served["answer"]["predictions"]} < set(CLASSES)
    assert "exporting lipsformer_cifar10" in served["log"]
    bundle = cached_bundle(PRETRAINED[NAME])  # which returns the server's
    assert [bundle] == list(bundle.parent.iterdir())
    manifest = bundle / "manifest.json"
    before = manifest.stat().st_mtime_ns
    assert cached_bundle(PRETRAINED[NAME]) == bundle
    assert manifest.stat().st_mtime_ns == before
    assert json.loads(manifest.read_text())["metrics"]["dataset"] == "cifar10"
