"""`lipsformer download`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Json, Quiet, print_json

__all__ = ["download"]


def download(
    model: Annotated[str, typer.Argument(metavar="NAME", help="Trained model by name; see `lipsformer models`.")],
    sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="SHA-256 that the downloaded file must have.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch a trained model into the cache and print its path. Other commands do so at a name's first use."""
    from lipsformer.checkpoints.pretrained import fetch_model

    fetched = fetch_model(model, sha256)
    if as_json:
        print_json({"checkpoint": str(fetched.checkpoint), "sha256": fetched.sha256})
    else:
        typer.echo(str(fetched.checkpoint))
