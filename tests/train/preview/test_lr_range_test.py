"""The learning-rate range test: its conclusions from a curve, and a run folder that can still be trained in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipsformer import InputError
from lipsformer.system import console
from lipsformer.train import run_lr_range_test
from lipsformer.train.preview.lr_range_test import conclude, smoothed
from tests.support.tiny_training import TINY, make_photos, one_thread, train_tiny


def test_the_rate_of_the_steepest_fall_is_suggested() -> None:
    rates = np.geomspace(1e-6, 1.0, 100)
    fall = 2.3 - 2.0 / (1 + np.exp(-4 * np.log(rates / 1e-3)))  # steepest at 1e-3
    losses = fall + np.where(rates > 3e-2, (np.log(rates / 3e-2)) ** 2, 0.0)
    report = conclude(rates.tolist(), losses.tolist())
    assert report["suggested"] == pytest.approx(1e-3, rel=2.0)  # smoothing lags a little
    assert report["suggested"] < report["lowest_loss_at"] == pytest.approx(3e-2, rel=1.0)
    assert report["diverged_at"] is None
    halved = conclude(rates.tolist(), losses.tolist(), scale=0.5)
    assert halved["suggested"] == pytest.approx(2 * report["suggested"], rel=0.1)
    with pytest.raises(InputError, match="not finite after 9 steps"):
        conclude(rates[:9].tolist(), losses[:9].tolist())


def test_smoothing_begins_without_a_bias() -> None:
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)
    assert smoothed([1.0, 0.0])[1] == pytest.approx(0.2 * 0.8 / (1 - 0.8**2))


def test_it_trains_nothing_and_a_training_may_follow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, output = make_photos(tmp_path / "photos"), tmp_path / "run"
    with one_thread(), console.quiet():
        report = run_lr_range_test(photos, output=output, overrides=TINY, epochs=5)
    assert capsys.readouterr() == ("", "")
    assert 1e-6 < report["suggested"] < 1.0
    assert json.loads((output / "learning_rate.json").read_text()) == report
    with Image.open(output / "learning_rate.png") as image:
        assert image.width > 500
    assert {path.name for path in output.iterdir()} == {"learning_rate.json", "learning_rate.png"}
    train_tiny(photos, output, epochs=1)
    with pytest.raises(InputError, match="holds a training"):
        run_lr_range_test(photos, output=output, overrides=TINY, epochs=1)
    with pytest.raises(InputError, match="6 steps are too few"):
        run_lr_range_test(photos, output=tmp_path / "other", overrides=TINY, epochs=2)
