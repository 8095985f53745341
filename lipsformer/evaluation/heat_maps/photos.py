"""The `explain` command: heat maps of photos, as overlays and on a contact sheet."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from PIL import Image

from lipsformer.evaluation.report.sheet import Sheet
from lipsformer.evaluation.report.text import NAMES_STYLE, any_script
from lipsformer.images.preprocessing import Pixels, Preprocessing
from lipsformer.inference.bulk.rows import Refusal
from lipsformer.inference.bulk.sources import list_images
from lipsformer.inference.heat_map import Explainer, HeatMap
from lipsformer.inference.predictor import Predictor
from lipsformer.system.errors import InputError, suggest
from lipsformer.system.plotting import save_figure

from .overlay import overlay

__all__ = ["SHEET", "Explained", "class_index", "drawing", "explain_photos"]

SHEET = "sheet.png"
SIDE = 448  # pixels of an overlay, or more if the network sees more
MOST_ON_SHEET = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained:
    """A photo with its heat map: for the class `label`, whose softmax probability is `score`, drawn in `file`."""

    name: str
    label: str
    score: float
    heat_map: HeatMap
    file: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"image": self.name, "label": self.label, "score": self.score, "file": self.file} | (
            self.heat_map.to_dict()
        )


def class_index(predictor: Predictor, label: str) -> int:
    """The index of a class.

    Raises:
        InputError: if the model has no class of this name; the nearest is suggested.
    """
    if label not in predictor.classes:
        raise InputError(f"--class {label}: the model has no such class; {suggest(label, predictor.classes)}")
    return predictor.classes.index(label)


def explain_photos(
    predictor: Predictor, explainer: Explainer, sources: Sequence[str], folder: Path, index: int | None = None
) -> tuple[list[Explained], list[InputError]]:
    """Draw a heat map of each photo into `folder`, and the first 60 on one sheet, `sheet.png`.

    Args:
        predictor: the model.
        explainer: its heat maps.
        sources: photos, folders and more, see `list_images`.
        folder: exists.
        index: the class to explain; by default each photo's best.

    Returns:
        What was drawn, and why the other photos were not.

    Raises:
        InputError: if the sheet cannot be written.
    """
    explained: list[Explained] = []
    tiles: list[tuple[Pixels, Pixels]] = []
    problems: list[InputError] = []
    for image in list_images(sources):
        content = image.read()
        try:
            if isinstance(content, Refusal):
                raise InputError(content.detail)
            pixels = predictor.prepare(content)
        except InputError as error:
            problems.append(InputError(f"{image.name}: {str(error).removeprefix('image: ')}"))
            continue
        answer = predictor.classify(*predictor.runtime.infer(pixels[None]).at(0), len(predictor.classes))
        chosen = next(one for one in answer if index in (None, one.index))
        heat_map = explainer.explain(pixels, chosen.index)
        crop, drawn = drawing(predictor.preprocessing, content, heat_map, max(SIDE, predictor.preprocessing.image_size))
        file = _free_name(folder, image.name)
        Image.fromarray(drawn).save(folder / file)
        if len(tiles) < MOST_ON_SHEET:
            tiles.append((crop, drawn))
        explained.append(
            Explained(name=image.name, label=chosen.label, score=chosen.score, heat_map=heat_map, file=file)
        )
    if explained:
        _plot_sheet(folder / SHEET, explained, tiles)
    return explained, problems


def drawing(preprocessing: Preprocessing, content: bytes, heat_map: HeatMap, side: int) -> tuple[Pixels, Pixels]:
    """The crop that the network sees of an encoded photo, with more pixels, and its overlay: (side, side, 3)."""
    crop = dataclasses.replace(preprocessing, image_size=side).read(content, box=preprocessing.center_box)
    return crop, overlay(crop, heat_map)


def _free_name(folder: Path, name: str) -> str:
    stem = Path(name.replace("\\", "/").rpartition("/")[2]).stem or "photo"
    taken = {SHEET, *(path.name for path in folder.iterdir())}
    names = (f"{stem}{suffix}.png" for suffix in ("", *(f"-{number}" for number in range(2, len(taken) + 2))))
    return next(name for name in names if name not in taken)


def _plot_sheet(path: Path, explained: Sequence[Explained], tiles: Sequence[tuple[Pixels, Pixels]]) -> None:
    stage, (rows, columns) = explained[0].heat_map.stage, explained[0].heat_map.contributions.shape
    with mpl.rc_context(NAMES_STYLE), any_script():
        sheet = Sheet(len(tiles), photos=2)
        sheet.head(
            "Orange spoke for the class, blue against it",
            f"Stage {stage}, {rows} x {columns} tokens. Below each photo: the class, its probability and logit, and "
            "how much of that the map accounts for.",
        )
        for place, (one, pictures) in enumerate(zip(explained, tiles, strict=False)):
            sheet.photo(place, *pictures)
            completeness = one.heat_map.completeness
            share = "" if completeness is None else f", map {completeness:.0%}"
            sheet.caption(
                place, one.label, (f"{one.score:.0%}, logit {one.heat_map.logit:.1f}{share}", "", ""), one.name
            )
        save_figure(sheet.figure, path)
