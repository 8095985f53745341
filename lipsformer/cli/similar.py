"""`lipsformer similar`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Json, print_json

__all__ = ["similar"]


def similar(
    rows: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="What `lipsformer predict --features --output` wrote in Parquet."),
    ],
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="The photo to compare with.")],
    top_k: Annotated[int, typer.Option(help="Images to show.")] = 10,
    model: Annotated[
        str | None, typer.Option(help="The model that OUT was made with, if it has moved since.", show_default=False)
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the images as a contact sheet.", show_default=False)
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare all rows, even if there are more than a million.")
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the images of a bulk prediction that are most like a photo."""
    from lipsformer.evaluation.similar import FeatureTable, plot_neighbors
    from lipsformer.evaluation.similar_index import find_nearest
    from lipsformer.inference.predictor import load_predictor
    from lipsformer.system.atomic import sha256_of
    from lipsformer.system.console import printable
    from lipsformer.system.errors import InputError
    from lipsformer.system.extras import require

    if sheet is not None:
        require("report", what="--sheet")
    table = FeatureTable(rows)
    made_with = table.metadata
    name = model or str(made_with["model"])
    bundle = Path(name).is_dir()
    predictor = load_predictor(name, device, str(made_with["precision"]) if bundle else None)
    if sha256_of(predictor.file) != made_with["model_sha256"]:
        raise InputError(f"{name}: not the model that {rows} was made with; name that one with --model")
    features = predictor.runtime.infer(predictor.prepare(photo)[None]).features
    if features is None:
        raise InputError(f"{name}: gives no features; export it again")
    neighbors = find_nearest(table, features[0], top_k, exact=exact)
    if sheet is not None:
        plot_neighbors(sheet, photo, neighbors, predictor)
    if as_json:
        print_json({"photo": str(photo), "neighbors": [vars(neighbor) for neighbor in neighbors]})
        return
    for neighbor in neighbors:
        typer.echo(printable(f"{neighbor.distance:8.4f}  {neighbor.name}  {neighbor.label} {neighbor.score:.1%}"))
