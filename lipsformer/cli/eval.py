"""`lipsformer eval`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Classes,
    ClassesFrom,
    Column,
    Data,
    Device,
    Fold,
    Group,
    ImageRoot,
    Json,
    Model,
    Precision,
    Quiet,
    print_json,
)

__all__ = ["evaluate_model"]


def evaluate_model(
    model: Model,
    dataset: Data,
    split: Annotated[
        str | None,
        typer.Option(
            help="Split to evaluate, or held-out; by default test, else what --fold or --group held out, else val."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for a report: per-class table, confusion matrix, worst mistakes, calibration."),
    ] = None,
    device: Device = "auto",
    precision: Precision = None,
    classes_from: ClassesFrom = None,
    group: Group = None,
    fold: Fold = None,
    column: Column = None,
    image_root: ImageRoot = None,
    classes: Classes = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model's accuracy on labeled images, overall and per class."""
    from lipsformer.datasets import HELD_OUT, DatasetOptions, check_output, open_labeled, resolve_dataset
    from lipsformer.evaluation.evaluate import evaluate, format_evaluation
    from lipsformer.inference.predictor import load_predictor
    from lipsformer.system.atomic import atomic_directory
    from lipsformer.system.extras import require

    if output is not None:
        require("report", what="--output")
    predictor = load_predictor(model, device, precision)
    data = resolve_dataset(dataset)
    if group is not None or fold is not None:
        split = split or HELD_OUT
    elif predictor.metrics.get("dataset") == (data if data.is_dir() else data.parent).resolve().name:
        group, fold = predictor.metrics.get("group"), predictor.metrics.get("fold")  # it is the dataset of the training
    options = DatasetOptions(
        classes_from=classes_from,
        group=group,
        fold=fold,
        columns=DatasetOptions.parse_columns(column or ()),
        image_root=image_root,
        classes=classes,
    )
    check_output(output, data)
    labeled = open_labeled(data, predictor.classes, split, options)
    labeled.left_out.report(dataset)
    with contextlib.nullcontext() if output is None else atomic_directory(output) as folder:
        result = evaluate(predictor, labeled)
        if folder is not None:
            from lipsformer.evaluation.heat_maps.explainer import explainer_of
            from lipsformer.evaluation.report.calibration import CALIBRATION, plot_calibration
            from lipsformer.evaluation.report.write import write_report

            title = f"{model} on {Path(dataset).name}"
            images, explainer = predictor.preprocessing, explainer_of(predictor)
            write_report(folder, result.predictions, labeled, result.classes, images, title, explainer)
            plot_calibration(folder / CALIBRATION, result, title)
    if as_json:
        print_json(result.to_dict())
    else:
        typer.echo(format_evaluation(result))
        if output is not None:
            typer.echo(f"\nReport: {output}")
    result.check_classes()
