"""`lipsformer certify`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from .options import Data, Json, Quiet, print_json

__all__ = ["certify_model"]


def certify_model(
    model: Annotated[
        str, typer.Argument(help="Checkpoint (.safetensors), or a trained model (see `lipsformer models`).")
    ],
    dataset: Data,
    split: Annotated[str | None, typer.Option(help="Split to certify; by default test, else val.")] = None,
    radii: Annotated[
        str, typer.Option(help="Radii of the table, in L2 of pixels from 0 to 1.")
    ] = "18/255,36/255,72/255,108/255",
    images: Annotated[
        int | None, typer.Option(min=1, help="Certify so many images, evenly spread; by default all.")
    ] = None,
    attacked: Annotated[int, typer.Option(min=1, help="How many images to attack.")] = 100,
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps of each attack.")] = 20,
    restarts: Annotated[int, typer.Option(min=1, help="Starts of each gradient attack.")] = 2,
    queries: Annotated[int, typer.Option(min=1, help="Queries of each black-box attack.")] = 100,
    output: Annotated[Path | None, typer.Option(help="Folder to write: table, JSON and plot.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure which answers no small change of the pixels can change, and check that by attacks."""
    from lipsformer.checkpoints.checkpoint import read_header
    from lipsformer.datasets import check_output, open_labeled, resolve_dataset
    from lipsformer.evaluation.certified.certify import AttackSettings, certify, parse_radii
    from lipsformer.evaluation.certified.report import format_certification, write_certification
    from lipsformer.system.atomic import atomic_directory

    wanted = parse_radii(radii)
    data = resolve_dataset(dataset)
    check_output(output, data)
    labeled = open_labeled(data, read_header(model).classes, split)
    labeled.left_out.report(dataset)
    settings = AttackSettings(images=attacked, steps=steps, restarts=restarts, queries=queries)
    with contextlib.nullcontext() if output is None else atomic_directory(output) as folder:
        found = certify(model, labeled, wanted, settings, images)
        if folder is not None:
            write_certification(found, folder)
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(format_certification(found))
    found.check()
