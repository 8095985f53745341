"""`lipsformer data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Quiet

__all__ = ["data"]


def data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="fruit, cifar10 or fashion-mnist.")],
    output: Annotated[Path, typer.Option(help="Folder to create; it must not exist.")],
    source: Annotated[
        Path | None, typer.Option(help="File (for fashion-mnist: folder) that you have already downloaded.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Download a built-in dataset as class folders.

    fashion-mnist is downloaded with apt-get, on Debian only. Elsewhere, pass its files with --source.
    """
    from lipsformer.datasets.builtin import fetch_dataset

    typer.echo(fetch_dataset(name, output, source=source))
