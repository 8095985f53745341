"""`lipsformer calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Classes, ClassesFrom, Column, Data, Device, Fold, Group, ImageRoot, Json, Model, Quiet, print_json

__all__ = ["calibrate_model"]


def calibrate_model(
    model: Model,
    dataset: Data,
    output: Annotated[Path, typer.Option(help="Checkpoint (.safetensors) to write.")],
    max_error: Annotated[
        float | None,
        typer.Option(
            help="Accept only answers of which at most this share is wrong, such as 0.05.", show_default=False
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Probability that --max-error holds for new photos.")] = 0.95,
    outliers: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Photos that show none of the classes, to choose the distance with."),
    ] = None,
    val_split: Annotated[
        str | None,
        typer.Option(help="Split to calibrate on; by default what a training validates on: val, test, or held out."),
    ] = None,
    device: Device = "auto",
    classes_from: ClassesFrom = None,
    group: Group = None,
    fold: Fold = None,
    column: Column = None,
    image_root: ImageRoot = None,
    classes: Classes = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a checkpoint's scores agree with its accuracy, and with --max-error let it say "not sure"."""
    from lipsformer.checkpoints.checkpoint import read_header
    from lipsformer.datasets import DatasetOptions, open_dataset, open_unlabeled, relabeled, resolve_dataset
    from lipsformer.evaluation.calibration.calibrate import AcceptanceGoal, calibrate
    from lipsformer.system.errors import InputError

    if outliers is not None and max_error is None:
        raise InputError("--outliers needs --max-error: they choose the distance beyond which no answer is accepted")
    known = read_header(model).classes
    data = resolve_dataset(dataset)
    options = DatasetOptions(
        classes_from=classes_from,
        val_split=val_split,
        group=group,
        fold=fold,
        columns=DatasetOptions.parse_columns(column or ()),
        image_root=image_root,
        classes=classes,
    )
    found = open_dataset(data, options)
    found.left_out.report(dataset)
    goal = None
    if max_error is not None:
        others = None
        if outliers is not None:
            others = open_unlabeled(resolve_dataset(outliers))
            others.left_out.report(outliers)
        train = relabeled(found.train, known)
        goal = AcceptanceGoal(max_error=max_error, confidence=confidence, train=train, outliers=others)
    result = calibrate(model, output, relabeled(found.validation, known), goal, device=device)
    if as_json:
        print_json(result.to_dict())
    else:
        typer.echo(f"{result.to_text()}\nwrote {output}; next: lipsformer export {output}")
