"""`lipsformer predict`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Json, Model, Precision, print_json

__all__ = ["predict"]


def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top_k: Annotated[int, typer.Option(help="Classes to show for each image.")] = 5,
    device: Device = "auto",
    precision: Precision = None,
    as_json: Json = False,
) -> None:
    """Classify image files."""
    from lipsformer.inference.predictor import load_predictor

    results = load_predictor(model, device, precision).predict(images, top_k)
    if as_json:
        print_json(
            [
                {"image": str(image), "predictions": [dataclasses.asdict(p) for p in predictions]}
                for image, predictions in zip(images, results, strict=True)
            ]
        )
        return
    for image, predictions in zip(images, results, strict=True):
        typer.echo(image)
        for prediction in predictions:
            typer.echo(f"  {prediction.score:7.2%}  {prediction.label}")
