"""`lipsformer lipschitz`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from .options import Json, print_json

__all__ = ["lipschitz"]


def lipschitz(
    model: Annotated[str, typer.Argument(help="Checkpoint (.safetensors) to measure, or lipsformer_cifar10.")],
    dataset: Annotated[
        str | None, typer.Option("--data", help="Images to measure at; by default the photos that the package ships.")
    ] = None,
    images: Annotated[int, typer.Option(help="Images to measure at, evenly chosen.")] = 4,
    output: Annotated[Path | None, typer.Option(help="Folder to write table, JSON and plot to.")] = None,
    as_json: Json = False,
) -> None:
    """Bound how much a model's answers can change with its input, and measure how much they do."""
    from lipsformer.datasets import resolve_dataset
    from lipsformer.images.samples import SAMPLES
    from lipsformer.lipschitz import measure_lipschitz, render, write_report
    from lipsformer.system.atomic import atomic_directory

    with contextlib.nullcontext() if output is None else atomic_directory(output) as folder:
        report = measure_lipschitz(model, SAMPLES if dataset is None else resolve_dataset(dataset), images)
        if folder is not None:
            write_report(report, folder)
    if as_json:
        print_json(report.to_dict())
    else:
        typer.echo(render(report))
