"""A contact sheet: images in rows, each with a caption."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle

from lipsformer.images.preprocessing import Pixels
from lipsformer.system.plotting import ACCENT, FAINT, INK, SECONDARY

from .text import fit, inches

__all__ = ["Sheet"]

COLUMNS, FEWEST_COLUMNS = 6, 4  # the heading needs width
PHOTO, GAP, MARGIN, HEADING, CAPTION = 1.8, 0.2, 0.3, 0.85, 0.72  # inches
TOUCHING = 0.04  # inches between the images of a tile


class Sheet:
    """A figure of `tiles` in rows, each with three lines of text below it. Lengths are in inches.

    A tile has room for `photos` images next to each other.
    """

    def __init__(self, tiles: int, photos: int = 1) -> None:
        self.columns = max(FEWEST_COLUMNS // photos, min(COLUMNS // photos, tiles))
        self.tile = photos * (PHOTO + TOUCHING) - TOUCHING
        rows = -(-tiles // self.columns)
        self.width = 2 * MARGIN + self.columns * (self.tile + GAP) - GAP
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

    def photo(self, place: int, *images: Pixels | None) -> None:
        """Show images (S, S, 3) in tile `place`, or a blank for one that can no longer be read."""
        left, top = self._corner(place)
        for number, pixels in enumerate(images):
            axes = self.figure.add_axes(
                (
                    (left + number * (PHOTO + TOUCHING)) / self.width,
                    1 - (top + PHOTO) / self.height,
                    PHOTO / self.width,
                    PHOTO / self.height,
                )
            )
            axes.set_axis_off()
            if pixels is not None:
                axes.imshow(pixels)
            else:
                axes.add_patch(Rectangle((0, 0), 1, 1, color=FAINT))
                axes.text(0.5, 0.5, "cannot be read now", ha="center", va="center", color=INK, fontsize=9)

    def caption(self, place: int, title: str, line: tuple[str, str, str], file: str) -> None:
        """Write three lines below tile `place`: a bold one, one whose middle is shortened to fit, and a small one."""
        left, top = self._corner(place)
        top += PHOTO
        plain, bold, small = FontProperties(size=9), FontProperties(size=9, weight="bold"), FontProperties(size=7)
        before, name, after = line
        name = fit(name, plain, self.tile - inches(before + after, plain))
        self._text(left, top + 0.19, title, bold, INK, self.tile)
        self._text(left, top + 0.37, before + name + after, plain, ACCENT, self.tile)
        self._text(left, top + 0.53, file, small, SECONDARY, self.tile)

    def _corner(self, place: int) -> tuple[float, float]:
        row, column = divmod(place, self.columns)
        return MARGIN + column * (self.tile + GAP), HEADING + row * (PHOTO + CAPTION + GAP)

    def _text(self, left: float, top: float, text: str, font: FontProperties, color: str, room: float) -> None:
        self.figure.text(
            left / self.width, 1 - top / self.height, fit(text, font, room), fontproperties=font, color=color
        )
