"""`lipsformer explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Json, Model, print_json

__all__ = ["explain"]


def explain(
    model: Model,
    photos: Annotated[list[str], typer.Argument(metavar="PHOTO", help="Photos, folders or patterns.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the overlays; it must not exist.")],
    label: Annotated[
        str | None,
        typer.Option(
            "--class", metavar="NAME", help="Class to explain; by default each photo's best.", show_default=False
        ),
    ] = None,
    stage: Annotated[
        int | None,
        typer.Option(
            help="Stage of the network, from 1. Earlier ones are finer, the last is exact. By default the last with "
            "7x7 tokens or more, else the first.",
            show_default=False,
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw which pixels spoke for a class: orange for it, blue against it."""
    from lipsformer.evaluation.heat_maps.explainer import explainer_of
    from lipsformer.evaluation.heat_maps.photos import SHEET, class_index, explain_photos
    from lipsformer.inference.predictor import load_predictor
    from lipsformer.system.atomic import atomic_directory
    from lipsformer.system.console import printable, say
    from lipsformer.system.errors import InputError, LipsFormerError

    predictor = load_predictor(model, device)
    explainer = explainer_of(predictor, stage)
    if explainer is None:
        raise InputError(f"{model}: has no heat maps; give its checkpoint, or export the bundle with --explain")
    index = None if label is None else class_index(predictor, label)
    with atomic_directory(output) as folder:
        explained, problems = explain_photos(predictor, explainer, photos, folder, index)
        if not explained:
            raise problems[0] if len(problems) == 1 else InputError(f"no photo can be read; the first: {problems[0]}")
    for problem in problems:
        say(printable(" ".join(str(problem).split())), always=True)
    if as_json:
        print_json([one.to_dict() for one in explained])
    else:
        for one in explained:
            typer.echo(printable(f"{one.score:7.2%}  {one.label}  {output / one.file}  ({one.name})"))
        typer.echo(f"Sheet: {output / SHEET}")
    if problems:
        total = len(problems) + len(explained)
        raise LipsFormerError(f"{len(problems):,} of {total:,} photos cannot be read; the lines above say why")
