"""A plot of how far scores can be trusted: a reliability diagram, and the error among accepted answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lipsformer.evaluation.calibration.risk_coverage import area_under_risk_coverage, risk_coverage
from lipsformer.evaluation.predictions import CALIBRATION_BINS, Predictions, confidence_bins
from lipsformer.system.plotting import ACCENT, FAINT, INK, PRIMARY, SECONDARY, save_figure

from .text import NAMES_STYLE, any_script, elide

if TYPE_CHECKING:
    from lipsformer.evaluation.evaluate import Evaluation

__all__ = ["CALIBRATION", "plot_calibration"]

CALIBRATION = "calibration.png"
FEWEST = 0.002  # share of the images below which a bin is left out: its accuracy is chance
TITLE_LENGTH = 90


def plot_calibration(path: Path, found: Evaluation, title: str) -> None:
    """Draw accuracy against score, and error against coverage, into the PNG file `path`."""
    with mpl.rc_context(NAMES_STYLE), any_script():
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_reliability(left, found)
        _draw_risk(right, found)
        figure.suptitle(elide(title, TITLE_LENGTH), x=0.01, ha="left", fontsize=12, fontweight="bold")
        save_figure(figure, path)


def _draw_reliability(axes: Axes, found: Evaluation) -> None:
    axes.plot([0, 1], [0, 1], color=SECONDARY, linewidth=1, linestyle="--")
    if found.uncalibrated is not None:
        error = found.uncalibrated.calibration_error()
        _draw_bins(axes, found.uncalibrated, SECONDARY, f"without the temperature: error {error:.1%}")
    _draw_bins(axes, found.predictions, PRIMARY, f"as answered: error {found.predictions.calibration_error():.1%}")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="score of the best class", ylabel="share classified correctly")
    axes.set_title("Does the score say how often it is right?", fontsize=11)
    axes.legend(loc="lower right")


def _draw_bins(axes: Axes, predictions: Predictions, color: str, label: str) -> None:
    """A marker for each bin of scores that has enough images, its area in proportion to their number."""
    scores, correct = predictions.confidence[predictions.counted], predictions.correct[predictions.counted]
    place = confidence_bins(scores, CALIBRATION_BINS)
    images = np.bincount(place, minlength=CALIBRATION_BINS)
    filled = images > FEWEST * images.sum()
    mean_score, accuracy = (
        np.bincount(place, weights=values, minlength=CALIBRATION_BINS)[filled] / images[filled]
        for values in (scores, correct)
    )
    axes.plot(mean_score, accuracy, color=color, linewidth=1.2, label=label)
    axes.scatter(mean_score, accuracy, s=8 + 220 * images[filled] / images.sum(), color=color, alpha=0.7, linewidths=0)


def _draw_risk(axes: Axes, found: Evaluation) -> None:
    predictions = found.predictions
    scores, correct = predictions.confidence[predictions.counted], predictions.correct[predictions.counted]
    coverage, error = risk_coverage(scores, correct)
    area = area_under_risk_coverage(scores, correct)
    axes.plot(coverage, error, color=PRIMARY, linewidth=1.5, label=f"by score: mean error {area:.1%}")
    axes.axhline(1 - predictions.top1, color=FAINT, linewidth=1)
    counts = found.acceptance_counts()
    if counts is not None and counts["accepted"]:
        accepted, wrong = counts["accepted"], counts["wrong"]
        shares = accepted / predictions.images, wrong / accepted
        label = f"accepted: {shares[0]:.0%}, of which {shares[1]:.1%} wrong"
        axes.scatter([shares[0]], [shares[1]], s=45, color=ACCENT, zorder=3, label=label)
    axes.set(xlim=(0, 1), ylim=(0, None))
    axes.set(xlabel="share of the answers that is accepted", ylabel="share of these that is wrong")
    axes.set_title("What does it cost to accept fewer answers?", fontsize=11)
    axes.legend(loc="upper left", labelcolor=INK)
