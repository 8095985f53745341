"""curves.png of a probe."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from matplotlib.figure import Figure

from lipsformer.train.probe import curves
from lipsformer.train.probe.penalty import PathPoint


def test_penalties_are_labeled_as_numbers(tmp_path: Path) -> None:
    """Names of classes and folders switch formulas off, and matplotlib writes powers of ten as formulas."""
    points = [
        PathPoint(
            penalty=10.0**-power,
            train_loss=1.0,
            train_top1=1.0,
            held_out_loss=1.0 + power,
            held_out_top1=0.5,
            iterations=1,
            converged=True,
            seconds=0.0,
        )
        for power in range(4)
    ]
    drawn: list[list[str]] = []

    def save(figure: Figure, path: Path) -> None:
        figure.savefig(path)
        drawn.extend([label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes)

    with mock.patch.object(curves, "save_figure", save):
        curves.plot_path(tmp_path / "curves.png", points, "model on $PHOTOS", "val")
    assert len(drawn) == 2
    for labels in drawn:
        assert {"1", "0.1", "0.01", "0.001"} <= set(labels)
