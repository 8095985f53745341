"""`lipsformer data`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from lipsformer.system.errors import GateError

from .options import Classes, ClassesFrom, Column, Data, ImageRoot, Json, Quiet, print_json

__all__ = ["data"]


class DataGroup(TyperGroup):
    """The commands of `data`. Without one, `data NAME --output DIR` means `data fetch NAME --output DIR`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Completes the command line."""
        first = args[0] if args else "--help"
        if first not in ("-h", "--help") and not difflib.get_close_matches(first, self.commands):
            args = ["fetch", *args]
        return super().parse_args(ctx, args)


data = typer.Typer(cls=DataGroup, no_args_is_help=True, help="Fetch a built-in dataset, or check your own.")


@data.command()
def fetch(
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


@data.command()
def check(
    dataset: Data,
    output: Annotated[
        Path | None, typer.Option(help="Folder for a report: index.html with the photos, and check.json.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with status 1 if duplicates or groups are in several splits.")
    ] = False,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN|REGEX",
            help="What belongs together, such as a patient: a column of the table, or what the first parentheses match "
            "in image names.",
        ),
    ] = None,
    classes_from: ClassesFrom = None,
    column: Column = None,
    image_root: ImageRoot = None,
    classes: Classes = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look for duplicates, leakage between splits, label conflicts, and odd or unreadable images."""
    from lipsformer.datasets import DatasetOptions, check_output, resolve_dataset
    from lipsformer.datasets.check import check_dataset, format_check, write_check
    from lipsformer.system.extras import require

    if output is not None:
        require("report", what="--output")
    options = DatasetOptions(
        classes_from=classes_from,
        group=group,
        columns=DatasetOptions.parse_columns(column or ()),
        image_root=image_root,
        classes=classes,
    )
    path = resolve_dataset(dataset)
    check_output(output, path)
    found = check_dataset(path, options, title=dataset)
    if output is not None:
        write_check(found, output)
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(format_check(found))
        if output is not None:
            typer.echo(f"\nReport: {output / 'index.html'}")
    if strict and (leaks := found.leakage()):
        raise GateError(f"{dataset}: {leaks}; keep each in one")
