"""`lipsformer eval`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from .options import Data, Device, Json, Model, Precision, Quiet, print_json

__all__ = ["evaluate_model"]


def evaluate_model(
    model: Model,
    dataset: Data,
    split: Annotated[str | None, typer.Option(help="Split to evaluate; by default test, else val.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for a report: per-class table, confusion matrix, worst mistakes."),
    ] = None,
    device: Device = "auto",
    precision: Precision = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model's accuracy on labeled images, overall and per class."""
    from lipsformer.datasets import open_labeled, resolve_dataset
    from lipsformer.evaluation.evaluate import evaluate, format_evaluation
    from lipsformer.inference.predictor import load_predictor
    from lipsformer.system.atomic import atomic_directory

    predictor = load_predictor(model, device, precision)
    images = open_labeled(resolve_dataset(dataset), predictor.classes, split)
    with contextlib.nullcontext() if output is None else atomic_directory(output) as folder:
        result = evaluate(predictor, images)
        if folder is not None:
            from lipsformer.evaluation.report.write import write_report

            title = f"{model} on {Path(dataset).name}"
            write_report(folder, result.predictions, images, result.classes, predictor.preprocessing, title)
    if as_json:
        print_json(result.to_dict())
        return
    typer.echo(format_evaluation(result))
    if output is not None:
        typer.echo(f"\nReport: {output}")
