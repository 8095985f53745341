"""`lipsformer serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Bundle, bundle_of

__all__ = ["serve"]


def serve(
    model: Bundle,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 3000,
    workers: Annotated[
        int | None,
        typer.Option(
            envvar="LIPSFORMER_WORKERS", help="Server processes; by default one per GPU, or one for every four cores."
        ),
    ] = None,
    device: Annotated[str, typer.Option(envvar="LIPSFORMER_DEVICE", help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str | None,
        typer.Option(envvar="LIPSFORMER_PRECISION", help="Which of the bundle's precisions; by default its first."),
    ] = None,
    watch: Annotated[
        int | None,
        typer.Option(
            envvar="LIPSFORMER_WATCH",
            help="Seconds between checks for a newer bundle, which takes over once it is verified and warm.",
        ),
    ] = None,
    shadow: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            envvar="LIPSFORMER_SHADOW",
            help="A second model that sees a share of the images, to count where it would answer differently.",
        ),
    ] = None,
) -> None:
    """Serve a model over HTTP: POST /classify, and a page to drop images on at /."""
    from lipsformer.serving import serve as serve_bundle

    serve_bundle(
        bundle_of(model),
        host=host,
        port=port,
        workers=workers,
        device=device,
        precision=precision,
        watch=watch,
        shadow=None if shadow is None else bundle_of(shadow),
    )
