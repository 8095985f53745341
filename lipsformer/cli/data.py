"""`lipsformer data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["data"]


def data(
    name: Annotated[str, typer.Argument(help="Built-in dataset: fruit, cifar10 or fashion-mnist.")],
    output: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    source: Annotated[Path | None, typer.Option(help="The dataset's file, where you already have it.")] = None,
) -> None:
    """Fetch a built-in dataset as class folders."""
    from lipsformer.datasets.builtin import fetch_dataset

    typer.echo(fetch_dataset(name, output, source=source))
