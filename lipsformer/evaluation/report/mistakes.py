"""A contact sheet of the worst mistakes: each image as the network saw it, its class, and the predicted class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle

from lipsformer.datasets import Split
from lipsformer.evaluation.predictions import Predictions
from lipsformer.images.preprocessing import Preprocessing
from lipsformer.system.errors import InputError
from lipsformer.system.plotting import ACCENT, FAINT, INK, SECONDARY, save_figure

from .text import NAMES_STYLE, any_script, fit, inches

__all__ = ["plot_mistakes"]

MOST = 24
COLUMNS, FEWEST_COLUMNS = 6, 4  # the heading needs width
PHOTO, GAP, MARGIN, HEADING, CAPTION = 1.8, 0.2, 0.3, 0.85, 0.72  # inches


def plot_mistakes(
    path: Path,
    predictions: Predictions,
    split: Split,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    title: str,
) -> None:
    """Draw up to 24 mistakes, those with the highest loss, into the PNG file `path`; without any it says so.

    `predictions` belong to the images of `split`, in order.
    """
    with mpl.rc_context(NAMES_STYLE), any_script():
        worst = predictions.worst(MOST).tolist()
        sheet = Sheet(len(worst))
        mistakes = int((predictions.counted & ~predictions.correct).sum())
        sheet.head(
            _heading(len(worst), mistakes),
            f"{title}: top-1 {predictions.top1:.1%} on {predictions.images:,} images. "
            "Below each photo: its class, then → the predicted class and its probability.",
        )
        if not worst:
            sheet.say("Every image was classified correctly.")
        for place, position in enumerate(worst):
            sheet.photo(place, split, position, preprocessing)
            sheet.caption(
                place,
                true=classes[predictions.labels[position]],
                predicted=classes[predictions.predicted[position]],
                confidence=predictions.confidence[position],
                file=split.where(position).replace("\\", "/").rpartition("/")[2],
            )
        save_figure(sheet.figure, path)


def _heading(shown: int, mistakes: int) -> str:
    if not mistakes:
        return "No mistakes"
    if shown == mistakes:
        return "The only mistake" if mistakes == 1 else f"All {mistakes} mistakes, worst first"
    return f"The {shown} worst of {mistakes:,} mistakes"


class Sheet:
    """A figure with room for `tiles` images in rows, each with three lines of text below it. Lengths are in inches."""

    def __init__(self, tiles: int) -> None:
        self.columns = max(FEWEST_COLUMNS, min(COLUMNS, tiles))
        rows = -(-tiles // self.columns)
        self.width = 2 * MARGIN + self.columns * (PHOTO + GAP) - GAP
        self.height = HEADING + MARGIN + (rows * (PHOTO + CAPTION + GAP) - GAP if rows else 0.6)
        self.figure = Figure(figsize=(self.width, self.height))

    def head(self, heading: str, subtitle: str) -> None:
        """Write two lines above the images."""
        room = self.width - 2 * MARGIN
        self._text(MARGIN, 0.4, heading, FontProperties(size=15, weight="bold"), INK, room)
        self._text(MARGIN, 0.65, subtitle, FontProperties(size=10), INK, room)

    def say(self, text: str) -> None:
        """Write a line where the images would be."""
        self._text(MARGIN, HEADING + 0.35, text, FontProperties(size=12), SECONDARY, self.width - 2 * MARGIN)

    def photo(self, place: int, split: Split, position: int, preprocessing: Preprocessing) -> None:
        """Show image `position` of `split` at tile `place`, or a blank if it can no longer be read."""
        left, top = self._corner(place)
        axes = self.figure.add_axes(
            (
                left / self.width,
                1 - (top + PHOTO) / self.height,
                PHOTO / self.width,
                PHOTO / self.height,
            )
        )
        axes.set_axis_off()
        try:
            axes.imshow(preprocessing.read(split.encoded(position)))
        except InputError:
            axes.add_patch(Rectangle((0, 0), 1, 1, color=FAINT))
            axes.text(0.5, 0.5, "cannot be read now", ha="center", va="center", color=INK, fontsize=9)

    def caption(self, place: int, *, true: str, predicted: str, confidence: float, file: str) -> None:
        """Write the true class, the predicted class and the file name below tile `place`."""
        left, top = self._corner(place)
        top += PHOTO
        plain, bold, small = FontProperties(size=9), FontProperties(size=9, weight="bold"), FontProperties(size=7)
        arrow, percent = "→ ", f"  {confidence:.0%}"
        name = fit(predicted, plain, PHOTO - inches(arrow + percent, plain))
        self._text(left, top + 0.19, true, bold, INK, PHOTO)
        self._text(left, top + 0.37, arrow + name + percent, plain, ACCENT, PHOTO)
        self._text(left, top + 0.53, file, small, SECONDARY, PHOTO)

    def _corner(self, place: int) -> tuple[float, float]:
        row, column = divmod(place, self.columns)
        return MARGIN + column * (PHOTO + GAP), HEADING + row * (PHOTO + CAPTION + GAP)

    def _text(self, left: float, top: float, text: str, font: FontProperties, color: str, room: float) -> None:
        self.figure.text(
            left / self.width, 1 - top / self.height, fit(text, font, room), fontproperties=font, color=color
        )
