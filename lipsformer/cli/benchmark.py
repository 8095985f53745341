"""`lipsformer benchmark`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Json, Quiet, print_json

__all__ = ["benchmark"]


def benchmark(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Checkpoints, .onnx files, engines, or bundles: every file that can run here."
        ),
    ],
    batch: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,8",
    rounds: Annotated[int, typer.Option(help="Rounds. Each round measures every model at every batch size.")] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds for each model and batch size in a round.")] = 1.0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default all cores.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write: table, JSON and plot.")] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare models: latency, throughput, memory, and how closely their outputs agree."""
    from lipsformer.checkpoints.pretrained import resolve_model
    from lipsformer.evaluation.speed.measure import measure_speed, parse_batches
    from lipsformer.evaluation.speed.report import format_speed
    from lipsformer.system.atomic import atomic_directory
    from lipsformer.system.extras import require

    if output is not None:
        require("report", what="--output")
    batches = parse_batches(batch)
    with contextlib.nullcontext() if output is None else atomic_directory(output) as folder:
        report = measure_speed(
            [(model, resolve_model(model)) for model in models],
            batches=batches,
            rounds=rounds,
            seconds=seconds,
            threads=threads,
            device=device,
        )
        if folder is not None:
            from lipsformer.evaluation.speed.write import write_report

            write_report(report, folder)
    if as_json:
        print_json(report.to_dict())
    else:
        typer.echo(format_speed(report))
