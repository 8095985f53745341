"""`lipsformer lipschitz`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from .options import Json, Quiet, print_json

__all__ = ["lipschitz"]


def lipschitz(
    model: Annotated[
        str, typer.Argument(help="Checkpoint (.safetensors), or a trained model (see `lipsformer models`).")
    ],
    dataset: Annotated[
        str | None, typer.Option("--data", help="Images to measure at; by default the sample photos of the package.")
    ] = None,
    images: Annotated[int, typer.Option(help="How many of them, evenly spread.")] = 4,
    output: Annotated[Path | None, typer.Option(help="Folder to write: table, JSON and plot.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bound how much a model's output can change with its input, and measure how much it does."""
    from lipsformer.datasets import check_output, resolve_dataset
    from lipsformer.evaluation.lipschitz import format_lipschitz, measure_lipschitz
    from lipsformer.images.samples import SAMPLES
    from lipsformer.system.atomic import atomic_directory
    from lipsformer.system.extras import require

    if output is not None:
        require("report", what="--output")
    data = SAMPLES
    if dataset is not None:
        data = resolve_dataset(dataset)
        check_output(output, data)
    with contextlib.nullcontext() if output is None else atomic_directory(output) as folder:
        report = measure_lipschitz(model, data, images)
        if folder is not None:
            from lipsformer.evaluation.lipschitz.write import write_report

            write_report(report, folder)
    if as_json:
        print_json(report.to_dict())
    else:
        typer.echo(format_lipschitz(report))
