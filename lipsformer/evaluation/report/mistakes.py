"""A contact sheet of the worst mistakes: each image as the network saw it, its class, and the predicted class.

If the model has heat maps, one is next to each image: what spoke for the predicted class.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

from lipsformer.datasets import Split
from lipsformer.evaluation.heat_maps.overlay import overlay
from lipsformer.evaluation.predictions import Predictions
from lipsformer.images.preprocessing import Pixels, Preprocessing
from lipsformer.inference.heat_map import Explainer
from lipsformer.system.errors import InputError
from lipsformer.system.plotting import save_figure

from .sheet import Sheet
from .text import NAMES_STYLE, any_script

__all__ = ["plot_mistakes"]

MOST = 24
COLORS = ". Orange spoke for them, blue against"


def plot_mistakes(
    path: Path,
    predictions: Predictions,
    split: Split,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    title: str,
    explainer: Explainer | None = None,
) -> None:
    """Draw up to 24 mistakes, those with the highest loss, into the PNG file `path`; without any it says so.

    `predictions` belong to the images of `split`, in order.
    """
    with mpl.rc_context(NAMES_STYLE), any_script():
        worst = predictions.worst(MOST).tolist()
        sheet = Sheet(len(worst), photos=1 if explainer is None else 2)
        mistakes = int((predictions.counted & ~predictions.correct).sum())
        sheet.head(
            _heading(len(worst), mistakes) + (COLORS if explainer is not None and worst else ""),
            f"{title}: top-1 {predictions.top1:.1%} on {predictions.images:,} images. "
            "Below each photo: its class, then → the predicted class and its probability.",
        )
        if not worst:
            sheet.say("Every image was classified correctly.")
        for place, position in enumerate(worst):
            sheet.photo(place, *_images(split, position, preprocessing, predictions, explainer))
            sheet.caption(
                place,
                classes[predictions.labels[position]],
                ("→ ", classes[predictions.predicted[position]], f"  {predictions.confidence[position]:.0%}"),
                split.where(position).replace("\\", "/").rpartition("/")[2],
            )
        save_figure(sheet.figure, path)


def _images(
    split: Split, position: int, preprocessing: Preprocessing, predictions: Predictions, explainer: Explainer | None
) -> list[Pixels | None]:
    """The image as the network sees it, None if it can no longer be read, and the overlay of its heat map."""
    try:
        pixels = preprocessing.read(split.encoded(position))
    except InputError:
        return [None]
    if explainer is None:
        return [pixels]
    return [pixels, overlay(pixels, explainer.explain(pixels, int(predictions.predicted[position])))]


def _heading(shown: int, mistakes: int) -> str:
    if not mistakes:
        return "No mistakes"
    if shown == mistakes:
        return "The only mistake" if mistakes == 1 else f"All {mistakes} mistakes, worst first"
    return f"The {shown} worst of {mistakes:,} mistakes"
