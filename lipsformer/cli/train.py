"""`lipsformer train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .options import Classes, ClassesFrom, Column, Data, Device, Fold, Group, ImageRoot, Quiet, print_json

__all__ = ["train"]


def train(
    dataset: Data,
    output: Annotated[Path, typer.Option(help="Run folder to write.")],
    model: Annotated[
        str | None,
        typer.Option(help="Variant or trained model (see `lipsformer models`), or checkpoint. Default: the recipe's."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Packaged recipe or TOML file. Default: `default`, or that of the resumed run.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs. Default: the recipe's.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe setting. Repeatable.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Trained model to distill from: checkpoint, bundle, .onnx file or timm:NAME."),
    ] = None,
    resume: Annotated[
        Literal["auto", "never"], typer.Option(help="Resume the run in the output folder, if there is one.")
    ] = "auto",
    device: Device = "auto",
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="tensorboard|mlflow|wandb|trackio", help="Record the run in this experiment tracker. Repeatable."
        ),
    ] = None,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Run a learning-rate range test instead of a training.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show model, data, and the memory and time of a step; write nothing.")
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print what --dry-run shows as one JSON document.")
    ] = False,
    classes_from: ClassesFrom = None,
    train_split: Annotated[str | None, typer.Option(help="Split to train on. Default: train.")] = None,
    val_split: Annotated[str | None, typer.Option(help="Split to validate on. Default: val, else test.")] = None,
    group: Group = None,
    fold: Fold = None,
    column: Column = None,
    image_root: ImageRoot = None,
    classes: Classes = None,
    quiet: Quiet = False,
) -> None:
    """Train a model. Writes checkpoints, metrics and plots to the run folder."""
    from lipsformer.datasets import DatasetOptions, resolve_dataset
    from lipsformer.system.errors import InputError
    from lipsformer.train import run_lr_range_test, run_training

    options = DatasetOptions(
        classes_from=classes_from,
        train_split=train_split,
        val_split=val_split,
        group=group,
        fold=fold,
        columns=DatasetOptions.parse_columns(column or ()),
        image_root=image_root,
        classes=classes,
    )
    folder = resolve_dataset(dataset)
    choices: dict[str, Any] = {"model": model, "recipe": recipe, "epochs": epochs, "overrides": overrides or ()}
    choices["teacher"] = teacher
    choices["options"] = options if options.to_dict() else None
    if find_lr and dry_run:
        raise InputError("--dry-run: no training and no --find-lr follows; omit one of the two")
    if json_output and not dry_run:
        raise InputError("--json: only --dry-run has a document to print; a training writes metrics.jsonl")
    if dry_run:
        from lipsformer.train import describe_training
        from lipsformer.train.preview.dry_run import report_lines

        found = describe_training(folder, output=output, resume=resume == "auto", device=device, **choices)
        print_json(found) if json_output else typer.echo("\n".join(report_lines(found)))
        return
    if find_lr:
        found = run_lr_range_test(folder, output=output, device=device, **choices)
        typer.echo(
            f"suggested learning rate: {found['suggested']:g} (the loss falls fastest there; it is lowest at "
            f"{found['lowest_loss_at']:g}); see {output / 'learning_rate.png'}"
        )
        return
    run_training(
        folder,
        output=output,
        resume=resume == "auto",
        device=device,
        track=track or (),
        **choices,
    )
