"""Bulk predictions in the tests' own process, and what they wrote."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lipsformer import load_predictor
from lipsformer.inference.bulk import BulkOptions, pipeline, predict_to_file
from lipsformer.inference.predictor import Predictor
from lipsformer.inference.runtimes import Outputs, Pixels

__all__ = ["Watched", "bulk", "forbid_repetition", "json_rows", "watched"]


class Watched:
    """A runtime that counts its batches and images, and calls `before` with the number of each batch."""

    def __init__(self, runtime: Any, before: Callable[[int], None] = lambda _: None) -> None:
        self.runtime, self.before = runtime, before
        self.provider, self.channels = runtime.provider, runtime.channels
        self.batches = self.images = 0

    def infer(self, pixels: Pixels) -> Outputs:
        self.batches += 1
        self.before(self.batches)
        self.images += len(pixels)
        outputs: Outputs = self.runtime.infer(pixels)
        return outputs


def watched(bundle: Path, before: Callable[[int], None] = lambda _: None) -> tuple[Predictor, Watched]:
    """A predictor with blocks of 4 images, and its runtime."""
    predictor = load_predictor(bundle, threads=1)
    runtime = Watched(predictor.runtime, before)
    return dataclasses.replace(predictor, runtime=runtime, max_batch=4), runtime


def bulk(predictor: Predictor, output: Path | str, *sources: object, decoders: int = 1, **options: Any) -> bytes:
    """Predicts the sources into a file and returns its content; b"" if it is none of this machine."""
    asked = BulkOptions(model="bundle", sources=tuple(map(str, sources)), **options)
    with pytest.MonkeyPatch.context() as patch:  # processes take long to start
        patch.setattr(pipeline, "cores", lambda: decoders)
        predict_to_file(predictor, asked, str(output))
    return Path(output).read_bytes() if Path(output).is_file() else b""


def json_rows(content: bytes) -> list[dict[str, Any]]:
    """The rows of JSON lines."""
    return [json.loads(line) for line in content.splitlines()]


def forbid_repetition(state: Path) -> int:
    """Makes any second result of an image an error in the killed process's state; returns how many have their first."""
    if not state.exists():
        return 0
    database = sqlite3.connect(state)
    try:
        if not database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'images'").fetchone()[0]:
            return 0
        database.execute(
            "CREATE TRIGGER IF NOT EXISTS once BEFORE UPDATE OF status ON images WHEN OLD.status NOT NULL "
            "BEGIN SELECT RAISE(ABORT, 'computed twice'); END"
        )
        found: int = database.execute("SELECT count(*) FROM images WHERE status NOT NULL").fetchone()[0]
        return found
    finally:
        database.close()
