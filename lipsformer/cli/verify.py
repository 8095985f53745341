"""`lipsformer verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipsformer.system.errors import GateError

from .options import Json, Quiet, optional_dataset, print_json

__all__ = ["verify"]


def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, on the machine that will serve it.")],
    dataset: Annotated[str | None, typer.Option("--data", help="Photos to compare on; needs --checkpoint.")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="The bundle's checkpoint, to compute its outputs again."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto (everything that works here), cpu or cuda.")] = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check a bundle on this machine: hashes, and the parity of each file in every runtime that works here."""
    from lipsformer.export import verify_bundle

    found = verify_bundle(
        bundle,
        checkpoint=checkpoint,
        data=optional_dataset(dataset),
        device=device,
    )
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo(found.to_text())
    if found.failures:
        raise GateError(f"{bundle}: {'; '.join(found.failures)}")
