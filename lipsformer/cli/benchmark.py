"""`lipsformer benchmark`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Json, print_json

__all__ = ["benchmark"]


def benchmark(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Checkpoints, .onnx files, engines, or bundles: all in them that can run."
        ),
    ],
    batch: Annotated[str, typer.Option(help="Batch sizes, with commas between them.")] = "1,8",
    rounds: Annotated[int, typer.Option(help="Rounds; in each every model has a turn at every batch size.")] = 5,
    seconds: Annotated[float, typer.Option(help="Seconds of a turn.")] = 1.0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default all cores.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write table, JSON and plot to.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure models beside each other: latency, throughput, memory, and how equal they answer."""
    from lipsformer.evaluation.speed import measure_speed, parse_batches, render, write_report
    from lipsformer.system.atomic import atomic_directory

    batches = parse_batches(batch)
    with contextlib.nullcontext() if output is None else atomic_directory(output) as folder:
        report = measure_speed(models, batches=batches, rounds=rounds, seconds=seconds, threads=threads, device=device)
        if folder is not None:
            write_report(report, folder)
    if as_json:
        print_json(report.to_dict())
    else:
        typer.echo(render(report))
