"""Beyond a number of rows an index finds the nearest ones: those of brute force, and never those of another table."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from lipsformer.evaluation import similar_index
from lipsformer.evaluation.similar import FeatureTable
from lipsformer.evaluation.similar_index import find_nearest
from lipsformer.system.errors import InputError
from tests.evaluation.test_similar import written

GENERATOR = np.random.default_rng(0)
CENTERS = GENERATOR.normal(size=(40, 16)) * 1e6  # more than float16 holds


def features(count: int) -> list[np.ndarray | None]:
    """Features around some centers, as those of a trained network; one is zero, and one image has none."""
    found: list[np.ndarray | None] = [
        *(CENTERS[GENERATOR.integers(40, size=count)] + GENERATOR.normal(size=(count, 16)) * 2e5).astype(np.float32)
    ]
    found[5], found[50] = np.zeros(16, np.float32), None
    return found


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The indexes that were built, for tables of more than a thousand rows."""
    found: list[Path] = []
    real = similar_index._build
    monkeypatch.setattr(similar_index, "EXACT_ROWS", 1000)
    monkeypatch.setattr(
        similar_index, "_build", lambda module, path, table: found.append(path) or real(module, path, table)
    )
    return found


@pytest.mark.parametrize("name", ["rows.parquet", "rows"])
def test_the_index_finds_what_brute_force_finds(name: str, tmp_path: Path, builds: list[Path]) -> None:
    table = FeatureTable(written(tmp_path / name, features(3000), 16))
    queries = (CENTERS[:20] + GENERATOR.normal(size=(20, 16)) * 2e5).astype(np.float32)
    agreed = 0
    for query in queries:
        expected, found = table.nearest(query, 10), find_nearest(table, query, 10, exact=False)
        assert [one.distance for one in found] == sorted(one.distance for one in found)
        agreed += len({one.name for one in expected} & {one.name for one in found})
    assert agreed >= 195
    assert set(found) <= set(table.nearest(query, 100))  # the distances are exact
    with pytest.raises(InputError, match="has 16 features for each image, the model 3"):
        find_nearest(table, np.ones(3, np.float32), 10, exact=False)
    assert builds == [path for path in tmp_path.iterdir() if path.suffix == ".usearch"]
    find_nearest(FeatureTable(table.path), queries[0], 10, exact=True)
    assert len(builds) == 1


def test_rows_after_many_copies_of_one_image_are_found(tmp_path: Path, builds: list[Path]) -> None:
    """usearch 2.26.6 loses them without noise: findings/usearch_loses_the_rows_after_many_copies_of_one_vector.sh."""
    photos = [*GENERATOR.normal(size=(2000, 16)).astype(np.float32)]
    table = FeatureTable(written(tmp_path / "rows.parquet", [photos[-1]] * 500 + photos, 16))
    found = [find_nearest(table, photo, 1, exact=False) == table.nearest(photo, 1) for photo in photos[:100]]
    assert sum(found) >= 98  # 83 without noise
    (photo,) = find_nearest(table, photos[-1], 1, exact=False)
    assert photo.distance == pytest.approx(0, abs=1e-6)
    assert len(builds) == 1


def test_an_index_of_other_rows_is_not_used(tmp_path: Path, builds: list[Path]) -> None:
    path = tmp_path / "rows.parquet"
    for turn in range(1, 3):
        path.unlink(missing_ok=True)
        table, query = FeatureTable(written(path, features(1100), 16)), CENTERS[turn].astype(np.float32)
        assert find_nearest(table, query, 3, exact=False) == table.nearest(query, 3)
        assert len(builds) == turn
    assert [one for one in tmp_path.iterdir() if one != path] == [builds[1]]  # the old one is gone
    content = builds[1].read_bytes()
    for damaged in (b"", content[:100], content[:-1], b"x" * 5000):
        builds[-1].write_bytes(damaged)
        assert find_nearest(table, query, 3, exact=False) == table.nearest(query, 3)
    assert len(builds) == 6
    written(tmp_path / "small.parquet", features(1000), 16)
    find_nearest(FeatureTable(tmp_path / "small.parquet"), query, 3, exact=False)
    assert len(builds) == 6


def test_without_usearch_all_rows_are_compared(
    tmp_path: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    table, query = FeatureTable(written(tmp_path / "rows.parquet", features(1100), 16)), CENTERS[0].astype(np.float32)
    assert find_nearest(table, query, 3, exact=False) == table.nearest(query, 3)
    assert "all 1,100 rows are compared; pip install 'lipsformer[search]' for an index" in capsys.readouterr().err
    assert builds == []
