"""`lipsformer train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lipsformer.system.errors import InputError

from .options import Data, Device

__all__ = ["train"]


def train(
    dataset: Data,
    output: Annotated[Path, typer.Option(help="Run folder to write.")],
    model: Annotated[
        str | None,
        typer.Option(help="Variant, see `lipsformer models`, or checkpoint to start from; by default the recipe's."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Packaged recipe or TOML file; by default `default`, or the resumed run's.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs, instead of the recipe's.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe; repeatable.")
    ] = None,
    resume: Annotated[
        str, typer.Option(metavar="[auto|never]", help="auto: go on with the same run, if the folder holds it.")
    ] = "auto",
    device: Device = "auto",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write events for TensorBoard.")] = False,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Only check how high the learning rate may be; trains nothing.")
    ] = False,
) -> None:
    """Train a model; writes checkpoints, metrics and plots into the run folder."""
    from lipsformer.datasets import resolve_dataset
    from lipsformer.train import run_lr_range_test, run_training

    folder = resolve_dataset(dataset)
    choices: dict[str, Any] = {"model": model, "recipe": recipe, "epochs": epochs, "overrides": overrides or ()}
    if find_lr:
        found = run_lr_range_test(folder, output=output, device=device, **choices)
        typer.echo(
            f"suggested learning rate {found['suggested']:g}, where the loss falls fastest; lowest at "
            f"{found['lowest_loss_at']:g}; {output / 'learning_rate.png'} shows it"
        )
        return
    run_training(folder, output=output, resume=_resumes(resume), device=device, tensorboard=tensorboard, **choices)


def _resumes(resume: str) -> bool:
    if resume not in ("auto", "never"):
        raise InputError(f"--resume {resume}: auto or never is needed")
    return resume == "auto"
