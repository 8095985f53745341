"""`lipsformer stability`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Data, Device, Json, Quiet, print_json

__all__ = ["stability"]


def stability(
    dataset: Data,
    output: Annotated[Path, typer.Option(help="Folder to write. Run the command again to resume.")],
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LABEL:] VARIANT [KEY=VALUE ...]",
            help="What to compare: a variant (see `lipsformer models`) and recipe settings for it alone. Repeatable. "
            "Default: lipsformer_cswin_nano and cswin_nano.",
        ),
    ] = None,
    learning_rates: Annotated[
        str, typer.Option(help="Learning rates, separated by commas.")
    ] = "1e-4,3e-4,1e-3,3e-3,1e-2,3e-2,1e-1",
    seeds: Annotated[int, typer.Option(help="Trainings of each column at each rate.")] = 1,
    recipe: Annotated[str, typer.Option(help="Packaged recipe or TOML file.")] = "default",
    epochs: Annotated[int | None, typer.Option(help="Number of epochs. Default: the recipe's.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe setting for all columns. Repeatable."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Number of parallel trainings. Default: one per core, or one on a GPU.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train models at many learning rates, without warm-up, and compare them."""
    from lipsformer.datasets import resolve_dataset
    from lipsformer.train.stability.columns import DEFAULT_COLUMNS
    from lipsformer.train.stability.grid import measure_stability

    report = measure_stability(
        resolve_dataset(dataset),
        output=output,
        columns=column or DEFAULT_COLUMNS,
        learning_rates=learning_rates,
        seeds=seeds,
        recipe=recipe,
        epochs=epochs,
        overrides=overrides or (),
        jobs=jobs,
        device=device,
    )
    if as_json:
        print_json(report)
    else:
        typer.echo((output / "stability.md").read_text(encoding="utf-8"))
