"""`lipsformer convert`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from .options import Json, print_json

__all__ = ["convert"]


def convert(
    official: Annotated[Path, typer.Argument(help="Checkpoint (.pth) of the official code's Swin form.")],
    output: Annotated[Path, typer.Option(help="Checkpoint (.safetensors) to write.")],
    image_size: Annotated[
        int | None, typer.Option(help="Pixels along a side, where the checkpoint leaves it open.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one to a line or a JSON list; by default 'class 0' and so on.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert an official checkpoint, without running anything in it."""
    from lipsformer.checkpoints.convert import convert as convert_official
    from lipsformer.system.console import printable

    conversion = convert_official(official, output, image_size=image_size, classes=classes)
    if as_json:
        print_json(dataclasses.asdict(conversion))
    else:
        typer.echo(printable(str(conversion)))
