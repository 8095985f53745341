"""The nearest rows of a bulk prediction are those of a brute-force search, in the command too."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipsformer.evaluation.similar import FeatureTable
from lipsformer.inference.bulk.output import Output
from lipsformer.inference.bulk.rows import Refusal, Row
from lipsformer.system.errors import InputError
from tests.support.command import Run
from tests.support.trained import Trained


def row(name: str, features: np.ndarray | None) -> Row:
    if features is None:
        return Row.refused(name, Refusal("missing", "no such file"))
    top = ({"label": "a", "index": 0, "score": 0.5},)
    return Row(name=name, status="ok", top_k=top, width=1, height=1, features=features.tobytes())


def written(path: Path, features: list[np.ndarray | None], channels: int | None = 8) -> Path:
    rows = (row(f"{index}.jpg", one) for index, one in enumerate(features))
    Output.of(str(path) if path.suffix else f"{path}/").write(rows, features=channels, metadata={"model": "m"})
    return path


@pytest.mark.parametrize("name", ["rows.parquet", "rows"])
def test_the_nearest_are_those_of_brute_force(tmp_path: Path, name: str) -> None:
    generator = np.random.default_rng(0)
    features = list(generator.normal(size=(9000, 8)).astype(np.float32))  # more than two batches
    features[10] = features[8000] = features[4500]
    features[77] = np.zeros(8, np.float32)
    table = FeatureTable(written(tmp_path / name, [*features[:100], None, *features[100:]]))
    query = features[4500] * 3
    unit = np.array(features, np.float64)
    cosines = unit @ query / np.maximum(np.linalg.norm(unit, axis=1), 1e-300) / np.linalg.norm(query.astype(np.float64))
    order = np.argsort(1 - cosines.round(12), kind="stable")[:25]
    found = table.nearest(query, 25)
    assert [neighbor.name for neighbor in found[:3]] == ["10.jpg", "4501.jpg", "8001.jpg"]  # equal: the earlier first
    assert [neighbor.name for neighbor in found] == [f"{index + (index >= 100)}.jpg" for index in order]
    np.testing.assert_allclose([neighbor.distance for neighbor in found], (1 - cosines[order]).clip(0), atol=1e-12)
    everything = table.nearest(query, 10_000)
    assert len(everything) == 9000
    assert next(one.distance for one in everything if one.name == "77.jpg") == 1.0


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    table = FeatureTable(written(tmp_path / "rows.parquet", [np.ones(8, np.float32)]))
    with pytest.raises(InputError, match="has 8 features for each image, the model 7"):
        table.nearest(np.ones(7, np.float32), 1)
    with pytest.raises(InputError, match="--top-k 0: at least 1"):
        table.nearest(np.ones(8, np.float32), 0)
    with pytest.raises(InputError, match="has no features; predict again with --features"):
        FeatureTable(written(tmp_path / "plain.parquet", [np.ones(8, np.float32)], None))
    with pytest.raises(InputError, match="no such Parquet file"):
        FeatureTable(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not Parquet")
    with pytest.raises(InputError, match="not readable Parquet"):
        FeatureTable(tmp_path / "text.parquet")


def test_a_photo_is_found_again(run: Run, trained: Trained, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(12):
        color, noise = generator.integers(0, 256, 3), generator.integers(-40, 40, (32, 32, 3))
        Image.fromarray(np.clip(color + noise, 0, 255).astype(np.uint8)).save(photos / f"{number}.png")
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        shard.add(photos / "3.png", "in the shard.png")
    (photos / "broken.png").write_bytes(b"no image")
    out, sheet = tmp_path / "rows.parquet", tmp_path / "sheet.png"
    status, *_ = run("predict", trained.bundle, photos, tmp_path / "shard.tar", "--output", out, "--features", "-q")
    assert status == 0
    status, text, _ = run("similar", out, photos / "3.png", "--top-k", "3", "--json", "--sheet", sheet)
    found = json.loads(text)["neighbors"]
    assert status == 0
    assert {one["name"] for one in found[:2]} == {str(photos / "3.png"), f"{tmp_path}/shard.tar:in the shard.png"}
    assert found[0]["distance"] == pytest.approx(0, abs=1e-6)
    assert found[2]["distance"] > 1e-5
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert not (np.abs(pixels - (0xD8, 0xDD, 0xE6)).max(axis=2) < 3).any()  # no photo is blank
    status, _, err = run("similar", out, photos / "3.png", "--model", trained.checkpoint)
    assert status == 2
    assert "not the model that" in err
