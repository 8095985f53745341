"""`lipsformer models`."""

from __future__ import annotations

import dataclasses

import typer

from .options import Json, print_json

__all__ = ["models"]


def models(as_json: Json = False) -> None:
    """List the model variants: parameters, multiply-adds, image size."""
    from lipsformer.model.flops import summarize
    from lipsformer.model.variants import ALIASES, VARIANTS

    rows = [summarize(name) for name in VARIANTS]
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    typer.echo(f"{'model':24}{'parameters':>14}{'multiply-adds':>16}{'image size':>12}")
    for row in rows:
        typer.echo(f"{row.name:24}{row.parameters:>14,}{row.multiply_adds / 1e9:>14.3f} G{row.image_size:>12}")
    for alias, name in ALIASES.items():
        typer.echo(f"{alias} is short for {name}")
