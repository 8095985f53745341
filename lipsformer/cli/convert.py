"""`lipsformer convert`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from .options import Json, print_json

__all__ = ["convert"]


def convert(
    official: Annotated[Path, typer.Argument(help="Checkpoint (.pth) of the official code, Swin form.")],
    output: Annotated[Path, typer.Option(help="Checkpoint (.safetensors) to write.")],
    image_size: Annotated[
        int | None, typer.Option(help="Image size in pixels, if the checkpoint leaves it open.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="File of class names: one per line, or a JSON list. Default: 'class 0' and so on."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert an official checkpoint without executing its pickle."""
    from lipsformer.checkpoints.convert import convert as convert_official
    from lipsformer.system.console import printable

    conversion = convert_official(official, output, image_size=image_size, classes=classes)
    if as_json:
        print_json(dataclasses.asdict(conversion))
    else:
        typer.echo(printable(str(conversion)))
