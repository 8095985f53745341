"""`lipsformer predict`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lipsformer.system.errors import InputError, LipsFormerError

from .options import Device, Json, Model, Precision, print_json

if TYPE_CHECKING:
    from lipsformer.inference.predictor import Classification

__all__ = ["predict"]


def predict(
    model: Model,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files, and folders to search for images.")
    ],
    top_k: Annotated[int, typer.Option(help="Classes to show for each image.")] = 5,
    device: Device = "auto",
    precision: Precision = None,
    as_json: Json = False,
) -> None:
    """Classify images. Those that cannot be read are named on stderr, and the exit status is 1."""
    from lipsformer.inference.predictor import load_predictor
    from lipsformer.system.console import printable, say

    predictor = load_predictor(model, device, precision)
    files, problems = _expand(images)
    entries, rejected, total = [], 0, len(files) + len(problems)
    try:
        for path, answer in itertools.chain(problems, zip(files, predictor.predict_each(files, top_k), strict=True)):
            if as_json:
                entries.append(_entry(path, answer))
            elif not isinstance(answer, InputError):
                _show(path, answer)
            if isinstance(answer, InputError):
                if total == 1:
                    raise answer
                rejected += 1
                say(printable(" ".join(str(answer).split())), always=True)
    finally:
        if entries:
            print_json(entries)
    if rejected == total:
        raise InputError(f"none of the {total:,} images can be classified; the lines above say why")
    if rejected:
        raise LipsFormerError(f"{rejected:,} of {total:,} images cannot be classified; the lines above say why")


def _expand(paths: Sequence[Path]) -> tuple[list[Path], list[tuple[Path, InputError]]]:
    """The image files that `paths` are or hold, and the folders that hold none or cannot be read."""
    from lipsformer.datasets import LeftOut, find_images

    files: list[Path] = []
    problems = []
    for path in paths:
        left_out = LeftOut()
        try:
            found = find_images(path, left_out) if path.is_dir() else [path]
            left_out.report(path)
            if not found:
                raise InputError(f"{path}: no images in this folder; give image files, or a folder that holds some")
            files += found
        except InputError as error:
            problems.append((path, error))
    return files, problems


def _entry(path: Path, answer: Classification | InputError) -> dict[str, Any]:
    if isinstance(answer, InputError):
        return {"image": str(path), "problem": str(answer)}
    return {"image": str(path), **answer.to_dict()}


def _show(path: Path, answer: Classification) -> None:
    from lipsformer.system.console import printable

    lines = [f"  {prediction.score:7.2%}  {printable(prediction.label)}" for prediction in answer.predictions]
    doubt = {
        None: "",
        "low_score": "  not sure: the best score is too low",
        "unfamiliar": "  not sure: unlike the training photos",
    }
    typer.echo("\n".join([printable(str(path)) + doubt[answer.reason], *lines]))
