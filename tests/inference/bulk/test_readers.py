"""DuckDB and pandas read the rows of a bulk prediction, features too."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from lipsformer import load_predictor
from lipsformer.images.samples import SAMPLES
from tests.support.bulk import bulk
from tests.support.trained import Trained

PHOTOS = sorted(SAMPLES.glob("*.jpg"))[:4]
DOCUMENTATION = Path(__file__).parents[3] / "docs" / "bulk.md"


@pytest.fixture
def rows(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray | None]:
    """The features in rows.parquet of the current folder; its last row has none."""
    monkeypatch.chdir(tmp_path)
    bulk(load_predictor(trained.bundle), Path("rows.parquet"), *PHOTOS, "none.jpg", features=True)
    column = pq.read_table("rows.parquet").column("features").to_pylist()
    return [None if one is None else np.array(one, np.float32) for one in column]


def test_pandas_reads_them(rows: list[np.ndarray | None]) -> None:
    table = pd.read_parquet("rows.parquet")
    assert table["name"].tolist() == [*map(str, PHOTOS), "none.jpg"]
    assert table["status"].tolist() == ["ok"] * 4 + ["missing"]
    assert table["features"].iloc[-1] is None
    found = np.stack(table.loc[table["status"] == "ok", "features"])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.stack(rows[:-1]))
    assert [top[0]["label"] for top in table["top_k"][:4]] == table["label"].tolist()[:4]


def test_duckdb_reads_them(rows: list[np.ndarray | None]) -> None:
    types = {name: kind for name, kind, *_ in duckdb.sql("DESCRIBE SELECT * FROM 'rows.parquet'").fetchall()}
    assert types["features"] == "FLOAT[]"
    assert types["top_k"] == 'STRUCT("label" VARCHAR, "index" INTEGER, score DOUBLE)[]'
    found = duckdb.sql("SELECT features FROM 'rows.parquet'").fetchall()
    assert found[-1] == (None,)
    np.testing.assert_array_equal(np.array([one for (one,) in found[:-1]], np.float32), np.stack(rows[:-1]))


def test_the_query_of_the_documentation(rows: list[np.ndarray | None]) -> None:
    (query,) = re.findall(r"    SELECT .*?(?=\n\n)", DOCUMENTATION.read_text(), re.DOTALL)
    found = duckdb.sql(query.replace("768", str(len(rows[0]))).replace("photos/a.jpg", str(PHOTOS[2]))).fetchall()
    unit = np.array([one / np.linalg.norm(one) for one in rows[:-1]], np.float64)
    distances = 1 - unit @ unit[2]
    assert [name for name, _ in found] == [str(PHOTOS[at]) for at in np.argsort(distances)]
    np.testing.assert_allclose([distance for _, distance in found], np.sort(distances), atol=1e-5)
