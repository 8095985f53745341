"""`lipsformer models`."""

from __future__ import annotations

import dataclasses

import typer

from .options import Json, print_json

__all__ = ["models"]


def models(as_json: Json = False) -> None:
    """List the model variants: parameters, multiply-adds, image size; and the trained models that have a name."""
    from lipsformer.checkpoints.trained_models import trained_models
    from lipsformer.model.flops import summarize
    from lipsformer.model.variants import ALIASES, VARIANTS

    rows, trained = [summarize(name) for name in VARIANTS], trained_models()
    if as_json:
        weights = {row.name: [dataclasses.asdict(one) for one in trained if one.variant == row.name] for row in rows}
        print_json([{**dataclasses.asdict(row), "weights": weights[row.name]} for row in rows])
        return
    typer.echo(f"{'model':24}{'parameters':>14}{'multiply-adds':>16}{'image size':>12}")
    for row in rows:
        typer.echo(f"{row.name:24}{row.parameters:>14,}{row.multiply_adds / 1e9:>14.3f} G{row.image_size:>12}")
    for alias, name in ALIASES.items():
        typer.echo(f"{alias} is short for {name}")
    typer.echo(f"\n{'trained':28}{'parameters':>12}{'classes':>9}{'image size':>12}{'top-1':>9}  dataset")
    for one in trained:
        note = f"{', published figure' if one.published else ''}, {'here' if one.local else 'downloaded at first use'}"
        size = f"{one.parameters:>12,}{one.classes:>9,}{one.image_size:>12}"
        typer.echo(f"{one.name:28}{size}{one.top1:>9.2%}  {one.dataset}{note}")
